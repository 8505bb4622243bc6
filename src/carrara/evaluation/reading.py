"""Reading a clip: what can be seen in it, from its pixels alone, with no network and no learned judge.

In order: what stands still (`stage`), where the actors are (`segments`), which shape and how large (`silhouettes`), in
what colour (`colours`), doing what (`tracks`). What cannot be read is None. Not standard in evaluation: because the
pond's world is known, every reading is a measurement against the pond's own painters, shapes and motions.
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
from carrara.evaluation.colours import name_colour
from carrara.evaluation.segments import Sights, find_actors
from carrara.evaluation.silhouettes import match, normalise, plainness, templates
from carrara.evaluation.stage import Stage, read_stage
from carrara.evaluation.tracks import Floats, Track, polar, read_motion, turning

ALIKE = 0.6  # soft intersection over union with the best silhouette, below which a mask is no known shape
BETWEEN = math.sqrt(SIZES["small"] * SIZES["large"]) / 2  # radius that parts small from large
LARGEST = 1.6 * SIZES["large"] / 2  # radius of an actor that is too large to be either (one that does not grow)


@dataclass(frozen=True)
class ActorReading:
    """What one actor is seen to be; None where it cannot be told.

    track: where its centre is, world units (origin mid-frame, y down, the camera taken out), and its radius, per frame;
    scores: how well the silhouette fits ("kind", intersection over union), how many of its pixels have the colour
    ("colour"), in how many frames it is seen ("seen").
    """

    kind: str | None
    colour: str | None
    size: str | None
    motion: str | None
    stilts: bool | None
    track: Track
    scores: dict[str, float] = field(default_factory=dict)


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
    if (
        count == 2
    ):  # what does not move and has no actor's shape or size is a piece of scenery, unless it is all there is
        actors = [a for a in actors if a.motion or a.size] or actors
        count = len(actors)
    return Reading(stage.background, stage.camera, count, tuple(actors))


def read_actor(stage: Stage, sights: Sights, times: Floats) -> ActorReading:
    """One actor from its masks over the frames."""
    seen = [t for t, s in enumerate(sights) if s is not None]
    clean = [t for t in seen if sights[t].whole]  # type: ignore[union-attr]
    if len(clean) < 3:  # nearly always cut off: better judged in part than not at all
        clean = seen
    share = np.median([sights[t].share for t in clean], axis=0) if clean else np.zeros(10)  # type: ignore[union-attr]
    colour = name_colour(share)
    x, y, radius = (np.full(len(times), np.nan) for _ in range(3))
    if not seen:
        return ActorReading(None, None, None, None, None, Track(times, x, y, radius), {"seen": 0.0})
    known = templates()
    masks, plains, areas, places = [], [], [], []
    for t in seen:
        s = sights[t]
        assert s is not None
        own = s.alpha * plainness(s.lab, colour) if colour else s.alpha
        mask, inner, area, (column, row) = normalise(s.alpha, own)
        masks.append(mask)
        plains.append(inner)
        areas.append(area)
        places.append((column + s.corner[1] + 0.5, row + s.corner[0] + 0.5))
    fit = match(np.stack(masks), np.stack(plains), colour)
    votes = np.array([number for number, t in enumerate(seen) if t in clean])
    support = {name: float(np.mean(fit[votes][:, known.names == name].max(axis=1))) for name in SHAPES}
    name = max(support, key=lambda option: support[option])
    best = np.where(known.names == name, fit, -1).argmax(axis=1)
    for number, t in enumerate(seen):
        pose = best[number]
        radius[t] = math.sqrt(areas[number] / known.areas[pose]) / stage.unit
        if t in clean:
            offset = known.centres[pose] * radius[t]
            x[t] = (places[number][0] - stage.origin[0]) / stage.unit - offset[0]
            y[t] = (places[number][1] - stage.origin[1]) / stage.unit - offset[1]
        else:
            radius[t] = np.nan
    spin = read_turning(stage, seen, places, float(np.nanmedian(radius)))
    track = Track(times, x, y, radius, spin)
    motion = read_motion(track)
    if motion is None and len(clean) < len(seen):  # what is seen of it in part, too
        for number, t in enumerate(seen):
            if t not in clean:
                x[t] = (places[number][0] - stage.origin[0]) / stage.unit
                y[t] = (places[number][1] - stage.origin[1]) / stage.unit
                radius[t] = np.nanmedian(radius)
        motion = read_motion(track)
    known_kind = support[name] >= ALIKE
    scores = {"kind": support[name], "colour": float(share.max()), "seen": len(seen) / len(times)}
    return ActorReading(
        kind=name.split()[0] if known_kind else None,
        colour=colour,
        size=read_size(radius, motion) if known_kind else None,
        motion=motion,
        stilts="stilts" in name if known_kind else None,
        track=track,
        scores=scores,
    )


def read_size(radius: Floats, motion: str | None) -> str | None:
    """Small or large by the middle radius, or for what grows or shrinks by the smallest one."""
    sizes = np.sort(radius[np.isfinite(radius)])
    if not len(sizes):
        return None
    value = float(np.median(sizes[: max(3, len(sizes) // 5)]) if motion in ("grows", "shrinks") else np.median(sizes))
    if not 0.5 * SIZES["small"] / 2 < value < LARGEST:
        return None
    return "small" if value < BETWEEN else "large"


def read_turning(stage: Stage, seen: list[int], places: list[tuple[float, float]], radius: float) -> float:
    """How an actor that stays in its place turns; NaN for one that travels."""
    at = np.array(places)
    if float(np.ptp(at, axis=0).max()) > 0.12 * stage.unit or not math.isfinite(radius):
        return math.nan
    column, row = np.median(at, axis=0) - 0.5
    pixels = radius * stage.unit
    apart = np.clip(np.linalg.norm(stage.lab - stage.plate, axis=-1, keepdims=True) / 20, 0, 1)
    picture = np.concatenate([stage.lab, apart], axis=-1)
    return turning([polar(picture[t], row, column, pixels) for t in seen])
