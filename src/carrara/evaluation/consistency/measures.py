"""Temporal consistency of any clip: how much moves, how evenly, and whether what moves and what stands stay themselves.

Measures in the sense of VBench (Huang et al. 2023, arXiv 2311.17982) without its networks: optical flow by block
matching (`flow.py`) stands for RAFT and AMT, colours along tracks stand for the features of DINO and CLIP. So the
numbers are not VBench's and must not be compared with them. What is not standard: a clip in which nothing moves has no
flicker, smoothness, subject or background at all (None with a reason, and `dynamic` says why) instead of a perfect
score, because else the best video model is one that repeats its first frame; and all scores but flicker are relative to
the clip's own contrast or change, because else the next best is one that moves slowly or has no colours.

Limits, of all: frames are compared at a shorter side of 64 pixels, so finer detail is not seen. A cut counts as an
inconsistency. Motion of more than about a fifth of the shorter side per step, transparency, mist and repeating texture
defeat the flow. Flicker and smoothness are measured between neighbouring frames, so they depend on the frame rate and
are compared between clips of one rate only; the others are measured about 8 times a second at any rate above that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from math import ceil, isfinite
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from numpy.typing import NDArray
from torch import Tensor

from carrara.core.media import as_array
from carrara.evaluation.consistency.camera import camera_flow, moving_pixels
from carrara.evaluation.consistency.flow import optical_flow, warp
from carrara.evaluation.consistency.following import Tracks, changes, follow
from carrara.evaluation.consistency.halfway import halfway

SIDE, LONGEST, SHORTEST = 64, 256, 16  # pixels: the shorter side as measured, the most of the longer, the least of all
MOST_FRAMES = 128  # of a longer clip, the middle ones are measured
RATE = 8.0  # steps per second of all but flicker and smoothness, as VBench samples clips
SPAN = 2.0  # seconds over which a track is followed
FAST = 6 / 256 * RATE  # shorter sides per second: VBench's threshold of 6 pixels at 256, 8 times a second
TOP = 0.05  # of the pixels, the fastest, are what moves
CHANGE, CHANGED = 10.0, 0.002  # in a clip that moves, this share of the pixels changes by these levels per step
LEAST_CONTRAST = 1.0  # levels
CHANGES = ("to_origin", "to_previous", "elsewhere")  # see `following.Changes`
MEASURES = ("speed", "dynamic", "flicker", "smoothness", "subject", "background")


@dataclass(frozen=True)
class Consistency:
    """What was measured of a clip; None where it cannot be, and `reasons` says why.

    speed: shorter sides per second; dynamic: whether it moves in VBench's sense; flicker: levels of 255, 0 is best;
    smoothness, subject, background: 1 is best. frames: of the clip; measured: how many of them were looked at.
    """

    frames: int
    measured: int
    fps: float
    speed: float | None = None
    dynamic: bool | None = None
    flicker: float | None = None
    smoothness: float | None = None
    subject: float | None = None
    background: float | None = None
    reasons: Mapping[str, str] = field(default_factory=dict)

    def plain(self) -> dict[str, Any]:
        """As JSON values."""
        values = {name: getattr(self, name) for name in MEASURES}
        rounded = {name: round(value, 6) if type(value) is float else value for name, value in values.items()}
        counts = {"frames": self.frames, "measured": self.measured, "fps": self.fps}
        return counts | rounded | {"reasons": dict(self.reasons)}


class CannotMeasure(Exception):
    """Why a measure does not exist for a clip."""


@torch.no_grad()
def measure(frames: Tensor | NDArray[np.uint8], fps: float) -> Consistency:
    """Measure a clip, uint8 `t h w 3` of any size and length at `fps` frames per second.

    Raises ValueError only for what is no clip. The formulas are with the functions of the measures' names.
    """
    array = as_array(frames)
    if not (isfinite(fps) and fps > 0) or not array.size:
        raise ValueError(f"{array.shape[0]} frames of {array.shape[1:3]} at fps={fps}: expected pixels and fps above 0")
    clip = Clip.of(array, float(fps))
    values: dict[str, Any] = {}
    reasons: dict[str, str] = {}
    for name, function in FUNCTIONS.items():
        try:
            values[name] = function(clip)
        except CannotMeasure as reason:
            reasons[name] = str(reason)
    return Consistency(len(array), len(clip.frames), float(fps), **values, reasons=reasons)


@dataclass(frozen=True, eq=False)
class Clip:
    """A clip as it is measured, and what several measures need of it. frames: float `t c h w` in 0..255, small."""

    frames: Tensor
    fps: float

    @classmethod
    def of(cls, frames: NDArray[np.uint8], fps: float) -> Clip:
        return cls(shrink(middle(frames)), fps)

    def check(self, least: int) -> None:
        """Refuse what is too short or too small. Raises CannotMeasure."""
        height, width = self.frames.shape[-2:]
        if min(height, width) < SHORTEST:
            raise CannotMeasure(f"the picture is too small or too narrow: {SHORTEST} pixels a side at least")
        if len(self.frames) < least:
            raise CannotMeasure(f"needs {least} frames, the clip has {len(self.frames)}")

    def check_motion(self, least: int) -> None:
        """Refuse, besides, what does not move. Raises CannotMeasure."""
        self.check(least)
        steps = self.steps
        changed = ((steps[1:] - steps[:-1]).abs().amax(1) > CHANGE).float().mean()
        if changed < CHANGED:
            raise CannotMeasure("nothing moves")

    @property
    def stride(self) -> int:
        return max(1, min(round(self.fps / RATE), len(self.frames) - 1))

    @property
    def seconds(self) -> float:
        """Of a step."""
        return self.stride / self.fps

    @property
    def steps(self) -> Tensor:
        return self.frames[:: self.stride]

    @cached_property
    def ahead(self) -> Tensor:
        """Flow from every frame to the next."""
        return optical_flow(self.frames[:-1], self.frames[1:])

    @cached_property
    def behind(self) -> Tensor:
        """Flow from every frame but the first to the one before."""
        return optical_flow(self.frames[1:], self.frames[:-1])

    @cached_property
    def forth(self) -> Tensor:
        """Flow of every step."""
        return self.ahead if self.stride == 1 else optical_flow(self.steps[:-1], self.steps[1:])

    @cached_property
    def back(self) -> Tensor:
        """Flow of every step, backwards."""
        return self.behind if self.stride == 1 else optical_flow(self.steps[1:], self.steps[:-1])

    @cached_property
    def moving(self) -> Tensor:
        """What moves otherwise than the camera makes it, bool `n h w`, of the first frame of every step."""
        first, second = self.steps[:-1], self.steps[1:]
        return moving_pixels(first, second, self.forth, camera_flow(self.forth, first))

    def tracks(self, still: bool) -> list[Tracks]:
        """Of points in what moves, or in all else."""
        return follow(self.forth, self.back, self.moving, max(1, round(SPAN / self.seconds)), still)


def middle(frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The frames of a clip that are measured."""
    start = max(0, len(frames) - MOST_FRAMES) // 2
    return frames[start : start + MOST_FRAMES]


