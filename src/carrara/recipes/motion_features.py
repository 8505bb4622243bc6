"""The feature network of the pond-motion distances, trained on fresh renders and what the simulator knows of them.

    carrara train motion-features -o runs/motion-features --train.minutes 12

Every scene is rendered once and seen in a few views: a stretch of it, its frames in order, frozen, shuffled or
reversed, clean, noisy or blurred. The network names all of that. What damage has made meaningless (the motion of a
frozen clip) is not asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from einops import rearrange
from torch import Generator, Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, smooth_l1_loss

from carrara.core.config import to_dict, write_json
from carrara.core.types import VideoShape
from carrara.data.batches import mix as mix_seed
from carrara.data.pond.render import render
from carrara.data.pond.sampling import Mix, sample_scene
from carrara.data.pond.world import ACTORS, BACKGROUNDS, CAMERAS, COLOURS, MOTIONS, WALLS, Scene, Truth
from carrara.evaluation.corruptions import blurred, frozen, noisy, reversed_, shuffled
from carrara.evaluation.motion_net import (
    LEAST_FRAMES,
    ORDERS,
    RATE,
    SIDE,
    MotionNet,
    MotionNetConfig,
    resize,
    save_motion_net,
    to_unit,
)
from carrara.training.config import TrainConfig
from carrara.training.loop import train

# Where the scenes of each use begin; the pond's recipe draws below 2**35, evaluation from 2**40 on.
TRAINING_SCENES, VALIDATION_SCENES = 2**36, 2**37
SPEED = 0.25  # sides of the frame per second that the velocity head calls 1: about the pond's own pace
MOST_NOISE, MOST_BLUR = 0.15, 0.03  # deviation as a share of the range; sigma as a share of the side
ORDER_SHARES = (0.55, 0.1, 0.2, 0.15)  # of ORDERS, in training
DAMAGED = 0.25  # share of views with noise, and of views with blur
WEIGHTS = {"motion": 1.0, "shape": 0.5, "colour": 0.5, "background": 0.3, "camera": 0.5, "wall": 0.3, "two": 0.3}
WEIGHTS |= {"order": 1.0, "velocity": 1.0, "noise": 0.3, "blur": 0.3}

Labels = Mapping[str, Tensor]


@dataclass(frozen=True)
class MotionBatch:
    """Views and what is true of them. video: uint8 `b t 64 64 3`; labels: `b ...` by head; "moves" and "goes": bool
    `b`, whether motion and camera, and whether velocity mean anything there."""

    video: Tensor
    labels: Labels


@dataclass(frozen=True)
class MotionRecipe:
    """The network, its training and what it sees. scenes: rendered for a step; views: of each; wide_every: one step in
    so many is on renders of twice the side, made smaller; held_out_every: one scene in so many has a combination of
    attributes that generators do not train on."""

    model: MotionNetConfig = field(default_factory=MotionNetConfig)
    train: TrainConfig = field(
        default_factory=lambda: TrainConfig(
            minutes=12,
            warmup=50,
            decay_share=0.4,
            optimizer="muon",
            ema=0.995,
            prefetch=False,
            validate_every=500,
            picture_every=0,
        )
    )
    mix: Mix = field(default_factory=Mix)
    scenes: int = 8
    views: int = 4
    frames: int = 17
    wide_every: int = 8
    held_out_every: int = 4
    validation: int = 256
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (
            ("scenes", 1), ("views", 1), ("frames", LEAST_FRAMES), ("wide_every", 1), ("held_out_every", 1),
            ("validation", 2),
        ):  # fmt: skip
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least {least}")

    def run(self, folder: Path) -> Path:
        """Train into `folder` and return the finished network's folder."""
        net = MotionNet(self.model)
        net.initialise(torch.Generator().manual_seed(self.seed))
        settings = to_dict(self)
        settings.pop("train")  # the loop keeps its own, and knows which of them may change
        return train(MotionPhase(net, self), self.train, folder, settings)

    def scene(self, number: int) -> Scene:
        held_out = number % self.held_out_every == self.held_out_every - 1
        return sample_scene(number, self.mix, "held_out" if held_out else "train")

    def batch(self, step: int) -> MotionBatch:
        """The views of one step: a pure function of it."""
        generator = torch.Generator().manual_seed(mix_seed(self.seed, step))
        first = TRAINING_SCENES + step * self.scenes
        scenes = [self.scene(number) for number in range(first, first + self.scenes)]
        videos, truths = rendered(scenes, self.frames, SIDE * (2 if step % self.wide_every == 0 else 1))
        whole = float(torch.rand((), generator=generator)) < 0.5
        length = self.frames if whole else _integer(LEAST_FRAMES, self.frames, generator)
        clips, labels = [], []
        for scene, truth, video in zip(scenes, truths, videos):
            for _ in range(self.views):
                start = _integer(0, self.frames - length, generator)
                order = int(torch.multinomial(torch.tensor(ORDER_SHARES), 1, generator=generator))
                noise, blur = (
                    float(torch.rand((), generator=generator)) * most * (float(chosen) < DAMAGED)
                    for most, chosen in zip((MOST_NOISE, MOST_BLUR), torch.rand(2, generator=generator))
                )
                clips.append(view(video[start : start + length], ORDERS[order], noise, blur, generator))
                labels.append(label(scene, truth, start, length, order, noise, blur))
        return MotionBatch(torch.stack(clips), _stack(labels))


