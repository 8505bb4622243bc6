"""Pairs of clips of one scene, of which one breaks one law: what a model that learned the laws should find unlikely.

After LikePhys (Yuan et al. 2025, arXiv 2510.11512), whose pairs come from a 3D renderer; these come from the balls and
from the pond. The twins are drawn by the same code and equal to the bit until the law is broken (for gravity in the
pond, which has to be the same from the beginning, they differ throughout). "none broken" is the control: both clips
are right, so a fair score prefers neither. "vanishes" and "doubles" belong together: emptier clips are easier to undo
noise on, so a score that only counts what there is errs in all of one and in none of the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from carrara.core.config import choose
from carrara.core.types import VideoShape
from carrara.data.phyworld import (
    COLOURS,
    GRAVITY,
    WORLD,
    BallTruth,
    caption,
    draw_balls,
    sample_balls,
    simulate_balls,
)
from carrara.data.pond import captions
from carrara.data.pond.render import render
from carrara.data.pond.sampling import LAYOUTS, Mix, sample_scene
from carrara.data.pond.simulate import simulate
from carrara.data.pond.world import COLOURS as POND_COLOURS
from carrara.data.pond.world import Scene, Truth, contrast

Floats = NDArray[np.float64]

WORLDS = ("balls", "pond")
CONTROL = "none broken"
BALL_LAWS = {  # which kinds of scene can break them
    "teleports": ("uniform", "parabola"),
    "changes speed": ("uniform",),
    "falls upwards": ("parabola",),
    "changes colour": ("uniform", "parabola"),
    "vanishes": ("uniform", "parabola"),
    "doubles": ("uniform", "parabola"),
    "passes through": ("collision",),
    CONTROL: ("uniform", "collision"),
}
POND_LAWS = {  # which motions of one actor can break them
    "teleports": ("left", "right", "orbits", "swims", "spins"),
    "changes speed": ("left", "right", "orbits", "swims"),
    "falls upwards": ("bounces",),
    "changes colour": ("left", "right", "bounces", "orbits", "spins", "swims"),
    "vanishes": ("left", "right", "bounces", "orbits", "spins", "swims"),
    "doubles": ("left", "right", "bounces", "orbits", "spins", "swims"),
    "passes through": ("left", "right"),
    CONTROL: ("left", "right", "bounces", "orbits", "swims"),
}
FASTER, SLOWER = 2.0, 0.4  # factors of a change of speed without a cause
EARLIEST = 6  # frame before which nothing is broken: five may be given
LEAST_FRAMES = EARLIEST + 5  # of a clip in which a law can be broken
NEXT = 2**44  # from one candidate seed to the next; keeps all of them above those that training draws


@dataclass(frozen=True, eq=False)
class Twins:
    """valid, invalid: uint8 `t h w 3`; moment: the first frame in which they differ; prompt: true of the valid one."""

    law: str
    valid: Tensor = field(repr=False)
    invalid: Tensor = field(repr=False)
    moment: int
    prompt: str
    seed: int


def make_twins(world: str, law: str, seed: int, shape: VideoShape, fps: float) -> Twins:
    """Twins of a scene drawn from the seed, a pure function of the arguments.

    Raises ValueError for an unknown world or law and for clips too short to break anything in.
    """
    make = choose("world", world, {"balls": ball_twins, "pond": pond_twins})
    if shape.frames < LEAST_FRAMES:
        raise ValueError(f"{shape.frames} frames: too few to break a law in; give at least {LEAST_FRAMES}")
    return make(law, seed, shape, fps)


# --- balls ---------------------------------------------------------------------------------------------------------


def ball_twins(law: str, seed: int, shape: VideoShape, fps: float) -> Twins:
    """Twins of a scene with balls, of the distribution that training draws from."""
    kinds = choose("law", law, BALL_LAWS)
    rng = np.random.default_rng((seed, sorted(BALL_LAWS).index(law)))
    kind = kinds[int(rng.integers(len(kinds)))]
    scene, drawn = sample_balls(seed, kind), seed
    while kind == "collision" and scene.contact * fps > shape.frames - 4:  # a short clip may end before
        drawn += NEXT
        scene = sample_balls(drawn, kind)
    truth = simulate_balls(scene, shape.frames, fps)
    last = int(np.flatnonzero(np.all(truth.inside, axis=0))[-1])
    moment = int(rng.integers(EARLIEST, max(EARLIEST, last - 4) + 1))
    colours = None
    if law == "passes through":
        broken = simulate_balls(scene, shape.frames, fps, through=True)
    elif law == CONTROL:  # the world upside down is as likely: balls start as often above as below the middle
        broken = replace(truth, position=truth.position * [1, -1] + [0, WORLD], velocity=truth.velocity * [1, -1])
    else:
        broken = replace(truth, position=break_ball(law, truth, moment, rng))
    if law == "doubles":
        copied = break_ball("teleports", truth, moment, rng)
        copied[:, :moment] = np.nan
        broken = replace(truth, radius=truth.radius.repeat(2), position=np.concatenate([truth.position, copied]))
        colours = np.broadcast_to(np.array(COLOURS, float)[:1, None], (2, shape.frames, 3))
    if law == "changes colour":
        colours = np.repeat(np.array(COLOURS, float)[:1, None], shape.frames, axis=1)
        colours[:, moment:] = COLOURS[1]
    valid = draw_balls([truth], shape.height, shape.width)[0][0]
    invalid = draw_balls([broken], shape.height, shape.width, colours)[0][0]
    return _twins(law, valid, invalid, caption(scene), seed)


def break_ball(law: str, truth: BallTruth, moment: int, rng: np.random.Generator) -> Floats:
    """Positions `a t 2` that break a law from frame `moment` on."""
    position = truth.position.copy()
    later = position[:, moment:]
    clock = (truth.times[moment:] - truth.times[moment - 1])[:, None]
    if law == "vanishes":
        later[:] = np.nan
    elif law == "changes speed":
        before = position[:, moment - 1 : moment]
        later[:] = before + (FASTER if rng.random() < 0.5 else SLOWER) * (later - before)
    elif law == "falls upwards":
        later[:] = position[:, moment - 1 : moment] + truth.velocity[:, moment - 1 : moment] * clock
        later[..., 1] += GRAVITY * clock[:, 0] ** 2 / 2
    elif law == "teleports":
        y, radius = position[0, moment, 1], truth.radius[0]
        way, room = (1, WORLD - radius - y) if y < WORLD / 2 else (-1, y - radius)
        later[..., 1] += way * rng.uniform(max(2.0, 2 * radius + 0.2), max(min(4.0, room), 2 * radius + 0.2))
    return position


# --- the pond ------------------------------------------------------------------------------------------------------


def pond_twins(law: str, seed: int, shape: VideoShape, fps: float) -> Twins:
    """Twins of a scene with one actor and a still camera."""
    motions = choose("law", law, POND_LAWS)
    rng = np.random.default_rng((seed, sorted(POND_LAWS).index(law)))
    scene = _scene(seed, "stops" if law == "passes through" else None, motions)
    aspect = shape.width / shape.height
    truth = simulate(scene, shape.frames, fps, aspect)
    moment = int(rng.integers(EARLIEST, shape.frames - 4))
    other, broken = scene, truth
    if law == "passes through":
        broken = simulate(replace(scene, wall=None), shape.frames, fps, aspect)
    elif law == CONTROL:
        other = replace(scene, layout=(scene.layout + 1 + int(rng.integers(LAYOUTS - 1))) % LAYOUTS)
    elif law == "changes colour":
        own = scene.actors[0].colour
        visible = [name for name in POND_COLOURS if name != own and contrast(name, scene.background) > 30]
        other = scene.with_actor(0, colour=visible[int(rng.integers(len(visible)))])
    elif law == "doubles":
        copied = break_actor("teleports", truth, moment, rng)
        copied.position[0, :moment] = 9.0
        other = replace(scene, actors=scene.actors * 2)
        broken = side_by_side(truth, copied)
    elif law == "changes speed":
        broken = at_pace(scene, truth, moment, fps, aspect, FASTER if rng.random() < 0.5 else SLOWER)
    else:
        broken = break_actor(law, truth, moment, rng)
    valid = render([scene], shape, fps, truths=[truth]).video[0]
    invalid = render([other], shape, fps, truths=[broken]).video[0]
    if law == "changes colour":
        invalid = torch.cat([valid[:moment], invalid[moment:]])
    return _twins(law, valid, invalid, captions.caption(scene, "medium", seed, canonical=True).text, seed)


def break_actor(law: str, truth: Truth, moment: int, rng: np.random.Generator) -> Truth:
    """The truth with its first actor elsewhere from frame `moment` on; for gravity, throughout."""
    position = truth.position.copy()
    if law == "vanishes":
        position[0, moment:] = 9.0
    elif law == "falls upwards":
        y = position[0, :, 1]
        position[0, :, 1] = y.min() + y.max() - y
    elif law == "teleports":
        x = position[0, moment:, 0].mean()
        position[0, moment:, 0] += (1 if x < 0 else -1) * rng.uniform(0.25, 0.4)
    return replace(truth, position=position)


def side_by_side(first: Truth, second: Truth) -> Truth:
    """The truths of two actors of one clip as one."""
    names = [axis.name for axis in fields(Truth) if axis.name not in ("times", "camera", "events")]
    both: dict[str, Any] = {name: np.concatenate([getattr(first, name), getattr(second, name)]) for name in names}
    return replace(first, **both)


def at_pace(scene: Scene, truth: Truth, moment: int, fps: float, aspect: float, factor: float) -> Truth:
    """The truth whose clock runs `factor` times as fast from frame `moment` on; slower where it would leave."""
    since = np.arange(len(truth.times) - moment + 1)[1:]
    start = scene.start + (moment - 1) / fps
    steps = 10  # moments in a frame: both factors land on one
    fine = simulate(replace(scene, start=start), int(since[-1] * FASTER * steps) + 1, fps * steps, aspect)
    later = np.rint(since * factor * steps).astype(int)
    if fine.visible[0, later].min() < 0.7 and factor > 1:
        return at_pace(scene, truth, moment, fps, aspect, SLOWER)
    changes = {}
    for axis in fields(Truth):
        value = getattr(truth, axis.name)
        if axis.name in ("times", "events"):
            continue
        time = 0 if axis.name == "camera" else 1
        spliced = np.moveaxis(value.copy(), time, 0)
        spliced[moment:] = np.moveaxis(getattr(fine, axis.name), time, 0)[later]
        changes[axis.name] = np.moveaxis(spliced, 0, time)
    return replace(truth, **changes)


def _scene(seed: int, wall: str | None, motions: Sequence[str]) -> Scene:
    """The first scene from this seed on, in steps of NEXT, that has the wall and one of the motions."""
    mix = Mix(two=0.0, wall=1.0 if wall else 0.0, camera=0.0, stilts=0.0)
    while True:
        scene = sample_scene(seed, mix)
        if scene.wall == wall and scene.actors[0].motion in motions:
            return scene
        seed += NEXT


def _twins(law: str, valid: Tensor, invalid: Tensor, prompt: str, seed: int) -> Twins:
    differ = (valid != invalid).flatten(1).any(1).nonzero()
    if not len(differ):
        raise RuntimeError(f"twins of law {law!r} and seed {seed} do not differ")
    return Twins(law, valid, invalid, int(differ[0]), prompt, seed)
