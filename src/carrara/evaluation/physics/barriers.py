"""Does what a wall stops stay stopped: actors of the pond continued into a wall, read from the pixels.

A model sees the first frames of an actor on its way to a wall that stops it, and continues them. Where the wall stands
and what the empty scene looks like is the simulator's truth (through the autoencoder for clips that come from one, so
that what it does to a wall is not taken for an actor); where the actor is, is read: a pixel is the actor's as far as
its colour lies on the way from the empty scene's to the actor's, and it is in the piece of them nearest to where it
was.
Not standard: passing, reaching and stopping are three verdicts, because a clip that stands still passes through
nothing, and one in which the actor vanishes neither.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from carrara.core.types import Decoder, Encoder, VideoShape
from carrara.data.pond.captions import caption
from carrara.data.pond.render import render
from carrara.data.pond.sampling import Mix, sample_scene
from carrara.data.pond.simulate import simulate
from carrara.data.pond.world import Scene
from carrara.evaluation.physics.continuation import KNOWN, Continues, copy_last
from carrara.evaluation.physics.twins import NEXT
from carrara.evaluation.prompts import HELD_IN_START, HELD_OUT_START, MOST_PROMPTS, check_seed
from carrara.evaluation.sources import reconstruct

Floats = NDArray[np.float64]
Frames = NDArray[np.uint8]

STOPPED = Mix(two=0.0, wall=1.0, camera=0.0, stilts=0.0)
LAST = 4  # frames that remain after the wall is touched
VISIBLE = 24  # sRGB units from the empty scene that are the actor's, not its shadow's rim
FAINT = 0.35  # cover below this is not the actor
CRUMB = 0.25  # of the largest piece, below which another is none
FRONT = 0.97  # share of the actor behind its leading edge
PASSED = 0.2  # of the actor's width beyond where it should stop
NEAR = 0.2  # of its width before that still reaches it
STILL = 0.06  # of its width per frame is standing
SEEN = 0.4  # of its first area
VERDICTS = ("seen", "held", "reaches", "stops", "all")


@dataclass(frozen=True)
class Approach:
    """A scene, the first frame in which the wall is touched, the world units from the first frame to there, and the
    way: 1 right, -1 left."""

    scene: Scene
    contact: int
    travel: float
    heading: int
    seed: int

    @property
    def prompt(self) -> str:
        return caption(self.scene, "medium", self.seed, canonical=True).text


@dataclass(frozen=True)
class Stop:
    """What one clip shows. ahead: per frame, how far the leading edge is beyond where it should stop, in widths of the
    actor; None where it is not seen."""

    verdicts: Mapping[str, bool]
    ahead: tuple[float | None, ...]

    def plain(self) -> dict[str, Any]:
        return {"verdicts": dict(self.verdicts), "ahead": list(self.ahead)}


@dataclass(frozen=True)
class Walls:
    """Per source a `Stop` per scene; shown: the first clips of each source; known: how many frames were given."""

    found: Mapping[str, tuple[Stop, ...]]
    scenes: tuple[Approach, ...]
    shown: Mapping[str, tuple[Frames, ...]] = field(repr=False)
    seed: int
    known: int = KNOWN


def least_frames(known: int = KNOWN) -> int:
    """Of a clip in which an actor can touch its wall late enough, and be seen standing."""
    return known + 1 + LAST + 2


def draw_approach(seed: int, split: str, shape: VideoShape, fps: float, known: int = KNOWN) -> Approach:
    """The first scene from this seed on whose actor touches its wall late enough to be given a beginning of `known`
    frames, and early enough to be seen standing. Raises ValueError for clips too short for both."""
    first = known + 1  # frame that may touch the wall
    if shape.frames < least_frames(known):
        raise ValueError(f"{shape.frames} frames: too few to reach a wall in; give {least_frames(known)} or more")
    aspect = shape.width / shape.height
    for _ in range(400):
        scene = sample_scene(seed, STOPPED, split)
        if scene.wall == "stops":
            truth = simulate(scene, shape.frames, fps, aspect)
            touching = np.flatnonzero(truth.times >= _stopped(truth.events))
            if len(touching) and first <= touching[0] <= shape.frames - LAST:
                way = truth.position[0, -1, 0] - truth.position[0, 0, 0]
                return Approach(scene, int(touching[0]), abs(float(way)), scene.actors[0].direction, seed)
        seed += NEXT
    raise ValueError(f"{shape.frames} frames at {fps:g} fps: no actor reaches a wall in such a clip; make it longer")


def _stopped(events: Any) -> float:
    return min((event.time for event in events if event.name == "stopped"), default=np.inf)


def read_stop(frames: Frames, approach: Approach, empty: Frames, first: Frames) -> Stop:
    """Judge a clip uint8 `t h w 3`.

    empty: the same scene without its actor, `h w 3`; first: its first frame, from which the actor's colour comes.
    """
    height, width = empty.shape[:2]
    plate = empty.astype(np.float64)
    away = np.linalg.norm(first - plate, axis=-1)
    if not (away > VISIBLE).any():  # such as a small actor that an autoencoder has lost
        nowhere = np.full(len(frames), np.nan)
        return Stop(judge(nowhere, approach), tuple(None for _ in nowhere))
    body = away > 0.5 * np.quantile(away[away > VISIBLE], 0.9)
    way = np.median(first[body].astype(np.float64), axis=0) - plate
    x = (np.arange(width) + 0.5 - width / 2) / min(height, width)
    start = cover_of(first[None], plate, way)
    columns = follow(np.concatenate([start, cover_of(frames, plate, way)])).sum(1)
    begin, columns = columns[0], columns[1:]
    seen = columns.sum(1) >= SEEN * begin.sum()
    edges = np.array([edge(column, x, approach.heading) if ok else np.nan for column, ok in zip(columns, seen)])
    gone = (edges - edge(begin, x, approach.heading)) * approach.heading
    ahead = (gone - approach.travel) / (edge(begin, x, 1) - edge(begin, x, -1))
    return Stop(judge(ahead, approach), tuple(None if np.isnan(a) else round(float(a), 4) for a in ahead))


def cover_of(frames: Frames, plate: Floats, way: Floats) -> Floats:
    """How much each pixel `t h w` is the actor's: how far it lies on the way from the plate's colour to the actor's."""
    cover = ((frames - plate) * way).sum(-1) / np.maximum((way**2).sum(-1), 1)
    return np.where(cover < FAINT, 0, np.clip(cover, 0, 1))


