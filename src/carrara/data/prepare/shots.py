"""Where one shot ends and the next begins: content differences against a threshold that adapts to the motion around.

As in the field's usual detectors, frames are compared as small pictures, and a cut is where they differ by far more
than their neighbours do. Not standard: the difference across a place is the least of three (to the frame before, and
with one frame skipped on either side), so that a flash of one frame is no cut; and it all works in one pass with a
short delay, on the source's own frames whatever rate is wanted. Dissolves are not found.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

T = TypeVar("T")
Small = NDArray[np.int16]  # `3 h w`: Y, U, V of a small picture

REACH = 5  # frames to either side whose differences make the threshold
SURE = 45.0  # steps of 255: a difference above which it is a cut whatever moves around
FLOOR = 9.0  # below which it is none
RATIO = 3.5  # times the differences around
_CALM = 4.0  # below, the frames further away are not asked
_LOUDEST = 3  # of the differences around, so many of the largest are averaged


def difference(one: Small, other: Small) -> float:
    """Mean absolute differences of brightness and of the two colours, summed, in steps of 255."""
    return float(np.abs(one - other).sum(dtype=np.int64)) / (one.shape[1] * one.shape[2])


def strengths(smalls: list[Small]) -> list[float]:
    """How much the picture changes before each frame; 0 before the first."""
    return [_strength(smalls, index) for index in range(len(smalls))]


def _strength(smalls: list[Small], index: int) -> float:
    if index == 0:
        return 0.0
    found = difference(smalls[index - 1], smalls[index])
    if found < _CALM:
        return found
    if index + 1 < len(smalls):
        found = min(found, difference(smalls[index - 1], smalls[index + 1]))
    if index >= 2:
        found = min(found, difference(smalls[index - 2], smalls[index]))
    return found


def is_cut(strength: float, around: list[float], sensitivity: float = 1.0) -> bool:
    """Whether a change is a cut, given those at most REACH frames before and after it."""
    loudest = sorted(around, reverse=True)[:_LOUDEST]
    usual = sum(loudest) / len(loudest) if loudest else SURE
    strength *= sensitivity
    return strength >= SURE or (strength >= FLOOR and strength >= RATIO * usual)


def mark_cuts(frames: Iterable[tuple[T, Small, bool]], sensitivity: float = 1.0) -> Iterator[tuple[T, bool]]:
    """Pairs of each item and whether a shot begins with it. frames: (item, small picture, not a continuation).

    The first frame, and each that is no continuation of the one before it, begin a shot. Holds REACH + 1 items.
    """
    items: list[T] = []  # those not given out yet
    smalls: list[Small] = []  # of the run: pictures and strengths from `first` on
    found: list[float] = []
    done = first = 0  # frames of the run that were given out; that have been forgotten

    def settle(upto: int) -> Iterator[tuple[T, bool]]:
        nonlocal done
        while done < upto:
            here = done - first
            around = found[max(0, here - REACH) : here] + found[here + 1 : here + 1 + REACH]
            yield items.pop(0), done == 0 or is_cut(found[here], around, sensitivity)
            done += 1

    for item, small, fresh in frames:
        if fresh and smalls:
            found.append(_strength(smalls, len(smalls) - 1))
            yield from settle(first + len(smalls))
            items, smalls, found, done, first = [], [], [], 0, 0
        items.append(item)
        smalls.append(small)
        if len(smalls) >= 2:  # the strength of a frame needs the one behind it
            found.append(_strength(smalls, len(smalls) - 2))
        yield from settle(first + len(found) - REACH)
        if (spare := done - REACH - first) > 2:
            smalls, found, first = smalls[spare:], found[spare:], first + spare
    if smalls:
        found.append(_strength(smalls, len(smalls) - 1))
        yield from settle(first + len(smalls))


def find_cuts(smalls: list[Small], sensitivity: float = 1.0) -> list[int]:
    """The frames with which a new shot begins, the first one excepted."""
    marked = mark_cuts(((index, small, False) for index, small in enumerate(smalls)), sensitivity)
    return [index for index, cut in marked if cut and index]
