"""Reading a clip: what can be seen in it, from its pixels alone, with no network and no learned judge.

In order: what stands still (`stage`), where the actors are (`masks`, `segments`), which shape and how large
(`views`, `silhouettes`, `against`, `painted`), in what colour (`colours`), doing what (`tracks`). What cannot be read
is None. Not standard in evaluation: because the pond's world is known, every reading is a measurement against the
pond's own painters, shapes and motions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from carrara.core.media import read_video
from carrara.data.pond.shapes import SHAPES
from carrara.data.pond.world import SIZES
from carrara.evaluation.reading.against import templates_against
from carrara.evaluation.reading.colours import name_colour
from carrara.evaluation.reading.masks import Sights
from carrara.evaluation.reading.segments import find_actors
from carrara.evaluation.reading.silhouettes import Templates, match, poses_of, templates
from carrara.evaluation.reading.stage import Stage, read_stage
from carrara.evaluation.reading.tracks import Floats, Track, polar, read_motion, turning
from carrara.evaluation.reading.views import Views, best_shape, filled, look

ALIKE = 0.6  # soft intersection over union with the best silhouette, below which a mask is no known shape
RINGED = 0.5  # the same for what is hollow: a thin ring of few pixels fits badly, but nothing else has such a hole
HOLLOW = 0.7  # of a round actor's middle that is its own, below which it is a ring (the pond's balls at 64: 0.99)
BETWEEN = math.sqrt(SIZES["small"] * SIZES["large"]) / 2  # radius that parts small from large
PIECE, AT_IT = 0.37, 1.4  # of an actor's area, below which, and radii from its middle, within which a piece of it lies
LARGEST = 1.6 * SIZES["large"] / 2  # radius of an actor that is too large to be either (one that does not grow)


@dataclass(frozen=True)
class ActorReading:
    """What one actor is seen to be; None where it cannot be told.

    track: where its centre is, world units (origin mid-frame, y down, the camera taken out), and its radius, per frame;
    area: how much of it is seen per frame, square world units, NaN where nothing is; scores: how well the silhouette
    fits ("kind", intersection over union), how many of its pixels have the colour ("colour"), in how many frames it is
    seen ("seen"); shapes: how well the silhouette of each shape fits.
    """

    kind: str | None
    colour: str | None
    size: str | None
    motion: str | None
    stilts: bool | None
    track: Track
    area: Floats = field(default_factory=lambda: np.zeros(0))
    scores: dict[str, float] = field(default_factory=dict)
    shapes: dict[str, float] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class Reading:
    """What a clip shows. count: how many actors, None if it is no scene at all; actors: at most the first two."""

    background: str | None
    camera: str
    count: int | None
    actors: tuple[ActorReading, ...]

    def plain(self) -> dict[str, Any]:
        """As JSON values, without the tracks."""
        names = ("kind", "colour", "size", "motion", "stilts")
        actors = [
            {name: getattr(actor, name) for name in names}
            | {"scores": {k: round(v, 4) for k, v in actor.scores.items()}}
            for actor in self.actors
        ]
        return {"background": self.background, "camera": self.camera, "count": self.count, "actors": actors}


def read_file(path: str | Path) -> Reading:
    """Read a written video file. Raises ValueError for a file that cannot be read."""
    frames, fps, _ = read_video(path)
    return read_clip(frames.numpy(), fps)


def read_clip(frames: NDArray[np.uint8] | Any, fps: float) -> Reading:
    """Read frames uint8 `t h w 3` (numpy or torch) at `fps`. Deterministic. Raises ValueError for another shape."""
    frames = np.ascontiguousarray(frames)
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or not fps > 0:
        raise ValueError(f"frames {frames.dtype} {frames.shape} at {fps} fps: expected uint8 t h w 3 and fps above 0")
    if min(frames.shape[1:3]) < 32:
        raise ValueError(f"{frames.shape[2]}x{frames.shape[1]}: too small to read; 32 pixels a side at least")
    stage = read_stage(frames, fps)
    count, tracks = find_actors(stage)
    times = np.arange(len(frames)) / fps
    actors = [read_actor(stage, sights, times) for sights in tracks]
    if count == 2:
        # What does not move and has no actor's shape or size is a piece of scenery, unless it is all there is.
        actors = [a for a in actors if a.motion or a.size] or actors
        actors = [a for a in actors if not any(is_piece(a, other) for other in actors if other is not a)]
        count = len(actors)
    return Reading(stage.background, stage.camera, count, tuple(actors))


def is_piece(one: ActorReading, other: ActorReading) -> bool:
    """Whether what has no shape of its own is a piece of another, as a frog's foot is: small, and always at it."""
    both = np.isfinite(one.area) & np.isfinite(other.area)
    if one.kind or not other.kind or not both.any():
        return False
    apart = np.hypot(one.track.x - other.track.x, one.track.y - other.track.y)
    radius = float(np.nanmedian(other.track.radius))
    apart = apart[np.isfinite(apart)]
    small = np.median(one.area[both]) < PIECE * np.median(other.area[both])
    return bool(small and len(apart) and np.quantile(apart, 0.8) < AT_IT * radius)


