"""Every mode as a timeline: which frames are known, which are made, and in which windows.

docs/modes.md derives them. Nothing here samples or knows a network; frames are counted, not seconds: a `Length` has
turned the one into the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite

from torch import Tensor

from carrara.generation.conditions import EDIT_STRENGTH, Conditions
from carrara.generation.material import SAME_RATE, Material
from carrara.generation.timeline import (
    Timeline,
    align,
    backward_windows,
    context_of,
    forward_windows,
    longest_prefix,
)

MOST_FRAMES = 10**6


@dataclass(frozen=True)
class Length:
    """How long a clip is to be. frames: all in one pass; seconds: of what is made; window: frames of a pass.

    None where it was not said. fps: what was said; usual_window, usual_fps: the model's own; step: frames of a latent;
    context: frames that a window takes from the one before, where the model takes a number of its own.
    """

    frames: int | None
    seconds: float | None
    fps: float | None
    window: int | None
    usual_window: int
    usual_fps: float
    step: int = 4
    context: int | None = None

    def context_of(self, window: int) -> int:
        """Frames that a window of so many takes from the one before."""
        return self.context or context_of(window, self.step)

    def pass_frames(self, behind: int = 0) -> int:
        """Frames of one pass; all of them at once if they were counted. behind: frames it reaches beyond the clip."""
        if self.window is not None:
            return self.window
        if self.frames is not None:
            return align(self.frames + behind, 0, self.step)
        return self.usual_window

    def made(self, usual: int, rate: float) -> int:
        """How many frames are made: as counted, or as many as fill the seconds, or `usual`."""
        if self.frames is not None:
            return self.frames
        return usual if self.seconds is None else max(1, round(self.seconds * rate))

    def check(self, conditions: Conditions) -> None:
        """Refuse what is no length, or says it twice. Raises ValueError."""
        seconds, kind = self.seconds, conditions.clip
        if seconds is not None:
            if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not isfinite(seconds):
                raise ValueError(f"seconds={seconds!r}: must be a number")
            if seconds <= 0 or seconds * (self.fps or self.usual_fps) > MOST_FRAMES:
                raise ValueError(f"seconds={seconds:g}: must be more than 0 and make at most {MOST_FRAMES} frames")
            if self.frames is not None:
                raise ValueError(
                    "frames and seconds: frames are made in one pass, seconds in as many as needed; say one"
                )
        if kind is not None and self.frames is not None:
            instead = (
                "seconds says how much is made" if kind in ("extend", "between") else "the clip has its own length"
            )
            raise ValueError(f"frames and {kind}: {instead}; leave out frames")
        if kind in ("interpolate", "inpaint", "edit") and seconds is not None:
            raise ValueError(f"seconds and {kind}: the clip has its own length; leave out seconds")
        if self.window is not None:
            if isinstance(self.window, bool) or not isinstance(self.window, int):
                raise ValueError(f"window={self.window}: must be a whole number")
            if self.window < 1 + self.step:
                raise ValueError(f"window={self.window}: must be at least {1 + self.step} frames")
            if (self.window - 1) % self.step:
                below = (self.window - 1) // self.step * self.step + 1
                said = f"must be {self.step}k+1 frames; nearest {below} or {below + self.step}"
                raise ValueError(f"window={self.window}: {said}")


def lay_out(
    conditions: Conditions, length: Length, material: Material, prompts: Sequence[tuple[float, str]] = ()
) -> tuple[Timeline, float, tuple[tuple[int, str], ...]]:
    """The timeline, its frames per second, and from which frame on each later prompt holds.

    prompts: (seconds from the clip's beginning, prompt). Raises ValueError for what cannot be laid out.
    """
    fps, kind = _rate(conditions, length, material), conditions.clip
    if prompts and (kind not in (None, "extend", "between") or conditions.before):
        raise ValueError(f"prompt_at and {'before' if conditions.before else kind}: this is made with one prompt")
    if kind == "interpolate":
        return _interpolate(material.clip, conditions.factor or 2, length), fps, ()
    if kind in ("inpaint", "edit"):
        strength = conditions.strength or (1.0 if kind == "inpaint" else EDIT_STRENGTH)
        return _change(material, strength, length), fps, ()
    if conditions.before:
        return _before(material.clip, length, fps), fps, ()
    return _onward(material, conditions.loop, length, fps, prompts)


def _onward(
    material: Material, loop: bool, length: Length, fps: float, prompts: Sequence[tuple[float, str]]
) -> tuple[Timeline, float, tuple[tuple[int, str], ...]]:
    """From what is known at the beginning (nothing, a picture, a clip) forwards, perhaps to what is known behind it."""
    clip, second, step = material.clip, material.second, length.step
    window = length.pass_frames(behind=int(loop))
    context = length.context_of(window)
    begin = 0 if clip is None else len(clip)
    given = begin or int(material.image is not None)
    prefix = longest_prefix(given, context, step)
    ahead = loop or second is not None
    both = context if window - 2 * context >= step else 1  # how far to look ahead where there is a context as well
    usual = window - prefix - (both if ahead else 0) if begin else window - int(loop)
    end = begin + length.made(usual, fps)
    if begin and length.context is None:  # one short pass takes more context rather than being short
        prefix = max(prefix, longest_prefix(given, window - (end - begin) - (both if ahead else 0), step))
    origin = given - prefix
    if end <= max(given, int(loop or material.last is not None)):
        said = "1 frame" if end == 1 else f"{end} frames"
        raise ValueError(f"{said} in all: nothing is left to make; ask for more")

    later = _places(prompts, fps, origin, max(begin, 1), end, step)
    cuts = [place for place, _ in later] + ([1] if loop and not given else [])
    room, reach = window - (end - origin), 0
    if ahead and room >= 1:  # one pass; in a loop only its first frame is known by then
        reach = context if begin and room >= context else 1
    elif ahead:  # the last window has a context on both sides, where it is long enough, and all else is made before it
        reach, last = both, align(end + both, origin, step)
        while context > 1 and last - window + context >= end:
            context -= step
        if last - window + context >= end:
            raise ValueError(f"window={window}: too short to arrive at what is ahead; take at least {window + step}")
        cuts.append(last - window + context)
    windows = forward_windows(origin, prefix, end + reach, window, step, cuts, context)

    known = {} if clip is None else dict(enumerate(clip))
    known |= {0: material.image} if material.image is not None else {}
    known |= {end - 1: material.last} if material.last is not None else {}
    known |= {} if second is None else {end + index: frame for index, frame in enumerate(second)}
    frames = end + (0 if second is None else len(second))
    return Timeline(frames, begin, end, windows, known, loop=loop), fps, later


def _before(clip: Tensor | None, length: Length, fps: float) -> Timeline:
    """New frames that lead up to a clip: its beginning is what every window, from the last to the first, arrives at."""
    assert clip is not None
    window = length.pass_frames()
    end = length.made(window - context_of(window, length.step), fps)
    known = {end + index: frame for index, frame in enumerate(clip)}
    windows = backward_windows(end, window, length.step)
    return Timeline(end + len(clip), 0, end, windows, known, backward=True)


def _interpolate(clip: Tensor | None, factor: int, length: Length) -> Timeline:
    """A clip's frames, `factor` apart: the first begins the first window, the others are keyframe tokens; all stay."""
    assert clip is not None
    known = {index * factor: frame for index, frame in enumerate(clip)}
    end = (len(clip) - 1) * factor + 1
    return Timeline(end, 0, end, forward_windows(0, 1, end, length.pass_frames(), length.step), known, keeps=True)


def _change(material: Material, strength: float, length: Length) -> Timeline:
    """A clip as the ground: kept outside a hole, and begun from at a level within it (or everywhere)."""
    clip = material.clip
    assert clip is not None
    end, image = len(clip), material.image
    given = 0 if image is None else 1
    if end <= given:
        raise ValueError("a clip of 1 frame and image: the picture is all of it; leave out one of them")
    windows = forward_windows(0, given, end, length.pass_frames(), length.step)
    known = {} if image is None else {0: image}
    return Timeline(end, 0, end, windows, known, source=clip, hole=material.mask, strength=strength)


def _rate(conditions: Conditions, length: Length, material: Material) -> float:
    """Frames per second of the clip. Raises ValueError where a given clip has another rate and none is said."""
    given, usual = material.fps, length.fps or length.usual_fps
    if conditions.clip == "interpolate":
        return length.fps or (given or length.usual_fps) * (conditions.factor or 2)
    if given is None or length.fps is not None:
        return usual
    if conditions.clip in ("extend", "between") and abs(given / usual - 1) > SAME_RATE:
        raise ValueError(
            f"{material.name} has {given:g} frames a second and this model makes {usual:g}: "
            f"fps={given:g} takes its frames as they are, or convert it first"
        )
    return given


def _places(
    prompts: Sequence[tuple[float, str]], fps: float, origin: int, begin: int, end: int, step: int
) -> tuple[tuple[int, str], ...]:
    """From which frame on each prompt holds: the nearest one at which a window may stop."""
    found: list[tuple[int, str]] = []
    for seconds, prompt in prompts:
        if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not isfinite(seconds):
            raise ValueError(f"prompt_at {seconds}: must be a time in seconds")
        frame = round(seconds * fps)
        if not begin <= frame < end:
            said = f"from {begin / fps:g} to {end / fps:g} seconds"
            raise ValueError(f"prompt_at {seconds:g}: nothing is made at that time; {said}")
        nearest = min(round((frame - origin - 1) / step), (end - origin - 2) // step)  # with a frame behind it
        place = origin + 1 + max(0, nearest) * step
        if found and place <= found[-1][0]:
            raise ValueError(f"prompt_at {seconds:g}: must come at least {step} frames after the one before it")
        found.append((place, prompt))
    return tuple(found)
