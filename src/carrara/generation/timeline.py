"""A clip as a timeline of frames, some of them known, and the windows in which the others are made.

Every mode is one of these (see docs/modes.md). A window is one pass of the sampler over 1 + 4k frames. It begins with
frames that are known by then (its prefix, 1 + 4k of them or none); what else is known inside it enters as keyframe
tokens or as a region to keep. Windows follow each other so that the context, the last frames of one, is the prefix of
the next: any length in constant memory. Frames before the timeline's 0 and behind its end may be made or known, and
are not shown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class Window:
    """Frames [start, start + frames) of the timeline, the first `prefix` of which are known when it is made."""

    start: int
    frames: int
    prefix: int = 0

    @property
    def stop(self) -> int:
        return self.start + self.frames

    @property
    def fresh(self) -> int:
        """The first frame that is made here."""
        return self.start + self.prefix


@dataclass(frozen=True)
class Timeline:
    """What is known of a clip of so many frames. Only [begin, end) are made; the others are given and stay.

    known: whole frames uint8 `h w 3` by index, some perhaps behind the end; keeps: whether they are shown as they are
    where they lie in [begin, end) (else as the autoencoder gives them back);
    loop: frame `frames + j` is frame j; backward: made from the end to the beginning;
    source: a clip uint8 `t h w 3` that lies under everything; hole: bool `t h w`, True where it is made anew, None for
    everywhere; strength: the noise level at which sampling begins on it, 1 for pure noise.
    """

    frames: int
    begin: int
    end: int
    windows: tuple[Window, ...]
    known: Mapping[int, Tensor] = field(default_factory=dict, compare=False)
    keeps: bool = False
    loop: bool = False
    backward: bool = False
    source: Tensor | None = field(default=None, compare=False)
    hole: Tensor | None = field(default=None, compare=False)
    strength: float = 1.0

    @property
    def pictured(self) -> bool:
        """Whether anything is known but the prompt."""
        return bool(self.known) or self.source is not None

    @property
    def kept(self) -> bool:
        """Whether a window keeps anything while the rest of it is made: a beginning, or what is around a hole."""
        return self.hole is not None or any(window.prefix for window in self.windows)

    @property
    def longest(self) -> int:
        """Frames of the longest window."""
        return max(window.frames for window in self.windows)


def context_of(window: int, step: int) -> int:
    """How many frames, 1 + 4k, a window of so many frames takes from the one before: about a quarter."""
    latents = (window - 1) // step + 1
    return 1 + step * max(0, min(max(1, latents // 4), latents - 2))


def longest_prefix(available: int, most: int, step: int) -> int:
    """The largest 1 + 4k of at most so many frames; 0 if there are none."""
    count = min(available, most)
    return 1 + (count - 1) // step * step if count > 0 else 0


def align(frame: int, origin: int, step: int) -> int:
    """The first place at or behind `frame` where a window that began at `origin` may stop: 1 + 4k frames from there."""
    return origin + 1 + -(-max(0, frame - origin - 1) // step) * step


def forward_windows(
    origin: int, known: int, stop: int, window: int, step: int, cuts: Sequence[int] = (), context: int | None = None
) -> tuple[Window, ...]:
    """Windows of at most `window` frames that make everything from frame `origin + known` on, up to at least `stop`.

    known: how many frames from the origin on are known, 0 or 1 + 4k. cuts: aligned places where a window must stop;
    context: frames that a window takes from the one before, `context_of` if None.
    A window that would be short takes more context instead, where there is some. Raises ValueError where a window is
    not longer than its context.
    """
    context = context or context_of(window, step)
    last, done = align(stop, origin, step), origin + known
    targets = sorted({*cuts, last})
    windows = []
    while done < last:
        target = next(place for place in targets if place > done)
        before = min(context, done - origin)
        end = min(done - before + window, target)
        _check_room(window, before)
        start = max(origin, end - window)
        windows.append(Window(start, end - start, done - start))
        done = end
    return tuple(windows)


def backward_windows(end: int, window: int, step: int) -> tuple[Window, ...]:
    """Windows that make frames [0, end) from the last to the first, each reaching into what follows it by a context.

    They have no prefix: what a causal model is told of the future are keyframe tokens. The first may begin before 0.
    """
    context, windows = context_of(window, step), []
    _check_room(window, context)
    while end > 0:
        frames = min(window, align(end + context, 0, step))
        windows.append(Window(end + context - frames, frames))
        end = windows[-1].start
    return tuple(windows)


def _check_room(window: int, context: int) -> None:
    """Refuse windows that their context fills: none would make anything new (ValueError)."""
    if window <= context:
        said = "one frame is filled by the one" if window == 1 else f"{window} frames is filled by the {context}"
        raise ValueError(f"a pass of {said} that it is told; ask for one pass (frames), or for a longer window")