class MotionPhase:
    """Train the network to answer all heads at once."""

    def __init__(self, net: MotionNet, recipe: MotionRecipe) -> None:
        self.module: nn.Module = net
        self.net = net
        self.recipe = recipe
        self.validation = fresh_clips(recipe, VALIDATION_SCENES, recipe.validation)
        self.orders = [
            torch.stack(
                [view(clip, name, 0.0, 0.0, Generator().manual_seed(i)) for i, clip in enumerate(self.validation.video)]
            )
            for name in ORDERS
        ]

    def batch(self, step: int) -> MotionBatch:
        return self.recipe.batch(step)

    @staticmethod
    def is_matrix(name: str, parameter: nn.Parameter) -> bool:
        """What Muon trains: the filters of the blocks and reductions."""
        return name.startswith("stages.") and parameter.ndim > 1

    def loss(self, batch: MotionBatch, step: int, generator: Generator) -> dict[str, Tensor]:
        answers = {name: value.float() for name, value in self.net.answers(to_unit(batch.video)).items()}
        parts = errors(answers, batch.labels)
        return {"loss": torch.stack([WEIGHTS[name] * value for name, value in parts.items()]).sum(), **parts}

    def validate(self) -> dict[str, float]:
        """Shares of right answers on the fixed clean clips; of orders, on all four of each clip."""
        return scores(self.net, self.validation, self.orders)

    def picture(self) -> Tensor | None:
        return None

    def export(self, folder: Path) -> None:
        """Standardise the features by the fixed clean clips, and write the network with its scores."""
        parts = [self.net.embedding(to_unit(part)).float() for part in self.validation.video.split(32)]
        self.net.standardise_by(torch.cat(parts))
        save_motion_net(self.net, folder)
        write_json(folder / "scores.json", {"clips": len(self.validation.video), **self.validate()})


def rendered(scenes: Sequence[Scene], frames: int, side: int) -> tuple[Tensor, tuple[Truth, ...]]:
    """Clips uint8 `b t 64 64 3`, rendered at this side, with their truths."""
    made = render(scenes, VideoShape(frames, side, side), RATE)
    video = made.video if side == SIDE else torch.stack([resize(clip) for clip in made.video])
    return video, made.truths


def view(clip: Tensor, order: str, noise: float, blur: float, generator: Generator) -> Tensor:
    """A clip in one of ORDERS, blurred, then noisy."""
    arrange = {"frozen": frozen, "shuffled": shuffled, "reversed": reversed_}.get(order)
    clip = arrange(clip, generator) if arrange else clip
    clip = blurred(blur)(clip, generator) if blur else clip
    return noisy(noise)(clip, generator) if noise else clip