def shrink(frames: NDArray[np.uint8]) -> Tensor:
    """uint8 `t h w 3` to float `t 3 h w`, averaged down to a shorter side of `SIDE`; smaller ones as they are."""
    height, width = frames.shape[1:3]
    scale = min(1.0, SIDE / min(height, width), LONGEST / max(height, width))
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    parts = []
    for start in range(0, len(frames), 16):  # few at a time: as floats they are four times as large
        part = rearrange(torch.from_numpy(np.ascontiguousarray(frames[start : start + 16])), "t h w c -> t c h w")
        parts.append(F.interpolate(part.float(), size, mode="area") if scale < 1 else part.float())
    return torch.cat(parts)


def speeds(clip: Clip) -> Tensor:
    """Of every step, the mean length of the fastest 5% of the flow, in shorter sides per second."""
    clip.check(2)
    lengths = clip.forth.square().sum(1).sqrt().flatten(1)
    fastest = lengths.topk(ceil(TOP * lengths.shape[1]), 1).values.mean(1)
    return fastest / min(clip.frames.shape[-2:]) / clip.seconds


def speed(clip: Clip) -> float:
    """How fast what moves moves: mean over the steps of `speeds`. The camera's motion counts, as in VBench.

    Limits: a thing smaller than 5% of the picture seems slower than it is.
    """
    return speeds(clip).mean().item()


def dynamic(clip: Clip) -> bool:
    """VBench's dynamic degree: `speeds` exceeds 6/256 of the shorter side per 1/8 s in at least a quarter of the steps.

    Differs from VBench in the flow (there RAFT), and in that any length and rate is measured (there 16 frames).
    """
    found = speeds(clip)
    return bool((found > FAST).float().mean() >= 0.25)


