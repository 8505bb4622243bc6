"""Scenes in which an actor is hidden for a known number of frames, and twins of them in which permanence is broken.

A square frame of 17 leaves room for what is small: an actor a fifth of the frame wide that must be seen whole on both
sides of a wall can be wholly hidden for no more than about five frames. The twins are put together from renders with
the simulator's truth, so what is wrong in each, and from which frame on, is known exactly.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from carrara.core.types import VideoShape
from carrara.data.pond.motions import PACE, rest_height
from carrara.data.pond.render import render
from carrara.data.pond.sampling import LAYOUTS
from carrara.data.pond.shapes import outline
from carrara.data.pond.simulate import HIDDEN, simulate
from carrara.data.pond.validity import is_held_out, table_reason
from carrara.data.pond.world import ACTORS, BACKGROUNDS, COLOURS, WALL_TOP, Actor, Scene

LENGTHS = (1.0, 2.0, 3.0, 4.0, 5.0)  # frames wholly hidden
WHOLE = 1.8  # frames for which an actor is whole before and after the wall, at least
EDGE = 0.485  # of the frame's half, inside which an actor stays
LATE = 3  # frames by which a twin is too late
MOVED = 0.8  # extents by which a twin is misplaced, at least
OUTSIDE = 9.0  # world units: nowhere in sight

Frames = NDArray[np.uint8]


@dataclass(frozen=True)
class Crossed:
    """A scene whose actor is wholly behind its wall for `occlusion` frames."""

    scene: Scene
    occlusion: float


def crossing_scene(seed: int, occlusion: float, split: str = "train", frames: int = 17, fps: float = 8.0) -> Crossed:
    """Draw a scene with one small actor that goes behind a wall and comes out. occlusion: frames wholly hidden.

    The same arguments give the same scene. Raises ValueError for an occlusion that leaves no room for the rest.
    """
    rng = random.Random(seed)
    longest = longest_occlusion(frames)
    if not 0 <= occlusion <= longest:
        raise ValueError(f"occlusion={occlusion}: must be from 0 to {longest:.1f} in a clip of {frames} frames")
    while True:
        kind, motion = rng.choice(ACTORS), rng.choice(("left", "right"))
        actor = Actor(kind, rng.choice(tuple(COLOURS)), "small", motion)
        wide = actor.radius * outline(kind).half_width
        step = 2 * (EDGE - wide) / (frames - 1)
        # whole, vanishing, hidden, appearing, whole: all of it takes frames - 1 steps at most
        if 2 * WHOLE + 4 * wide / step + occlusion > frames - 1:
            continue
        slowest = 4 * wide / (frames - 1 - 2 * WHOLE - occlusion)
        step = rng.uniform(slowest, step)
        width = 2 * wide + occlusion * step + 2e-4  # places are rounded
        ground = rest_height(actor)
        y = ground if kind == "car" or rng.random() < 0.5 else rng.uniform(highest(actor), ground)
        start = min(EDGE - wide, step * (frames - 1) / 2 + rng.uniform(-0.3, 0.3) * step)
        actor = replace(actor, x=round(-actor.direction * start, 4), y=y, speed=step * fps / PACE)
        scene = Scene(
            background=rng.choice(tuple(BACKGROUNDS)),
            actors=(actor,),
            wall="hides",
            wall_width=width,
            layout=rng.randrange(LAYOUTS),
        )
        if table_reason(scene) is None and is_held_out(scene) == (split != "train"):
            return Crossed(scene, occlusion)


def longest_occlusion(frames: int) -> float:
    """Frames for which a small ball can be wholly hidden, in a clip of so many."""
    wide = Actor("ball", "red").radius * outline("ball").half_width
    return max(0.0, (frames - 1) * (1 - 2 * wide / (EDGE - wide)) - 2 * WHOLE)


# --- twins in which permanence is broken ---------------------------------------------------------------------------

# What is wrong in each twin -> the verdict that must say so.
TWINS: Mapping[str, str] = {
    "stays hidden": "emerges",
    "another colour": "same colour",
    "another shape": "same shape",
    "another place": "in place",
    "too late": "in time",
    "vanishes": "nothing comes or goes",
    "appears": "nothing comes or goes",
}


def nobody(scene: Scene) -> Scene:
    """The same scene with its actor out of sight."""
    return scene.with_actor(0, motion="spins", x=OUTSIDE)


def splice(before: Frames, after: Frames, frame: int) -> Frames:
    """The first `frame` frames of one clip and the rest of another, `t h w 3`."""
    return np.concatenate([before[:frame], after[frame:]])


def crossing_twins(crossed: Crossed, seed: int, shape: VideoShape, fps: float = 8.0) -> dict[str, Frames]:
    """A crossing as it is ("truth") and wrong in one way each, uint8 `t h w 3`. seed: chooses what is shown instead.

    Raises ValueError for a crossing whose actor no frame hides wholly: there nothing can be exchanged unseen.
    """
    scene = crossed.scene
    hidden = np.flatnonzero(simulate(scene, shape.frames, fps, shape.width / shape.height).visible[0] <= HIDDEN)
    if not len(hidden):
        raise ValueError("no frame hides the actor wholly; choose an occlusion of one frame or more")
    rng = random.Random(seed)
    others = {
        "another colour": scene.with_actor(0, colour=other_colour(scene, rng)),
        "another shape": scene.with_actor(0, kind=other_kind(scene, rng)),
        "another place": scene.with_actor(0, y=other_height(scene, rng)),
    }
    right, empty, *drawn = render([scene, nobody(scene), *others.values()], shape, fps).video.numpy()
    cut = int(hidden[len(hidden) // 2])
    found = {"truth": right, "stays hidden": splice(right, empty, cut)}
    found |= {name: splice(right, clip, cut) for name, clip in zip(others, drawn)}
    late = np.concatenate([right[:cut], np.repeat(empty[:1], LATE, axis=0), right[cut:]])
    return found | {"too late": late[: shape.frames]}


def open_twins(scene: Scene, seed: int, shape: VideoShape, fps: float = 8.0) -> dict[str, Frames]:
    """A scene of one actor as it is ("truth"), and with the actor gone after, or not there before, some frame."""
    right, empty = render([scene, nobody(scene)], shape, fps).video.numpy()
    cut = random.Random(seed).randint(shape.frames // 4, 3 * shape.frames // 4)
    return {"truth": right, "vanishes": splice(right, empty, cut), "appears": splice(empty, right, cut)}


def other_colour(scene: Scene, rng: random.Random) -> str:
    """Another colour that can be seen on this background."""
    here = scene.actors[0].colour
    seen = [name for name in COLOURS if name != here and table_reason(scene.with_actor(0, colour=name)) is None]
    return rng.choice(seen)


def other_kind(scene: Scene, rng: random.Random) -> str:
    """Another shape that is hardly wider, so that it is as well hidden."""
    here = scene.actors[0].kind
    return rng.choice([k for k in ACTORS if k != here and outline(k).half_width < outline(here).half_width + 0.08])


def other_height(scene: Scene, rng: random.Random) -> float:
    """A height clearly above or below the path."""
    actor = scene.actors[0]
    low, high = highest(actor), rest_height(actor)
    free = [y for y in np.linspace(low, high, 21).tolist() if abs(y - actor.y) >= MOVED * 2 * actor.radius]
    return rng.choice(free)


def highest(actor: Actor) -> float:
    """The y at which an actor is just below a wall's upper edge."""
    return WALL_TOP + actor.radius * outline(actor.kind).reach[1] + 0.04
