"""Clips as a model that melts outlines would make them, beside what they should have been: what a refiner learns from.

A latent model that has seen little puts actors where they belong and draws of each a mixture of all that it could have
been. The pond can render any scene with other actors in it, so such clips are made here without a model: every actor
is a patchwork of two renders of its scene, in which it is, as a rule, something else; the patches differ from frame to
frame; now and then something stands there that nobody asked for; and all of it is bent, blurred and tinted a little.
What a clip should have been is known up to what its caption leaves open: which way a bird faces that goes up, where its
wings are, at which angle something begins to spin. So the truth comes in several ways.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from einops import rearrange, repeat
from torch import Generator, Tensor
from torch.nn.functional import avg_pool2d, grid_sample, interpolate, pad

from carrara.core.types import VideoShape
from carrara.data.pond.render import Rendered, render
from carrara.data.pond.sampling import SINGLES, sample_scene
from carrara.data.pond.simulate import simulate
from carrara.data.pond.world import ACTORS, COLOURS, Actor, Scene

WAYS = 4
FACING = ("up", "down", "grows", "shrinks")  # motions that do not say which way an actor faces
BEATING = ("up", "down", "left", "right")  # motions whose phase is that of limbs alone
FREE = ("spins", *BEATING)  # motions whose phase says nothing of where an actor is
SIDED, WINGED = ("bird", "fish", "car", "frog"), ("bird", "fish")
PATCHES, BENDS, TINTS = 7, 11, 9  # control points a side of the smooth random fields
LASTING = 1.2  # deviation of what of the patches stays through a clip, beside 1 for what does not
EVEN = 0.7  # deviation of which of the two renders a frame has more of


@dataclass(frozen=True)
class Melting:
    """How far clips are from what they should have been.

    hint: how often an actor of one of the two renders is what it should be; recoloured: how often it has any colour;
    ghosts: how often a scene of one actor has a second one; doubled: how often what has a left and a right side is
    melted of itself and its mirror image instead, which gives it two heads;
    bend: the largest deviation of bending, in pixels of a frame of 64; tint, grain: the largest deviations, of a clip,
    of what is added to pixels in [-1, 1].
    """

    hint: float = 0.25
    recoloured: float = 0.1
    ghosts: float = 0.1
    doubled: float = 0.4
    bend: float = 2.2
    tint: float = 0.08
    grain: float = 0.04

    def __post_init__(self) -> None:
        for name in ("hint", "recoloured", "ghosts", "doubled"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)}: a probability lies between 0 and 1")
        for name in ("bend", "tint", "grain"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least 0")


@dataclass(frozen=True)
class Melted:
    """video: the true clips in `WAYS` ways, of which the first is the scene's own, uint8 `b k t h w 3`; actors: uint8
    `b k t h w`, nonzero where one shows; melted: the clips melted, uint8 `b t h w 3`; touched: bool `b t h w`, where an
    actor shows in the scene or in what it was melted of."""

    video: Tensor
    actors: Tensor
    melted: Tensor
    touched: Tensor


def melt(
    scenes: Sequence[Scene],
    shape: VideoShape,
    fps: float,
    melting: Melting,
    seed: int,
    device: torch.device | str = "cpu",
    phases: bool = True,
) -> Melted:
    """Render scenes, true and melted; a function of its arguments. Every frame melts anew, but not wholly.

    phases: whether ways of the truth differ in the phase of what turns or beats, too; without, scenes are `settled`.
    """
    rng, generator = random.Random(seed), Generator().manual_seed(seed)
    truth = in_all_ways(scenes, shape, fps, device, phases)
    haunted = [_haunted(scene, melting, rng) for scene in scenes]
    others = ([_other(scene, melting, rng, not phases) for scene in haunted] for _ in range(2))
    first, second = (render(these, shape, fps, device) for these in others)
    sided = [row for row, scene in enumerate(scenes) if any(actor.kind in SIDED for actor in scene.actors)]
    if doubled := [row for row in sided if rng.random() < melting.doubled]:
        mirrored = _mirrored([scenes[row] for row in doubled], shape, fps, device)
        first.video[doubled], first.mask[doubled] = (part[doubled, 0] for part in truth)
        second.video[doubled], second.mask[doubled] = mirrored.video, mirrored.mask
    clips, frames, sides = len(scenes), shape.frames, (shape.height, shape.width)

    def field(count: int, channels: int, points: int) -> Tensor:
        drawn = torch.randn(count, channels, points, points, generator=generator).to(device)
        return interpolate(drawn, sides, mode="bicubic", align_corners=False)

    def each(count: int) -> Tensor:
        return torch.rand(count, 1, 1, 1, generator=generator).to(device)

    n = clips * frames
    patches = field(n, 1, PATCHES) + EVEN * torch.randn(n, 1, 1, 1, generator=generator).to(device)
    if frames > 1:
        patches = patches + LASTING * repeat(field(clips, 1, PATCHES), "b c h w -> (b t) c h w", t=frames)
    melted = torch.where(patches > 0, _flat(first.video), _flat(second.video))
    melted = _bent(melted, field(n, 2, BENDS) * (2 * melting.bend / 64 * each(n)))
    blurred = avg_pool2d(pad(melted, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    tint, grain = (repeat(each(clips), "b c h w -> (b t) c h w", t=frames) for _ in range(2))
    melted = torch.lerp(melted, blurred, each(n)) + melting.tint * tint * field(n, 3, TINTS)
    melted = melted + melting.grain * grain * torch.randn(melted.shape, generator=generator).to(device)
    levels = melted.add(1).mul_(127.5).round_().clamp_(0, 255).to(torch.uint8)
    touched = (truth[1][:, 0] > 0) | (first.mask > 0) | (second.mask > 0)
    return Melted(*truth, rearrange(levels, "(b t) c h w -> b t h w c", t=frames).contiguous(), touched)


def settled(scene: Scene, said: str) -> Scene:
    """The scene in the one way, of those that a caption leaves open, in which what turns or beats by itself does so as
    the number of a frame says: from the same angle, at the same pace and, where nothing is said, to the same side."""

    def turning(actor: Actor) -> Actor:
        if actor.motion == "spins":
            return replace(actor, phase=0.0, speed=1.0, heading=actor.heading if "clockwise" in said else 1)
        return replace(actor, phase=0.0) if actor.motion in BEATING and actor.kind in WINGED else actor

    return replace(scene, actors=tuple(turning(actor) for actor in scene.actors))


def otherwise(scene: Scene, way: int, phases: bool = True) -> Scene:
    """The scene as its caption would let it be too, in one of `WAYS` ways; 0 is the scene itself."""

    def turned(actor: Actor) -> Actor:
        heading, phase = actor.heading, actor.phase
        if actor.motion in FACING and actor.kind in SIDED:
            heading *= -1 if way % 2 else 1
        if not phases:
            return replace(actor, heading=heading)
        if actor.motion == "spins":
            phase += way * 2 * math.pi / WAYS
        elif actor.motion in BEATING and actor.kind in WINGED:
            phase += way // 2 * math.pi
        return replace(actor, heading=heading, phase=phase)

    return replace(scene, actors=tuple(turned(actor) for actor in scene.actors))


def in_all_ways(
    scenes: Sequence[Scene], shape: VideoShape, fps: float, device: torch.device | str, phases: bool = True
) -> tuple[Tensor, Tensor]:
    """The scenes in all ways, each rendered once: video `b k t h w 3` and actors `b k t h w`."""
    ways = [[otherwise(scene, way, phases) for way in range(WAYS)] for scene in scenes]
    distinct = list(dict.fromkeys(scene for row in ways for scene in row))
    rendered = render(distinct, shape, fps, device)
    number = {scene: index for index, scene in enumerate(distinct)}
    rows = torch.tensor([[number[scene] for scene in row] for row in ways], device=rendered.video.device)
    return rendered.video[rows], rendered.mask[rows]


def _mirrored(scenes: Sequence[Scene], shape: VideoShape, fps: float, device: torch.device | str) -> Rendered:
    """The scenes with actors that go the same ways and face the other one."""
    truths = [simulate(scene, shape.frames, fps, shape.width / shape.height) for scene in scenes]
    turned = [replace(truth, heading=-truth.heading) for truth in truths]
    return render(scenes, shape, fps, device, turned)


def _haunted(scene: Scene, melting: Melting, rng: random.Random) -> Scene:
    """The scene, perhaps with an actor of another one behind its own."""
    number, draw = rng.getrandbits(40), rng.random()
    if len(scene.actors) > 1 or draw >= melting.ghosts:
        return scene
    return replace(scene, actors=(sample_scene(number, SINGLES).actors[0], *scene.actors))


def _other(scene: Scene, melting: Melting, rng: random.Random, turned: bool) -> Scene:
    """The scene with other actors in the same places, most of them in the same colours, and turned to any angle where
    those of the scene are all at the same one, so that no angle is to be read of what is melted."""
    actors = []
    for actor in scene.actors:
        kind = actor.kind if rng.random() < melting.hint else rng.choice(ACTORS)
        colour = rng.choice(list(COLOURS)) if rng.random() < melting.recoloured else actor.colour
        phase = rng.uniform(0, 2 * math.pi) if turned and actor.motion in FREE else actor.phase
        stilts = actor.stilts and kind == actor.kind
        actors.append(replace(actor, kind=kind, colour=colour, stilts=stilts, phase=phase))
    return replace(scene, actors=tuple(actors))


def _flat(video: Tensor) -> Tensor:
    """uint8 `b t h w 3` to float `(b t) 3 h w` in [-1, 1]."""
    return rearrange(video, "b t h w c -> (b t) c h w").float().div_(127.5).sub_(1)


def _bent(frames: Tensor, shift: Tensor) -> Tensor:
    """Frames `n c h w` read at places that are shifted by `n 2 h w`, in halves of a side, across and down."""
    _, _, height, width = frames.shape
    rows = torch.arange(height, device=frames.device).add(0.5).mul(2 / height).sub(1)
    columns = torch.arange(width, device=frames.device).add(0.5).mul(2 / width).sub(1)
    there = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), dim=-1)
    places = there + rearrange(shift, "n two h w -> n h w two")
    return grid_sample(frames, places, mode="bilinear", padding_mode="border", align_corners=False)
