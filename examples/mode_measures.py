"""What is measured of a clip that was made from something given: is what was given there, and does the rest go with it?

Everything is read from the frames by the evaluation suite: shape, colour and motion by `evaluation/reading`, flicker
and motion by `evaluation/consistency`. Not standard: a border between given and made frames is measured as flicker of
the four frames around it, so a seam counts as one only if it is more than the flicker inside.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from carrara.data.pond.simulate import simulate
from carrara.data.pond.world import Scene
from carrara.evaluation.consistency.measures import CannotMeasure, Clip, dynamic, flicker
from carrara.evaluation.reading.clip import ActorReading, read_actor
from carrara.evaluation.reading.segments import Sights, find_actors
from carrara.evaluation.reading.stage import read_stage

UNIFORM = ("left", "right", "up", "down")
LOOKS = 15  # frames from which on a motion is read
NAMES = ("told", "made", "colour", "shape", "motion", "velocity", "moves", "whole", "flicker", "seam")
SHARES = ("colour", "shape", "motion", "moves", "whole")

Measured = dict[str, float | None]


@dataclass(frozen=True, eq=False)
class Task:
    """What is to come out of a mode.

    scene: what the prompt says; truth: the clip as it truly goes, uint8 `t h w 3`, None where nothing says it; told:
    frames that are given and should be there, or, with a hole, those whose pixels outside it should; made: frames to
    make; hole: bool `t h w`, what is painted; seams: frames before which
    a border lies; loop: whether frame 0 comes after the last.
    """

    scene: Scene
    fps: float
    made: range
    truth: Tensor | None = None
    told: tuple[int, ...] = ()
    hole: Tensor | None = None
    seams: tuple[int, ...] = ()
    loop: bool = False

    @property
    def rate(self) -> float:
        """Frames per second of what is made, of which there may be every second or fourth."""
        return self.fps / self.made.step


def measure(task: Task, frames: Tensor) -> Measured:
    """All of NAMES of an answer `t h w 3`; None where a measure says nothing about it.

    told, made: PSNR in dB to the truth, infinite where equal; velocity: of a uniform motion, |v - true v| / |true v|,
    1 where no actor is seen; whole: share of the frames that show the actor uncut; flicker, seam: levels of 255.
    """
    part = frames[task.made.start : task.made.stop : task.made.step]
    found = dict.fromkeys(NAMES, None) | look(task, part)
    if task.truth is not None:
        found["told"] = _told(task, frames)
        truth = task.truth[task.made.start : task.made.stop : task.made.step]
        mask = None if task.hole is None else task.hole[task.made.start : task.made.stop : task.made.step]
        found["made"] = psnr(part, truth, mask)
    around = frames.roll(len(frames) // 2, 0) if task.loop else frames
    borders = (len(frames) // 2,) if task.loop else task.seams
    clip = Clip.of(part.numpy(), task.rate)  # its flow is computed once for both
    found["flicker"] = _of(flicker, clip)
    if len(part) > 1:
        found["moves"] = float(_of(dynamic, clip) or 0)
    each = (_of(flicker, Clip.of(around[border - 2 : border + 2].numpy(), task.fps)) for border in borders)
    edges = [edge for edge in each if edge is not None]
    found["seam"] = float(np.mean(edges)) if edges else None
    return found


def psnr(frames: Tensor, truth: Tensor, where: Tensor | None = None) -> float:
    """Of uint8 `t h w 3`, in dB over all pixels, or those where the mask `t h w` says."""
    error = (frames.double() - truth.double()).square()
    mean = float(error.mean() if where is None else error[where].mean())
    return math.inf if mean == 0 else 10 * math.log10(255**2 / mean)


def look(task: Task, part: Tensor) -> Measured:
    """What is seen of the actor in these frames."""
    stage = read_stage(part.numpy(), task.rate)
    tracks: Sequence[Sights] = find_actors(stage)[1]
    times = np.arange(len(part)) / task.rate
    seen = [(read_actor(stage, sights, times), sights) for sights in tracks]
    wanted = task.scene.actors[0]
    actor, sights = max(seen, key=lambda one: _alike(one[0], task.scene), default=(None, ()))
    shown = [sight for sight in sights if sight is not None]
    found: Measured = {
        "colour": float(actor is not None and actor.colour == wanted.colour),
        "shape": float(actor is not None and actor.kind == wanted.kind),
        "whole": float(np.mean([sight.whole for sight in shown])) if shown else 0.0,
    }
    if len(part) >= LOOKS:
        found["motion"] = float(actor is not None and actor.motion == wanted.motion)
    if wanted.motion in UNIFORM and task.told and task.hole is None and len(part) > 1:
        found["velocity"] = velocity_error(task, actor)
    return found


def velocity_error(task: Task, actor: ActorReading | None) -> float:
    """How far the actor's mean velocity is from the true one, relative to it; 1 where it is not seen twice."""
    truth = simulate(task.scene, task.made.stop, task.fps).position[0][task.made.start :: task.made.step]
    times = np.arange(len(truth)) / task.rate
    right = np.array([np.polyfit(times, truth[:, axis], 1)[0] for axis in range(2)])
    if actor is None:
        return 1.0
    at = np.isfinite(actor.track.x)
    if at.sum() < 2:
        return 1.0
    found = np.array([np.polyfit(times[at], places[at], 1)[0] for places in (actor.track.x, actor.track.y)])
    return float(np.linalg.norm(found - right) / np.linalg.norm(right))


def _alike(actor: ActorReading, scene: Scene) -> int:
    wanted = scene.actors[0]
    return 2 * (actor.kind == wanted.kind) + 2 * (actor.colour == wanted.colour) + (actor.motion == wanted.motion)


def _told(task: Task, frames: Tensor) -> float | None:
    if not task.told or task.truth is None:
        return None
    places = list(task.told)
    where = None if task.hole is None else ~task.hole[places]
    return psnr(frames[places], task.truth[places], where)


def _of(function: Callable[[Clip], float], clip: Clip) -> float | None:
    try:
        return function(clip)
    except CannotMeasure:
        return None