def flicker(clip: Clip) -> float:
    """How much of the change is undone at once, where motion is taken out: levels of 255 per frame, 0 is steady.

    With a = I(t, p) - I(t-1, p + flow to t-1) and b = I(t+1, p + flow to t+1) - I(t, p), along the track of each pixel
    the part of a change that the next one takes back is u = (|a| + |b| - |a + b|) / 2: the smaller of the two if they
    oppose each other, else 0. The score is the mean of u over pixels, channels and inner frames.
    VBench's temporal flickering is 1 - mean |I(t+1) - I(t)| / 255 of clips chosen to be static; by it a clip that moves
    flickers. Taking out motion is as in the warping error of Lai et al. 2018 (arXiv 1808.00449); but what is hidden or
    uncovered changes once, not to and fro, so it need not be masked. Limits: things that come and go within a frame
    count (rain, spray, blades); noise counts (it does flicker); where the flow is wrong motion counts, so the score
    grows with speed and is read beside it.
    """
    clip.check_motion(3)
    before, now, after = clip.frames[:-2], clip.frames[1:-1], clip.frames[2:]
    a, b = now - warp(before, clip.behind[:-1]), warp(after, clip.ahead[1:]) - now
    undone = (a.abs() + b.abs() - (a + b).abs()) / 2
    return undone.mean().item()


def smoothness(clip: Clip) -> float:
    """How well odd frames are predicted from the even ones around them: 1 exactly, 0 no better than repeating one.

    1 - sum |I(t) - P(t)| / sum (|I(t) - I(t-1)| + |I(t) - I(t+1)|) / 2 over the odd t, P(t) the picture half-way along
    the flow between I(t-1) and I(t+1) (`halfway`). VBench's is 1 - mean |I - P| / 255 with AMT's interpolation: a clip
    that barely moves is nearly perfect by it, which is why ours is relative to the change. Negative where the even
    frames mislead. Limits: turning, changing shape and what is hidden in one of the two frames count against it.
    """
    clip.check_motion(3)
    even, odd = clip.frames[::2], clip.frames[1:-1:2]
    first, second = even[: len(odd)], even[1 : len(odd) + 1]
    error = (odd - halfway(first, second)).abs().sum()
    repeated = ((odd - first).abs() + (odd - second).abs()).sum() / 2
    if repeated == 0:
        raise CannotMeasure("the frames to predict equal their neighbours")
    return 1 - (error / repeated).item()


def subject(clip: Clip) -> float:
    """How much what moves stays itself: 1 unchanged along its track, 0 as different as what is elsewhere in the frame.

    Points of what moves otherwise than the camera (`camera.py`) are followed along the flow (`following.py`), forwards
    and backwards from a frame of each 2 s in which as much moves as usually. With c(t) the mean colour of 3 x 3 pixels
    around a point, d = (|c(t) - c(chosen)| + |c(t) - c(one step before)|) / 2 in the mean over points and steps, and D
    the mean difference of the chosen places from four places far from each in the same frame, the score is 1 - d / D.
    VBench's subject consistency is the mean of the cosines of DINO features of whole frames to the first and to the
    previous one: the two terms are the same, colours on a track stand for features. Limits: a change that keeps the
    colours is not seen; a subject that turns, or is hidden or lost by the flow, counts as changed.
    """
    return stability(clip, still=False)


def background(clip: Clip) -> float:
    """How much what does not move by itself stays itself: as `subject`, for points of everything else.

    Points on a grid are followed along the flow, so a moving camera is followed; they do not count in steps in which
    something that moves is near. VBench's background consistency is the same as its subject's with CLIP features of
    whole frames. Limits: as `subject`; of a camera at rest this is the stillness of what is still, and shuffling the
    frames cannot change it.
    """
    return stability(clip, still=True)


def stability(clip: Clip, still: bool) -> float:
    """1 - d / D, see `subject`, over points in what moves or in all else."""
    clip.check_motion(2)
    found = [changes(clip.steps, tracks) for tracks in clip.tracks(still)]
    parts = [torch.cat([getattr(part, name) for part in found]) for name in CHANGES] if found else []
    if not parts or not all(map(len, parts)):
        raise CannotMeasure("everything moves by itself" if still else "nothing moves by itself")
    to_origin, to_previous, elsewhere = (part.mean().item() for part in parts)
    if elsewhere < LEAST_CONTRAST:
        raise CannotMeasure("the picture has one colour only")
    return 1 - (to_origin + to_previous) / 2 / elsewhere


FUNCTIONS: Mapping[str, Callable[[Clip], Any]] = {
    function.__name__: function for function in (speed, dynamic, flicker, smoothness, subject, background)
}
