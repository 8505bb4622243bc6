"""Does a model continue motion as mechanics would: velocity errors of balls, beside the published ones.

The measure of PhyWorld (Kang et al. 2024, arXiv 2411.02385): a model sees the first frames of a clip of
`carrara.data.phyworld` and continues it; balls are found by their colour, velocities are differences of their
centroids, and the error is the mean absolute difference from the true velocity, in world units per second, over the
generated frames in which every ball is truly inside, the step of the impact left out.

Not as there:
- as many known frames as causal latents allow: the published 3 where a latent frame stands for at most 2, but 5 where
  it stands for 4 (`known_frames`);
- a centroid weighs pixels by how far a ball covers them, so that 64 pixels read as finely as their 256 do by a
  threshold. Theirs is `weighing="threshold"`; with it the truth at 256 pixels reads 0.0104, 0.0112, 0.020 here and
  0.0099, 0.0117, 0.0210 there (uniform, collision, parabola), so the scenes and the score agree;
- a ball that cannot be seen is held where it was last seen, and `found` says how often balls are seen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from carrara.core.types import Decoder, Encoder, VideoShape
from carrara.data.phyworld import (
    FPS,
    FRAMES,
    KINDS,
    SPLITS,
    WORLD,
    BallScene,
    BallTruth,
    caption,
    draw_balls,
    render_balls,
    sample_balls,
)
from carrara.evaluation.prompts import HELD_IN_START, HELD_OUT_START, MOST_PROMPTS, check_seed
from carrara.evaluation.sources import reconstruct

Floats = NDArray[np.float64]
Frames = NDArray[np.uint8]

KNOWN = 3  # of the published measure
FAINT = 0.1  # coverage below this is noise
SEEN = 0.25  # a ball is seen where this share of its area is


class Continues(Protocol):
    """Makes a whole clip from its beginning.

    known: uint8 `t h w 3`; frames: how many the clip has in all; prompt: what it shows, "" for nothing; seed: of its
    noise. Returns uint8 `frames h w 3`, of which the first are the known ones or what the model makes of them.
    """

    def __call__(self, known: Tensor, frames: int, prompt: str = "", seed: int = 0) -> Tensor: ...


def known_frames(stride: int) -> int:
    """The fewest frames from KNOWN on that a causal autoencoder of this stride in time encodes alone: 1 + stride * k.

    3 for strides 1 and 2, 5 for 4.
    """
    if stride < 1:
        raise ValueError(f"stride={stride}: a latent frame stands for at least 1 frame")
    return 1 + stride * -(-(KNOWN - 1) // stride)


# --- reading -------------------------------------------------------------------------------------------------------


def read_balls(frames: Frames, radii: Sequence[float] | Floats, weighing: str = "coverage") -> Floats:
    """Centroids `a t 2` in world units, y up, of balls on white in the order of COLOURS; NaN where one is not seen.

    frames: uint8 `t h w 3`. On white, with a red ball of coverage r and a blue one of coverage b, a pixel is
    (1 - b, 1 - r - b, 1 - r): so red minus green is r and blue minus green is b, whatever they cover together.
    """
    if weighing not in ("coverage", "threshold"):
        raise ValueError(f"weighing={weighing!r}: must be coverage or threshold")
    red, green, blue = (frames[..., channel].astype(np.float32) for channel in range(3))
    height, width = frames.shape[1:3]
    unit = min(height, width) / WORLD
    x = (np.arange(width, dtype=np.float32) + 0.5 - width / 2) / unit + WORLD / 2
    y = WORLD / 2 - (np.arange(height, dtype=np.float32) + 0.5 - height / 2) / unit
    tracks = []
    for radius, own, other in zip(radii, (red, blue), (blue, red)):
        if weighing == "coverage":
            cover = np.clip(own - green, 0, None) / 255
            weight = np.where(cover < FAINT, 0, cover)
        else:
            weight = ((own > 127) & (green < 127) & (other < 127)).astype(np.float32)
        area, track = _centroids(weight, x, y)
        seen = area >= SEEN * np.pi * (radius * unit) ** 2
        if weighing == "coverage":  # again with the faintest of the rim, but nothing far away
            reach = 1.2 * np.sqrt(area / np.pi) / unit + 1.5 / unit
            near = (x - track[:, :1])[:, None] ** 2 + (y - track[:, 1:])[..., None] ** 2 < reach[:, None, None] ** 2
            track = _centroids(cover * near, x, y)[1]
        tracks.append(np.where(seen[:, None], track, np.nan))
    return np.stack(tracks)


def _centroids(weight: NDArray[np.float32], x: NDArray[np.float32], y: NDArray[np.float32]) -> tuple[Floats, Floats]:
    """The sums `t` of weights `t h w` and their centroids `t 2`."""
    across, down = weight.sum(1, dtype=np.float64), weight.sum(2, dtype=np.float64)
    area = across.sum(1)
    return area, np.stack([across @ x, down @ y], axis=-1) / np.maximum(area, 1e-9)[:, None]


def held(track: Floats) -> Floats:
    """`a t 2` with every gap filled by what was last seen before it, the beginning by what is first seen after."""
    filled = track.copy()
    for ball in filled:
        seen = np.flatnonzero(~np.isnan(ball[:, 0]))
        if not len(seen):
            ball[:] = WORLD / 2
            continue
        last = np.searchsorted(seen, np.arange(len(ball)), side="right") - 1
        ball[:] = ball[seen[np.maximum(last, 0)]]
    return filled


@dataclass(frozen=True)
class Motion:
    """What was read of one continued clip.

    velocity: mean absolute error, world units per second, None where fewer than two frames can be scored; threshold:
    the same by the published reading; position: mean distance from the true centre, world units; found: the share of
    scored frames and balls that are seen; curve: the mean distance per frame, None where a ball is not inside.
    """

    velocity: float | None
    threshold: float | None
    position: float | None
    found: float | None
    curve: tuple[float | None, ...]

    def plain(self) -> dict[str, Any]:
        names = ("velocity", "threshold", "position", "found")
        return {name: None if (v := getattr(self, name)) is None else round(v, 6) for name in names}


def read_motion(frames: Frames, scene: BallScene, truth: BallTruth, known: int = KNOWN) -> Motion:
    """Score a clip uint8 `t h w 3` of this scene against its truth. Raises ValueError for another number of frames."""
    if len(frames) != len(truth.times):
        raise ValueError(f"{len(frames)} frames; the truth has {len(truth.times)}")
    seen = read_balls(frames, truth.radius)
    away = np.linalg.norm(held(seen) - truth.position, axis=-1).mean(0)
    inside: NDArray[np.bool_] = np.all(truth.inside, axis=0)
    scored: NDArray[np.bool_] = np.logical_and(inside, np.arange(len(truth.times)) >= known)
    if not scored.any():
        return Motion(None, None, None, None, tuple(None for _ in inside))
    return Motion(
        velocity_error(held(seen), scene, truth, scored),
        velocity_error(held(read_balls(frames, truth.radius, "threshold")), scene, truth, scored),
        float(away[scored].mean()),
        float((~np.isnan(seen[:, scored, 0])).mean()),
        tuple(round(float(a), 6) if ok else None for a, ok in zip(away, inside)),
    )


def velocity_error(track: Floats, scene: BallScene, truth: BallTruth, scored: NDArray[np.bool_]) -> float | None:
    """Mean absolute error of velocity over neighbouring scored frames and balls, world units per second.

    Along x for level motion, the length of the difference for a parabola: so the published floors of the truth are met.
    """
    pairs = scored[1:] & scored[:-1]
    pairs &= ~((truth.times[:-1] < truth.contact) & (truth.times[1:] >= truth.contact))
    if not pairs.any():
        return None
    step = np.diff(truth.times)[:, None]
    wrong = ((np.diff(track, axis=1) - np.diff(truth.position, axis=1)) / step)[:, pairs]
    error = np.linalg.norm(wrong, axis=-1) if scene.kind == "parabola" else np.abs(wrong[..., 0])
    return float(error.mean())


# --- what stands beside a model ------------------------------------------------------------------------------------


def copy_last(known: Tensor, frames: int, prompt: str = "", seed: int = 0) -> Tensor:
    """The control without motion: the last known frame for all that follow."""
    return torch.cat([known, known[-1:].expand(frames - len(known), -1, -1, -1)])


def constant_velocity(known: Tensor, frames: int, prompt: str = "", seed: int = 0) -> Tensor:
    """The control without law: balls as seen in the known frames move on as they did, through each other and all.

    A straight line is fitted to each ball's centroids; it is drawn with the radius that its area gives.
    """
    pixels = known.numpy()
    height, width = pixels.shape[1:3]
    unit = min(height, width) / WORLD
    tracks = read_balls(pixels, (0.2, 0.2))
    times = np.arange(len(known))
    positions, radii = [], []
    for number, track in enumerate(tracks):
        seen = ~np.isnan(track[:, 0])
        if seen.sum() < 2:
            positions.append(np.full((frames, 2), np.nan))
            radii.append(1.0)
            continue
        line = np.polyfit(times[seen], track[seen], 1)
        positions.append(np.outer(np.arange(frames), line[0]) + line[1])
        own = pixels[seen][..., 2 * number].astype(np.float64) - pixels[seen][..., 1]
        cover = np.clip(own, 0, None).sum((1, 2)) / 255
        radii.append(float(np.sqrt(cover.max() / np.pi) / unit))
    moved = BallTruth(np.arange(frames) / FPS, np.array(radii), np.stack(positions), np.zeros((2, frames, 2)))
    return torch.cat([known, draw_balls([moved], height, width)[0][0, len(known) :]])


@dataclass(frozen=True)
class Physics:
    """Everything that was measured: per (source, kind, split) a `Motion` per clip, the scenes, and one clip of each.

    shown: (source, kind, split) -> frames uint8 `t h w 3` of the first clip. known: how many frames were given.
    """

    found: Mapping[tuple[str, str, str], tuple[Motion, ...]]
    scenes: Mapping[tuple[str, str], tuple[BallScene, ...]]
    shown: Mapping[tuple[str, str, str], Frames] = field(repr=False)
    clips: int
    seed: int
    shape: VideoShape
    known: int

    @property
    def sources(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(source for source, _, _ in self.found))


def measure_physics(
    model: Continues | None,
    shape: VideoShape,
    *,
    clips: int = 50,
    seed: int = 0,
    codec: tuple[Encoder, Decoder] | None = None,
    kinds: Sequence[str] = KINDS,
    known: int = KNOWN,
    progress: Callable[[int, int], None] | None = None,
) -> Physics:
    """Continue `clips` scenes of each kind and split by the model, the ceilings and the controls, and read them all.

    shape: of the model's clips; `VideoShape(33, 64, 64)` is PhyWorld's length. Scenes come from seeds that training
    never draws. The same arguments give the same result. Raises ValueError before anything is rendered.
    """
    if not 1 <= clips <= MOST_PROMPTS:
        raise ValueError(f"clips={clips}: must be from 1 to {MOST_PROMPTS}")
    check_seed(seed)
    if not 2 <= known < shape.frames - 1 or shape.frames > FRAMES:
        raise ValueError(
            f"known={known} of {shape.frames} frames: give at least 2 and leave 2, of at most {FRAMES} frames"
        )
    makers: dict[str, Continues] = {"copy last": copy_last, "constant velocity": constant_velocity}
    if model is not None:
        makers = {"model": model, **makers}
    found: dict[tuple[str, str, str], list[Motion]] = {}
    shown: dict[tuple[str, str, str], Frames] = {}
    scenes: dict[tuple[str, str], list[BallScene]] = {}
    done = 0
    for kind in kinds:
        for split, start in zip(SPLITS, (HELD_IN_START, HELD_OUT_START)):
            for number in range(clips):
                scene = sample_balls(start + seed * MOST_PROMPTS + number, kind, split)
                scenes.setdefault((kind, split), []).append(scene)
                rendered = render_balls([scene], shape)
                video, truth = rendered.video[0], rendered.truths[0]
                made = {"truth": video}
                if codec is not None:
                    made["reconstruction"] = reconstruct(video, *codec)
                for name, make in makers.items():
                    made[name] = make(video[:known], shape.frames, caption(scene), number)
                for name, clip in made.items():
                    key = (name, kind, split)
                    found.setdefault(key, []).append(read_motion(clip.cpu().numpy(), scene, truth, known))
                    shown.setdefault(key, clip.cpu().numpy())
                done += 1
                if progress:
                    progress(done, len(kinds) * len(SPLITS) * clips)
    return Physics(
        {key: tuple(motions) for key, motions in found.items()},
        {key: tuple(drawn) for key, drawn in scenes.items()},
        shown,
        clips,
        seed,
        shape,
        known,
    )
