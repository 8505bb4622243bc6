"""The feature network of the pond-motion distances, trained on fresh renders and what the simulator knows of them.

    carrara train motion-features -o runs/motion-features --train.minutes 12

Not standard for a feature network: besides what a clip shows as a whole, it says for every 8 x 8 pixels of every frame
which shape and colour is there, facing where. The renderer knows it, and it teaches in minutes what labels of whole
clips take hours to. Every scene is rendered once and seen in a few views: a stretch of it, its frames in order, frozen,
shuffled or reversed, clean, noisy or blurred. The network names all of that. What damage has made meaningless (the
motion of a frozen clip) is not asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Generator, Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, smooth_l1_loss

from carrara.core.config import at_least, to_dict, write_json
from carrara.data.batches import mix as mix_seed
from carrara.data.pond.sampling import Mix, sample_scene
from carrara.data.pond.world import Scene
from carrara.evaluation.distribution.motion_net import (
    LEAST_FRAMES,
    ORDERS,
    SIDE,
    MotionNet,
    MotionNetConfig,
    save_motion_net,
    to_unit,
)
from carrara.recipes.motion_data import CELLS, SPEED, Labels, MotionBatch, arranged, views, whole_clips
from carrara.recipes.runs import Recipe
from carrara.recipes.scene_numbers import MOTION_SCENES, MOTION_VALIDATION_SCENES
from carrara.training.config import TrainConfig
from carrara.training.loop import train

WEIGHTS = {"motion": 1.0, "shape": 0.5, "colour": 0.5, "background": 0.3, "camera": 0.5, "wall": 0.3, "two": 0.3}
WEIGHTS |= {"order": 1.0, "velocity": 1.0, "noise": 0.3, "blur": 0.3}
CELL_WEIGHTS = {"shape": 10.0, "colour": 5.0, "facing": 5.0}  # of what is in cells, where most show neither
CELL_MAP = 1  # the network's map with one position for each cell


@dataclass(frozen=True)
class MotionRecipe(Recipe):
    """The network, its training and what it sees. scenes: rendered for a step; views: of each; wide_every: one step in
    so many is on renders of twice the side, made smaller; held_out_every: one scene in so many has a combination of
    attributes that generators do not train on."""

    model: MotionNetConfig = field(default_factory=MotionNetConfig)
    train: TrainConfig = field(
        default_factory=lambda: TrainConfig(
            minutes=12,
            learning_rate=2e-3,
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

    kind = "motion-features"

    def __post_init__(self) -> None:
        at_least(self, 1, "scenes", "views")
        at_least(self, LEAST_FRAMES, "frames")
        at_least(self, 1, "wide_every", "held_out_every")
        at_least(self, 2, "validation")
        if len(self.model.channels) < CELL_MAP + 2:
            raise ValueError(
                f"channels={self.model.channels}: at least {CELL_MAP + 2} are needed, the last for half as many frames"
            )

    def _run(self, folder: Path) -> Path:
        net = MotionNet(self.model)
        net.initialise(torch.Generator().manual_seed(self.seed))
        settings = to_dict(self)
        settings.pop("train")  # the loop keeps its own, and knows which of them may change
        return train(MotionPhase(net, self), self.train, folder, settings)

    def scenes_from(self, first: int, count: int) -> list[Scene]:
        """Scenes first..first+count-1, of both splits."""
        last = self.held_out_every - 1
        return [
            sample_scene(number, self.mix, "held_out" if number % self.held_out_every == last else "train")
            for number in range(first, first + count)
        ]

    def batch(self, step: int) -> MotionBatch:
        """The views of one step: a pure function of it."""
        generator = torch.Generator().manual_seed(mix_seed(self.seed, step))
        scenes = self.scenes_from(MOTION_SCENES + step * self.scenes, self.scenes)
        side = SIDE * (2 if step % self.wide_every == 0 else 1)
        return views(scenes, self.frames, side, self.views, generator)


class MotionPhase:
    """Train the network to answer all heads at once, and those that only training has: what is in every cell."""

    def __init__(self, net: MotionNet, recipe: MotionRecipe) -> None:
        self.cells = nn.Linear(net.config.channels[CELL_MAP], sum(CELLS.values()))
        nn.init.zeros_(self.cells.weight)
        nn.init.zeros_(self.cells.bias)
        self.module: nn.Module = nn.ModuleDict({"net": net, "cells": self.cells})
        self.net = net
        self.recipe = recipe
        self.video, self.labels = whole_clips(
            recipe.scenes_from(MOTION_VALIDATION_SCENES, recipe.validation), recipe.frames
        )
        self.orders = [
            torch.stack([arranged(clip, name, Generator().manual_seed(i)) for i, clip in enumerate(self.video)])
            for name in ORDERS
        ]

    def batch(self, step: int) -> MotionBatch:
        return self.recipe.batch(step)

    @staticmethod
    def is_matrix(name: str, parameter: nn.Parameter) -> bool:
        """What Muon trains: the filters of the blocks and reductions."""
        return name.startswith("net.stages.") and parameter.ndim > 1

    def loss(self, batch: MotionBatch, step: int, generator: Generator) -> dict[str, Tensor]:
        maps = self.net.maps(to_unit(batch.video))
        answers = {name: value.float() for name, value in self.net.answers(maps).items()}
        parts = errors(answers, batch.labels)
        total = torch.stack([WEIGHTS[name] * value for name, value in parts.items()]).sum()
        inside = self.cells(maps[CELL_MAP]).float().flatten(0, -2).split(list(CELLS.values()), dim=-1)
        for (name, truth), answer in zip(batch.cells.items(), inside):
            error = parts[f"cell_{name}"] = cross_entropy(answer, truth.flatten())
            total = total + CELL_WEIGHTS[name] * error
        return {"loss": total, **parts}

    def validate(self) -> dict[str, float]:
        """Shares of right answers on the fixed clean clips; of orders, on all four of each clip."""
        return scores(self.net, self.video, self.labels, self.orders)

    def picture(self) -> Tensor | None:
        return None

    def export(self, folder: Path) -> None:
        """Standardise the features by the fixed clean clips, and write the network with its scores."""
        parts = [self.net.embedding(self.net.maps(to_unit(part))).float() for part in self.video.split(32)]
        self.net.standardise_by(torch.cat(parts))
        save_motion_net(self.net, folder)
        write_json(folder / "scores.json", {"clips": len(self.video), **self.validate()})


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
def scores(net: MotionNet, video: Tensor, labels: Labels, orders: Sequence[Tensor]) -> dict[str, float]:
    """How often the network is right: the best answer of motion, shape and colour on clips of one actor (is it that
    actor's), of background and camera on all, of the order on every ordering; and the velocity's mean error in sides
    of the frame per second."""
    parts = [net.answers(net.maps(to_unit(part))) for part in video.split(32)]
    answers = {name: torch.cat([part[name] for part in parts]).float() for name in parts[0]}
    single = labels["motion"].sum(1) == 1
    found = {}
    for name in ("motion", "shape", "colour"):
        best = answers[name][single].argmax(1, keepdim=True)
        found[name] = float(labels[name][single].gather(1, best).mean())
    for name in ("background", "camera", "wall"):
        found[name] = float((answers[name].argmax(1) == labels[name]).float().mean())
    found["two"] = float(((answers["two"] > 0) == (labels["two"] > 0.5)).float().mean())
    for number, (name, videos) in enumerate(zip(ORDERS, orders)):
        told = torch.cat([net.answers(net.maps(to_unit(part)))["order"].argmax(1) for part in videos.split(32)])
        found[f"order_{name}"] = float((told == number).float().mean())
    error = (answers["velocity"] - labels["velocity"])[:, :2].norm(dim=1).mean()
    found["velocity_error"] = float(error) * SPEED
    return found


def motion_features() -> MotionRecipe:
    """The feature network of the pond-motion distances (evaluation), 12 minutes on one free CPU core."""
    return MotionRecipe()