def follow(cover: Floats) -> Floats:
    """The cover `t h w` of one thing: in the first frame the largest piece, then the one nearest to where it was."""
    kept = np.zeros_like(cover)
    place = None
    for frame, shown in zip(kept, cover):
        labels, count = ndimage.label(shown > 0, structure=np.ones((3, 3)))
        numbers = np.arange(1, count + 1)
        mass = ndimage.sum_labels(shown, labels, numbers)
        numbers = numbers[mass >= CRUMB * mass.max()] if count else numbers
        if not len(numbers):
            continue
        centres = np.array(ndimage.center_of_mass(shown, labels, numbers))
        away = -mass[numbers - 1] if place is None else np.linalg.norm(centres - place, axis=1)
        chosen = int(np.argmin(away))
        place = centres[chosen]
        frame[:] = np.where(labels == numbers[chosen], shown, 0)
    return kept


def edge(column: Floats, x: Floats, heading: int) -> float:
    """World x behind which FRONT of the weight lies, in the direction of `heading`."""
    order = slice(None, None, heading)
    total = np.cumsum(column[order]) / column.sum()
    return float(np.interp(FRONT, total, x[order]))


def judge(ahead: Floats, approach: Approach) -> dict[str, bool]:
    """Verdicts on the leading edge, in widths beyond where it should stop, per frame; NaN where it is not seen."""
    tail = ahead[-LAST:]
    seen = bool((~np.isnan(tail)).mean() > 0.7 and not np.isnan(ahead[: approach.contact]).all())
    late = ahead[approach.contact - 1 :]
    held = seen and bool(np.nanmax(late) < PASSED)
    reaches = seen and bool(np.nanmax(late) > -NEAR)
    at_end = tail[~np.isnan(tail)]
    stops = held and reaches and len(at_end) > 1 and bool(abs(at_end[-1] - at_end[0]) / (len(at_end) - 1) < STILL)
    return {"seen": seen, "held": held, "reaches": reaches, "stops": stops, "all": seen and held and reaches and stops}


