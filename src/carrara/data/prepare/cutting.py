"""From decoded frames to pieces: resampled to the wanted rate, cut at shots, black and holes, judged one by one.

A chain of generators in constant memory: no more is held than one piece and the few frames that a cut needs to be seen.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from carrara.data.prepare.convert import Converter
from carrara.data.prepare.decode import Shown
from carrara.data.prepare.fitting import Fit, fit
from carrara.data.prepare.orientation import orientation
from carrara.data.prepare.reasons import Unfit
from carrara.data.prepare.resampling import Resampler
from carrara.data.prepare.settings import Settings
from carrara.data.prepare.shots import Small, mark_cuts

_LOW, _SPAN = 16, 219  # limited range: black, and from black to white
_BRIGHT = 0.02  # share of a black frame's places that need not be black


@dataclass(frozen=True)
class Tick:
    """A frame of the steady rate. number: which source frame it shows; picture: finished."""

    time: float
    number: int
    picture: Any
    small: Small


@dataclass(frozen=True)
class Stretch:
    """Consecutive frames of one shot: a piece to keep where `reason` is empty."""

    ticks: list[Tick]
    end: float
    size: tuple[int, int]
    reason: str = ""
    sentence: str = ""

    @property
    def start(self) -> float:
        """Seconds from the file's first frame."""
        return self.ticks[0].time


@dataclass
class Seen:
    """What is known of a file after its frames have been drawn."""

    frames: int = 0
    first: float = 0.0
    last: float = 0.0
    size: tuple[int, int] = (0, 0)
    fit: Fit | None = None
    stopped: Unfit | None = None

    @property
    def fps(self) -> float | None:
        """Its own rate, as its times say."""
        return (self.frames - 1) / (self.last - self.first) if self.last > self.first else None


@dataclass(frozen=True)
class _Sampled:
    """A source frame with the ticks that show it, perhaps none."""

    small: Small
    fresh: bool
    size: tuple[int, int]
    ticks: list[Tick] = field(default_factory=list)


def stretches(shown: Iterable[Shown], settings: Settings, converter: Converter, seen: Seen) -> Iterator[Stretch]:
    """Every stretch of the wanted rate, kept or not, in order; `seen` is filled on the way.

    Where `shown` raises Unfit, or from some frame on the picture fits no bucket, the stretches end with what was there
    before, and `seen.stopped` says why.
    """
    sampled = _sample(shown, settings, converter, seen)
    marked = mark_cuts(((each, each.small, each.fresh) for each in sampled), settings.cut_sensitivity)
    for stretch in _cut(marked, settings):
        yield stretch if stretch.reason else _judged(stretch, settings)


def _sample(shown: Iterable[Shown], settings: Settings, converter: Converter, seen: Seen) -> Iterator[_Sampled]:
    """Each frame with its ticks, one frame late: the ticks are known when the next frame's time is."""
    resampler = Resampler(settings.fps)
    held: Shown | None = None
    small: Small | None = None
    former: tuple[object, ...] | None = None
    fresh = True
    turn = origin = None
    ticks = 0

    def settle(count: int) -> _Sampled:
        nonlocal ticks
        assert held is not None
        assert small is not None
        assert seen.fit is not None
        assert turn is not None
        assert origin is not None
        made: list[Tick] = []
        if count:
            picture = converter.picture(held.frame, seen.fit, turn)
            times = [origin + (ticks + index) / settings.fps for index in range(count)]
            made = [Tick(time, seen.frames, picture, small) for time in times]
            ticks += count
        return _Sampled(small, fresh, seen.fit.size, made)

    for each in _until_unfit(shown, seen):
        kind = (each.frame.width, each.frame.height, each.aspect, orientation(each.frame))
        new = each.fresh or kind != former
        if held is not None:
            yield settle(resampler.flush() if new else resampler.push(each.time))
        if kind != former:
            turn = kind[3]
            wide, high = each.frame.width * each.aspect, float(each.frame.height)
            wide, high = (high, wide) if turn.swap else (wide, high)
            if former is None:
                seen.size = (round(wide), round(high))
            try:
                seen.fit = fit(wide, high, settings)
            except Unfit as why:
                seen.stopped, held = why, None
                break
            former = kind
        if new:
            origin, ticks = each.time, 0
            resampler.push(each.time)
        if not seen.frames:
            seen.first = each.time
        seen.frames += 1
        seen.last = each.time
        held, small, fresh = each, converter.small(each.frame), new
    if held is not None:
        yield settle(resampler.flush())


def _until_unfit(shown: Iterable[Shown], seen: Seen) -> Iterator[Shown]:
    try:
        yield from shown
    except Unfit as why:
        seen.stopped = why


def _cut(marked: Iterable[tuple[_Sampled, bool]], settings: Settings) -> Iterator[Stretch]:
    """Shots and runs of black, the shots in pieces as long as the longest bucket."""
    held: list[Tick] = []
    size = (0, 0)
    dark = gave = False
    for sampled, begins in marked:
        black = is_black(sampled.small, settings.black)
        if begins or black != dark:
            yield from _close(held, size, dark, gave, settings)
            held, dark, gave, size = [], black, False, sampled.size
        for tick in sampled.ticks:
            held[1 if dark else len(held) :] = [tick]  # of black the first and the last are enough
            if not dark and len(held) == settings.lengths[0]:
                yield _stretch(held, size, settings)
                held, gave = [], True
    yield from _close(held, size, dark, gave, settings)


def _close(held: list[Tick], size: tuple[int, int], dark: bool, gave: bool, settings: Settings) -> Iterator[Stretch]:
    """What is left when a shot ends: shorter pieces, and what is too short for any."""
    if dark and held:
        yield _stretch(held, size, settings, "black", "nothing but black")
        return
    for length in settings.lengths:
        while len(held) >= length:
            yield _stretch(held[:length], size, settings)
            held, gave = held[length:], True
    if held:
        said = f"{len(held)} frames at {settings.fps:g} per second; the shortest bucket has {settings.lengths[-1]}"
        yield _stretch(held, size, settings, "remainder" if gave else "too_short", said)


def _stretch(
    ticks: list[Tick], size: tuple[int, int], settings: Settings, reason: str = "", sentence: str = ""
) -> Stretch:
    return Stretch(ticks, ticks[-1].time + 1 / settings.fps, size, reason, sentence)


def _judged(piece: Stretch, settings: Settings) -> Stretch:
    """A whole piece, with the reason why it is not kept, if there is one."""
    distinct = len({tick.number for tick in piece.ticks})
    if distinct < settings.least_rate * len(piece.ticks):
        own = distinct / (piece.end - piece.start)
        said = f"{own:.3g} different frames per second; at least {settings.least_rate * settings.fps:g} are wanted"
        return Stretch(piece.ticks, piece.end, piece.size, "low_rate", said)
    if (moved := motion([tick.small for tick in piece.ticks])) < settings.frozen:
        return Stretch(piece.ticks, piece.end, piece.size, "frozen", f"nothing changes by more than {moved:.1%}")
    return piece


def is_black(small: Small, threshold: float) -> bool:
    """Whether nearly every place of a picture is at most so bright, as a share of white."""
    bright = np.count_nonzero(small[0] > int(_LOW + threshold * _SPAN))  # whole numbers, compared as such
    return threshold > 0 and bright <= _BRIGHT * small[0].size


def motion(smalls: list[Small]) -> float:
    """The largest change of brightness from the first picture, at any place and time, as a share of white."""
    stacked = np.stack([small[0] for small in smalls])
    return float(np.abs(stacked - stacked[0]).max()) / _SPAN
