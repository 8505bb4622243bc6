"""Whether one actor stands to another as a caption says: follows it, is left of it, passes behind it.

Read from two tracks in world units. Who is in front is told by whose area the other takes away while they cross.
Thresholds lie between what the relation and its reverse show on fresh renders, never on generated clips.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from carrara.core.config import choose
from carrara.evaluation.reading.clip import ActorReading
from carrara.evaluation.reading.tracks import ACROSS, FEWEST, Floats, smooth

MOSTLY = 0.8  # share of the frames that show both, in which an order of places must hold
TAKEN = 0.35  # share of its area that what passes behind loses at least, more than what it passes


def holds(relation: str, first: ActorReading, second: ActorReading) -> bool:
    """Whether the first actor "follows", is "left of" or "passes behind" the second; False where it cannot be told.

    Raises ValueError for another relation.
    """
    test = choose("relation", relation, {"follows": follows, "left of": left_of, "passes behind": passes_behind})
    return test(first, second)


def related(actors: tuple[ActorReading, ...]) -> list[str]:
    """Every relation that is read between two actors, as "0 follows 1"."""
    if len(actors) != 2:
        return []
    return [
        f"{i} {name} {1 - i}"
        for i in (0, 1)
        for name in ("follows", "left of", "passes behind")
        if holds(name, actors[i], actors[1 - i])
    ]


def left_of(first: ActorReading, second: ActorReading) -> bool:
    """The first is left of the second, in most frames that show both."""
    return _share(first.track.x < second.track.x, _both(first, second)) >= MOSTLY


def follows(first: ActorReading, second: ActorReading) -> bool:
    """Both travel to one side, and the second is ahead in most frames that show both."""
    ways = travel(first), travel(second)
    if min(abs(way) for way in ways) < ACROSS or ways[0] * ways[1] < 0:
        return False
    ahead = (second.track.x - first.track.x) * np.sign(ways[0]) > 0
    return _share(ahead, _both(first, second)) >= MOSTLY


def passes_behind(first: ActorReading, second: ActorReading) -> bool:
    """The first comes out on the other side, and on its way loses more of its area than the second does."""
    both = np.flatnonzero(_both(first, second))
    if len(both) < FEWEST:
        return False
    side = np.sign(first.track.x - second.track.x)[both]
    if side[0] == side[-1] or abs(travel(first)) < ACROSS:
        return False
    lost = _lost(first, second), _lost(second, first)
    return lost[0] > TAKEN and lost[0] > lost[1]


def travel(actor: ActorReading) -> float:
    """How far an actor comes to the right over the clip, world units; 0 where it is hardly seen."""
    x = actor.track.x[np.isfinite(actor.track.x)]
    return float(np.median(x[-2:]) - np.median(x[:2])) if len(x) >= FEWEST else 0.0


def _lost(actor: ActorReading, other: ActorReading) -> float:
    """The largest share of its area that an actor lacks near the other, against a straight line over the frames that
    show it whole; none of it is seen counts as all."""
    whole = np.isfinite(actor.track.radius) & np.isfinite(actor.area)
    if whole.sum() < FEWEST:
        return 0.0
    times = actor.track.times
    slope, start = np.polyfit(times[whole], smooth(actor.area[whole]), 1)
    expected = np.maximum(slope * times + start, 1e-9)
    seen = np.where(np.isfinite(actor.area), actor.area, 0.0)
    near = np.flatnonzero(whole)
    between = np.s_[near[0] : near[-1] + 1]  # what is missing before or after has left the frame
    return float((1 - seen / expected)[between].max())


def _both(first: ActorReading, second: ActorReading) -> NDArray[np.bool_]:
    return np.isfinite(first.track.x) & np.isfinite(second.track.x)


def _share(holding: NDArray[np.bool_] | Floats, frames: NDArray[np.bool_]) -> float:
    return float(holding[frames].mean()) if frames.sum() >= FEWEST else 0.0
