"""Shares and means with their uncertainty."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Z95 = 1.959964  # the normal quantile of a two-sided 95% interval


@dataclass(frozen=True)
class Share:
    """`right` of `total`, with Wilson's 95% interval."""

    right: int
    total: int

    @property
    def value(self) -> float:
        return self.right / self.total if self.total else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        return wilson(self.right, self.total)

    def plain(self) -> dict[str, Any]:
        """As JSON values; null where nothing was counted."""
        low, high = (round(bound, 4) for bound in self.interval)
        share = round(self.value, 4) if self.total else None
        return {"right": self.right, "total": self.total, "share": share, "low": low, "high": high}


def wilson(right: int, total: int, z: float = Z95) -> tuple[float, float]:
    """Wilson's score interval of a share (Wilson 1927): stays inside [0, 1] and is sensible at both ends."""
    if not 0 <= right <= total:
        raise ValueError(f"{right} right of {total}: expected 0 <= right <= total")
    if not total:
        return 0.0, 1.0
    share, unit = right / total, z * z / total
    centre = (share + unit / 2) / (1 + unit)
    reach = z / (1 + unit) * math.sqrt(share * (1 - share) / total + unit / (4 * total))
    return max(0.0, min(share, centre - reach)), min(1.0, max(share, centre + reach))  # in spite of rounding


@dataclass(frozen=True)
class Estimate:
    """A number with its 95% interval and how many values it rests on.

    share: a share of 1, to be shown in percent. low, high may be infinite: one value says nothing of its spread.
    """

    value: float
    low: float
    high: float
    count: int
    share: bool = False

    def __post_init__(self) -> None:
        if not (math.isfinite(self.value) and self.low <= self.value <= self.high and self.count >= 1):
            raise ValueError(
                f"an estimate of {self.value} in [{self.low}, {self.high}] from {self.count} values: expected a finite "
                "value inside its interval and at least one value; pass None where nothing was measured"
            )

    @classmethod
    def of(cls, share: Share) -> Estimate | None:
        """A share as an estimate; None if nothing was counted."""
        return cls(share.value, *share.interval, share.total, True) if share.total else None

    def plain(self) -> dict[str, Any]:
        """As JSON values, to six digits; null for an infinite bound."""
        bounds = {"value": self.value, "low": self.low, "high": self.high}
        return {name: _digits(bound) for name, bound in bounds.items()} | {"count": self.count}

    def text(self) -> str:
        """As `12% [10, 15]`, or `0.123 [0.12, 0.13]`."""
        if self.share:
            return f"{self.value:.0%} [{100 * self.low:.0f}, {100 * self.high:.0f}]"
        if not math.isfinite(self.low):
            return f"{self.value:.3g}"
        return f"{self.value:.3g} [{self.low:.3g}, {self.high:.3g}]"

    def apart(self, other: Estimate) -> bool:
        """Whether the two intervals do not meet."""
        return self.low > other.high or other.low > self.high


def mean_estimate(values: Iterable[float], *, share: bool = False) -> Estimate:
    """The mean with Student's 95% interval, mean +- t(n - 1) s / sqrt(n) (Student 1908).

    values: one per independent clip, finite. One value has an infinite interval. The interval is of the mean over
    clips like these; it is symmetric even where values cannot be (a distance), hence rough for few of them.
    share: values are shares of 1, so the interval ends at 0 and 1, and where all are 0 or 1 it is Wilson's. Raises
    ValueError for no values or one that is not finite.
    """
    found = np.asarray(list(values), np.float64)
    if not found.size:
        raise ValueError("a mean of no values; pass at least one, or show None where nothing was measured")
    if not np.isfinite(found).all():
        raise ValueError(f"a mean of values of which {int((~np.isfinite(found)).sum())} are not finite; leave them out")
    mean, count = float(found.mean()), int(found.size)
    if share and np.isin(found, (0, 1)).all():
        return Estimate(mean, *wilson(int(found.sum()), count), count, True)
    least, most = (0.0, 1.0) if share else (-math.inf, math.inf)
    if count == 1:
        return Estimate(mean, least, most, 1, share)
    from scipy.special import stdtrit

    reach = float(stdtrit(count - 1, 0.975)) * float(found.std(ddof=1)) / math.sqrt(count)
    return Estimate(mean, max(least, mean - reach), min(most, mean + reach), count, share)


def mean_or_none(values: Iterable[float | None], *, share: bool = False) -> Estimate | None:
    """`mean_estimate` of those that were measured; None if none was."""
    found = [value for value in values if value is not None]
    return mean_estimate(found, share=share) if found else None


def _digits(value: float) -> float | None:
    return float(f"{value:.6g}") if math.isfinite(value) else None


def tally(verdicts: Sequence[Mapping[str, bool]], names: Sequence[str]) -> dict[str, Share]:
    """For each name that was judged at all, how often it was right."""
    found = {name: [verdict[name] for verdict in verdicts if name in verdict] for name in names}
    return {name: Share(sum(values), len(values)) for name, values in found.items() if values}