def measure_walls(
    model: Continues | None,
    shape: VideoShape,
    fps: float,
    *,
    clips: int = 20,
    seed: int = 0,
    codec: tuple[Encoder, Decoder] | None = None,
    known: int = KNOWN,
    shown: int = 2,
    progress: Callable[[int, int], None] | None = None,
) -> Walls:
    """Continue `clips` approaches by the model, and read them beside the ceilings and the controls.

    Scenes alternate between the held-in and the held-out split. Controls: "copy last" never gets there, "no wall" goes
    on as if nothing stood in its way. The same arguments give the same result.
    """
    check_seed(seed)
    if not 1 <= clips <= MOST_PROMPTS:
        raise ValueError(f"clips={clips}: must be from 1 to {MOST_PROMPTS}")
    found: dict[str, list[Stop]] = {}
    pictures: dict[str, list[Frames]] = {}
    scenes = []
    for number in range(clips):
        split, start = (("train", HELD_IN_START), ("held_out", HELD_OUT_START))[number % 2]
        approach = draw_approach(start + seed * MOST_PROMPTS + number, split, shape, fps, known)
        scenes.append(approach)
        truth, through, empty = draw_three(approach, shape, fps)
        made = {"truth": truth, "copy last": copy_last(truth[:known], shape.frames), "no wall": through}
        if codec is not None:
            made["reconstruction"] = reconstruct(truth, *codec)
        seen_as = dict.fromkeys(made, (empty, truth[0]))
        if codec is not None:
            through_codec = reconstruct(empty.expand(shape.frames, -1, -1, -1), *codec)[shape.frames // 2]
            seen_as["reconstruction"] = seen_as["model"] = (through_codec, made["reconstruction"][0])
        if model is not None:
            made["model"] = model(truth[:known], shape.frames, approach.prompt, number)
        for name in ("truth", "reconstruction", "model", "copy last", "no wall"):
            if name in made:
                frames = made[name].cpu().numpy()
                plate, first = seen_as.get(name, (empty, truth[0]))
                found.setdefault(name, []).append(read_stop(frames, approach, plate.numpy(), first.numpy()))
                if number < shown:
                    pictures.setdefault(name, []).append(frames)
        if progress:
            progress(number + 1, clips)
    return Walls(
        {k: tuple(v) for k, v in found.items()},
        tuple(scenes),
        {k: tuple(v) for k, v in pictures.items()},
        seed,
        known,
    )


def draw_three(approach: Approach, shape: VideoShape, fps: float) -> tuple[Tensor, Tensor, Tensor]:
    """The clip as it should be, the clip in which the wall stops nothing, both uint8 `t h w 3`, and one empty frame."""
    scene, aspect = approach.scene, shape.width / shape.height
    truth = simulate(scene, shape.frames, fps, aspect)
    through = simulate(replace(scene, wall=None), shape.frames, fps, aspect)
    nowhere = replace(truth, position=np.full_like(truth.position, 9.0))
    video = render([scene] * 3, shape, fps, truths=[truth, through, nowhere]).video
    return video[0], video[1], video[2][0]
