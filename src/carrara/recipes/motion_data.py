"""What the feature network learns from: rendered clips in several views, and the simulator's truth as labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Generator, Tensor

from carrara.core.types import VideoShape
from carrara.data.pond.render import render
from carrara.data.pond.world import ACTORS, BACKGROUNDS, CAMERAS, COLOURS, MOTIONS, WALLS, Actor, Scene, Truth
from carrara.evaluation.distribution.corruptions import blurred, frozen, noisy, reversed_, shuffled
from carrara.evaluation.distribution.motion_net import LEAST_FRAMES, ORDERS, RATE, SIDE, resize

CELL = 8  # pixels across a cell
CELLS = {"shape": 1 + len(ACTORS), "colour": 1 + len(COLOURS), "facing": 3}  # what a cell is asked, and the answers
SIDED = ("bird", "fish", "car")  # look otherwise from the left than from the right
MOST_ACTORS = 2
SHARE = 0.25  # of a cell that an actor must cover to be what is there
SPEED = 0.25  # sides of the frame per second that the velocity head calls 1: about the pond's own pace
MOST_NOISE, MOST_BLUR = 0.15, 0.03  # deviation as a share of the range; sigma as a share of the side
ORDER_SHARES = (0.5, 0.1, 0.15, 0.25)  # of ORDERS, in training
DAMAGED = 0.25  # share of views with noise, and of views with blur

Labels = Mapping[str, Tensor]


@dataclass(frozen=True)
class MotionBatch:
    """Views and what is true of them. video: uint8 `b t 64 64 3`; labels: `b ...` by head; "moves" and "goes": bool
    `b`, whether motion and camera, and whether velocity mean anything there. cells: by CELLS, int64 `b t 8 8`, what
    covers a cell: 0 for no actor, else 1 + the index of its shape or colour; facing: 1 right, 2 left, 0 no telling."""

    video: Tensor
    labels: Labels
    cells: Labels


def views(scenes: Sequence[Scene], frames: int, side: int, count: int, generator: Generator) -> MotionBatch:
    """So many views of each scene: a stretch of its clip, equally long in all, arranged and damaged at random."""
    videos, masks, truths = rendered(scenes, frames, side)
    whole = float(torch.rand((), generator=generator)) < 0.5
    length = frames if whole else _integer(LEAST_FRAMES, frames, generator)
    clips, labels, inside = [], [], []
    for scene, truth, video, mask in zip(scenes, truths, videos, masks):
        seen = torch.cat([video, numbered(truth, mask)[..., None]], dim=-1)
        for _ in range(count):
            start = _integer(0, frames - length, generator)
            order = int(torch.multinomial(torch.tensor(ORDER_SHARES), 1, generator=generator))
            noise, blur = (
                float(torch.rand((), generator=generator)) * most * (float(chosen) < DAMAGED)
                for most, chosen in zip((MOST_NOISE, MOST_BLUR), torch.rand(2, generator=generator))
            )
            stretch = arranged(seen[start : start + length], ORDERS[order], generator)
            clips.append(damaged(stretch[..., :3], noise, blur, generator))
            labels.append(label(scene, truth, start, length, order, noise, blur))
            inside.append(cells(scene, stretch[..., 3]))
    return MotionBatch(torch.stack(clips), stack(labels), stack(inside))


def whole_clips(scenes: Sequence[Scene], frames: int) -> tuple[Tensor, Labels]:
    """Clean clips `n t 64 64 3` with their labels."""
    videos, labels = [], []
    for at in range(0, len(scenes), 32):
        part = scenes[at : at + 32]
        video, _, truths = rendered(part, frames, SIDE)
        videos.append(video)
        labels += [label(scene, truth, 0, frames, 0, 0.0, 0.0) for scene, truth in zip(part, truths)]
    return torch.cat(videos), stack(labels)


def rendered(scenes: Sequence[Scene], frames: int, side: int) -> tuple[Tensor, Tensor, tuple[Truth, ...]]:
    """Clips uint8 `b t 64 64 3`, rendered at this side, with masks `b t 64 64` of the actors, and truths."""
    made = render(scenes, VideoShape(frames, side, side), RATE)
    if side == SIDE:
        return made.video, made.mask, made.truths
    step = side // SIDE
    return torch.stack([resize(clip) for clip in made.video]), made.mask[:, :, ::step, ::step], made.truths


def arranged(clip: Tensor, order: str, generator: Generator) -> Tensor:
    """A clip in one of ORDERS."""
    arrange = {"frozen": frozen, "shuffled": shuffled, "reversed": reversed_}.get(order)
    return arrange(clip, generator) if arrange else clip


def damaged(clip: Tensor, noise: float, blur: float, generator: Generator) -> Tensor:
    """A clip blurred, then noisy."""
    clip = blurred(blur)(clip, generator) if blur else clip
    return noisy(noise)(clip, generator) if noise else clip


def numbered(truth: Truth, mask: Tensor) -> Tensor:
    """A mask of actors `t h w` that also says where they face: 1 and 2 as before, 3 and 4 for those facing left."""
    left = torch.from_numpy(truth.heading < 0)
    faces = torch.cat([torch.zeros_like(left[:1]), left])  # by the mask's number and frame
    return mask + MOST_ACTORS * faces[mask.long(), torch.arange(len(mask))[:, None, None]].to(mask.dtype)


def cells(scene: Scene, mask: Tensor) -> dict[str, Tensor]:
    """What covers most of each cell, `t 8 8` for each of CELLS, from a mask `t 64 64` as `numbered` gives it."""
    tiles = rearrange(mask, "t (h p) (w q) -> t h w (p q)", p=CELL, q=CELL)
    covered = torch.stack([(tiles == number).float().mean(-1) for number in range(1, 2 * MOST_ACTORS + 1)])
    share, which = covered.max(0)
    number = torch.where(share >= SHARE, 1 + which, 0)
    shown = [(actor, turned) for turned in (0, 1) for actor in padded(scene.actors)]
    tables = {
        "shape": [1 + ACTORS.index(actor.kind) for actor, _ in shown],
        "colour": [1 + tuple(COLOURS).index(actor.colour) for actor, _ in shown],
        "facing": [1 + turned if actor.kind in SIDED else 0 for actor, turned in shown],
    }
    return {name: torch.tensor([0, *table])[number] for name, table in tables.items()}


def padded(actors: Sequence[Actor]) -> Sequence[Actor]:
    """As many as a scene can have; those that it has not got cover no cell."""
    return [*actors, *actors][:MOST_ACTORS]


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


def _many(names: Sequence[str], present: Sequence[str]) -> Tensor:
    return torch.tensor([float(name in present) for name in names])


def stack(labels: Sequence[Labels]) -> Labels:
    return {name: torch.stack([each[name] for each in labels]) for name in labels[0]}


def _integer(low: int, high: int, generator: Generator) -> int:
    return int(torch.randint(low, high + 1, (), generator=generator))
