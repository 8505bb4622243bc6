"""From frames at any times to a steady rate: every tick shows the frame that is nearest to it.

Nearest rather than the last one shown: millisecond timestamps (33, 67, 100) of a 30 fps file would otherwise double and
skip frames at 30 fps. The grid of ticks begins at the first frame.
"""

from __future__ import annotations

from math import floor


class Resampler:
    """Frame times in rising order in, numbers of ticks out; each frame is settled when the next one's time is known."""

    def __init__(self, fps: float) -> None:
        self.fps = fps
        self._origin: float | None = None
        self._time = 0.0
        self._ticks = 0  # how many are settled

    def push(self, time: float) -> int:
        """How many ticks show the frame before this one (0 at the first frame)."""
        if self._origin is None:
            self._origin = self._time = time
            return 0
        middle = (self._time + time) / 2
        self._time = time
        return self._settle(middle)

    def flush(self) -> int:
        """How many ticks show the last frame, whose end is not known: those within half a tick. The grid ends."""
        if self._origin is None:
            return 0
        count = self._settle(self._time + 0.5 / self.fps)
        self._origin, self._ticks = None, 0
        return count

    def _settle(self, until: float) -> int:
        """Ticks from the first unsettled one to this time; a tick just between two frames belongs to the later."""
        assert self._origin is not None
        beyond = max(self._ticks, -floor(-((until - self._origin) * self.fps - 1e-6)))
        count, self._ticks = beyond - self._ticks, beyond
        return count