def read_actor(stage: Stage, sights: Sights, times: Floats) -> ActorReading:
    """One actor from its masks over the frames."""
    nowhere = np.full(len(times), np.nan)
    if not any(sights):
        return ActorReading(
            None, None, None, None, None, Track(times, nowhere, nowhere, nowhere), nowhere, {"seen": 0.0}
        )
    views, share = look(sights)
    colour = name_colour(share)
    spin = read_turning(stage, views)
    known, own = (templates(), None) if colour is None else templates_against(colour, views.behind)
    fit = match(views.masks, views.plains, known, own, spins=math.isfinite(spin) and spin != 0)
    names = known.names
    weight = np.where(views.whole, views.areas, 0)  # larger is clearer
    support = {name: float(np.average(fit[:, names == name].max(axis=1), weights=weight)) for name in SHAPES}
    name = best_shape(support, views, known, fit, weight, colour)
    hollow = name in ("ball", "ring") and filled(views.masks, weight) < HOLLOW
    if hollow:
        name = "ring"  # the hole of a small ball-like thing is blurred, but nothing else has one
    poses = poses_of(name, known, fit)
    track, motion = read_track(stage, views, known, poses, times, spin)
    fits = support[name] >= (RINGED if hollow else ALIKE)
    area = nowhere.copy()
    area[views.seen] = views.areas / stage.unit**2
    return ActorReading(
        kind=name.split()[0] if fits else None,
        colour=colour,
        size=read_size(track.radius, motion) if fits else None,
        motion=motion,
        stilts="stilts" in name if fits else None,
        track=track,
        area=area,
        scores={"kind": support[name], "colour": float(share.max()), "seen": len(views.seen) / len(times)},
        shapes=support,
    )


def read_track(
    stage: Stage, views: Views, known: Templates, poses: NDArray[np.int64], times: Floats, spin: float
) -> tuple[Track, str | None]:
    """Where an actor is, frame by frame, given the one `m` of `known` that fits each; and what it does.

    First from the frames that show it whole; if that tells no motion, then also from what is seen of it in part.
    """
    radius = np.sqrt(views.areas / known.areas[poses]) / stage.unit
    centre = (views.places - np.array(stage.origin)) / stage.unit
    exact = centre - known.centres[poses] * radius[:, None]
    columns = np.full((3, len(times)), np.nan)
    good = views.seen[views.whole]
    columns[:2, good], columns[2, good] = exact[views.whole].T, radius[views.whole]
    track = Track(times, columns[0], columns[1], columns[2], spin)  # views: they fill in below
    motion = read_motion(track)
    if motion is None and not views.whole.all():
        part = views.seen[~views.whole]
        columns[:2, part], columns[2, part] = centre[~views.whole].T, np.median(radius[views.whole])
        motion = read_motion(track)
    return track, motion


def read_size(radius: Floats, motion: str | None) -> str | None:
    """Small or large by the middle radius, or for what grows or shrinks by the smallest one."""
    sizes = np.sort(radius[np.isfinite(radius)])
    if not len(sizes):
        return None
    value = float(np.median(sizes[: max(3, len(sizes) // 5)]) if motion in ("grows", "shrinks") else np.median(sizes))
    if not 0.5 * SIZES["small"] / 2 < value < LARGEST:
        return None
    return "small" if value < BETWEEN else "large"


def read_turning(stage: Stage, views: Views) -> float:
    """How an actor that stays in its place turns, radians per frame; NaN for one that travels."""
    places = views.places[views.whole]  # what hides part of it moves the middle of the rest
    if float(np.ptp(places, axis=0).max()) > 0.12 * stage.unit:
        return math.nan
    column, row = np.median(places, axis=0) - 0.5
    pixels = 1.2 * math.sqrt(float(np.median(views.areas)) / math.pi)
    apart = np.clip(np.linalg.norm(stage.lab - stage.plate, axis=-1, keepdims=True) / 20, 0, 1)
    picture = np.concatenate([stage.lab, apart], axis=-1)
    return turning([polar(picture[t], row, column, pixels) for t in views.seen])