def label(scene: Scene, truth: Truth, start: int, length: int, order: int, noise: float, blur: float) -> Labels:
    """What is true of one view of a scene: frames start .. start + length - 1 in one of ORDERS."""
    stretch = slice(start, start + length)
    seen = truth.visible[:, stretch].max(1) > 0.2
    shown = [actor for actor, there in zip(scene.actors, seen) if there]
    velocity = torch.from_numpy(truth.screen[:, stretch]).diff(dim=1) * (RATE / SPEED)  # a t 2
    weight = torch.from_numpy(truth.visible[:, stretch][:, 1:])
    across, down = rearrange(velocity * weight[..., None], "a t c -> c (a t)").sum(1) / weight.sum().clamp(min=0.1)
    pace = (velocity.norm(dim=-1) * weight).sum() / weight.sum().clamp(min=0.1)
    name = ORDERS[order]
    sign = {"forward": 1.0, "reversed": -1.0}.get(name, 0.0)
    return {
        "motion": _many(MOTIONS, [actor.motion for actor in shown]),
        "shape": _many(ACTORS, [actor.kind for actor in shown]),
        "colour": _many(tuple(COLOURS), [actor.colour for actor in shown]),
        "background": torch.tensor(tuple(BACKGROUNDS).index(scene.background)),
        "camera": torch.tensor(CAMERAS.index(scene.camera)),
        "wall": torch.tensor((None, *WALLS).index(scene.wall)),
        "two": torch.tensor([float(len(shown) == 2)]),
        "order": torch.tensor(order),
        "velocity": torch.stack([sign * across, sign * down, abs(sign) * pace]).float(),
        "noise": torch.tensor([noise / MOST_NOISE]),
        "blur": torch.tensor([blur / MOST_BLUR]),
        "moves": torch.tensor(name == "forward"),
        "goes": torch.tensor(name != "shuffled"),
    }


def errors(answers: Mapping[str, Tensor], labels: Labels) -> dict[str, Tensor]:
    """The mean error of every head: summed over its answers, over the views where it means something."""
    found = {}
    for name, answer in answers.items():
        target = labels[name]
        if name in ("motion", "shape", "colour", "two"):
            each = binary_cross_entropy_with_logits(answer, target, reduction="none").sum(1)
        elif target.ndim == 1:
            each = cross_entropy(answer, target, reduction="none")
        else:
            each = smooth_l1_loss(answer, target, reduction="none").sum(1)
        asked = {"motion": labels["moves"], "camera": labels["moves"], "velocity": labels["goes"]}.get(name)
        asked = torch.ones_like(labels["goes"]) if asked is None else asked
        found[name] = (each * asked).sum() / asked.sum().clamp(min=1)
    return found


@torch.no_grad()
def scores(net: MotionNet, clips: MotionBatch, orders: Sequence[Tensor]) -> dict[str, float]:
    """How often the network is right: the best answer of motion, shape and colour on clips of one actor (is it that
    actor's), of background and camera on all, of the order on every ordering; and the velocity's mean error in sides
    of the frame per second."""
    parts = [net.answers(to_unit(part)) for part in clips.video.split(32)]
    answers = {name: torch.cat([part[name] for part in parts]).float() for name in parts[0]}
    single = clips.labels["motion"].sum(1) == 1
    found = {}
    for name in ("motion", "shape", "colour"):
        best = answers[name][single].argmax(1, keepdim=True)
        found[name] = float(clips.labels[name][single].gather(1, best).mean())
    for name in ("background", "camera", "wall"):
        found[name] = float((answers[name].argmax(1) == clips.labels[name]).float().mean())
    found["two"] = float(((answers["two"] > 0) == (clips.labels["two"] > 0.5)).float().mean())
    for number, (name, videos) in enumerate(zip(ORDERS, orders)):
        told = torch.cat([net.answers(to_unit(part))["order"].argmax(1) for part in videos.split(32)])
        found[f"order_{name}"] = float((told == number).float().mean())
    error = (answers["velocity"] - clips.labels["velocity"])[:, :2].norm(dim=1).mean()
    found["velocity_error"] = float(error) * SPEED
    return found


def fresh_clips(recipe: MotionRecipe, first: int, count: int) -> MotionBatch:
    """Whole clean clips of the scenes first..first+count-1, with their labels."""
    videos, labels = [], []
    for at in range(first, first + count, 32):
        scenes = [recipe.scene(number) for number in range(at, min(at + 32, first + count))]
        video, truths = rendered(scenes, recipe.frames, SIDE)
        videos.append(video)
        labels += [label(scene, truth, 0, recipe.frames, 0, 0.0, 0.0) for scene, truth in zip(scenes, truths)]
    return MotionBatch(torch.cat(videos), _stack(labels))


def _many(names: Sequence[str], present: Sequence[str]) -> Tensor:
    return torch.tensor([float(name in present) for name in names])


def _stack(labels: Sequence[Labels]) -> Labels:
    return {name: torch.stack([each[name] for each in labels]) for name in labels[0]}


def _integer(low: int, high: int, generator: Generator) -> int:
    return int(torch.randint(low, high + 1, (), generator=generator))


def motion_features() -> MotionRecipe:
    """The feature network of the pond-motion distances (evaluation), 12 minutes on one CPU core."""
    return MotionRecipe()
