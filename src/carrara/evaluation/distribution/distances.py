"""Do generated clips come from the world of the real ones? Two distances on pond-motion features, beside controls.

*Pond-motion Frechet distance (PMFD)*: `frechet_estimate`. *Pond-motion kernel distance (PMKD)*: `mmd_estimate` with
KID's kernel. Neither is FVD and neither compares with numbers of other extractors (see motion_net.py). A distance knows
nothing of prompts: a clip of the wrong thing costs nothing if others show that thing too rarely. Both are reported only
where the frozen and the shuffled clips lie above truth against truth by more than both intervals.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from carrara.evaluation.distribution.frechet import (
    FOLDS,
    Floats,
    checked_pair,
    frechet_distance,
    frechet_estimate,
    least_samples,
    mmd_estimate,
)
from carrara.evaluation.report.sections import Section, Table
from carrara.evaluation.statistics import Estimate

FRECHET, KERNEL = "Frechet distance", "kernel distance"
CONTROLS = ("frozen", "shuffled")
LEAST_CLIPS = 10  # fewer say nothing about a distribution


@dataclass(frozen=True)
class Distances:
    """How far a set of clips is from the reference. frechet: None, and `reason` says why, where there are too few clips
    for it; plain: the Frechet distance without extrapolation, biased, for comparison with other tools."""

    frechet: Estimate | None
    plain: float
    kernel: Estimate
    reason: str = ""

    def of(self, measure: str) -> Estimate | None:
        return self.frechet if measure == FRECHET else self.kernel

    def plain_values(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            FRECHET: self.frechet.plain() if self.frechet else None,
            KERNEL: self.kernel.plain(),
            "Frechet distance, not extrapolated": round(self.plain, 6),
            "reason": self.reason,
        }


def distances(features: Floats, reference: Floats, seed: int = 0) -> Distances:
    """Features `n d` of a set of clips against the reference's `m d`. Raises ValueError for fewer than 10 in either."""
    features, reference = checked_pair(features, reference)
    count = min(len(features), len(reference))
    if count < LEAST_CLIPS:
        raise ValueError(f"{count} clips: a distribution needs at least {LEAST_CLIPS} in each set; use more clips")
    wanted = _least_clips(features.shape[1])
    enough = count >= wanted
    reason = "" if enough else f"{count} clips: {wanted} are needed in each set, or the bias outweighs the distance"
    return Distances(
        frechet_estimate(features, reference, seed) if enough else None,
        frechet_distance(features, reference),
        mmd_estimate(features, reference),
        reason,
    )


def _least_clips(width: int) -> int:
    """So many that the jackknife's sets, nine tenths, are still large enough."""
    return -(-least_samples(width) * FOLDS // (FOLDS - 1)) + 1


def separates(found: Mapping[str, Distances], measure: str, controls: Sequence[str] = CONTROLS) -> bool:
    """Whether every control lies above truth against truth, interval from interval."""
    return _apart({name: each.of(measure) for name, each in found.items()}, controls)


def _apart(row: Mapping[str, Estimate | None], controls: Sequence[str]) -> bool:
    truth = row["truth"]
    control = [row[name] for name in controls]
    return truth is not None and all(each is not None and each.low > truth.high for each in control)


def shown(
    title: str,
    rows: Mapping[str, Mapping[str, Estimate | None]],
    why: Callable[[str], str],
    controls: Sequence[str] = CONTROLS,
) -> tuple[tuple[Table, ...], list[str]]:
    """A table of the measures that tell the controls from the truth, none if no measure does; and a sentence about each
    other one, with `why` of its name. rows: measure -> source -> estimate, None where it cannot be measured."""
    kept = {name: row for name, row in rows.items() if _apart(row, controls)}
    left_out = [f"The {name} is left out: {why(name)}." for name in rows if name not in kept]
    cells = tuple((f"{title} {name}", tuple(row.values())) for name, row in kept.items())
    columns = tuple(next(iter(rows.values())))
    return ((Table(f"{title} distances", columns, cells),) if cells else ()), left_out


def section(
    found: Mapping[str, Distances],
    about: Mapping[str, Any] | None = None,
    *,
    prefix: str = "pond-motion",
    controls: Sequence[str] = CONTROLS,
) -> Section:
    """The results as a part of the report.

    found: by source, all against one reference; "truth" (other clips of the reference's kind) and the controls must be
    among them. about: JSON values that say which clips, features and seeds. prefix: what the distances are called.
    """
    for name in ("truth", *controls):
        if name not in found:
            raise ValueError(f"no distances of {name!r}: they stand beside every other; measure that source too")

    def why(measure: str) -> str:
        if any(each.of(measure) is None for each in found.values()):
            return next(each.reason for each in found.values() if each.reason)
        return f"with so few clips it does not tell {' and '.join(controls)} from truth"

    rows = {measure: {name: each.of(measure) for name, each in found.items()} for measure in (FRECHET, KERNEL)}
    tables, left_out = shown(prefix, rows, why, controls)
    said = (
        f"How far the clips of each source are from the reference as a population, on {prefix} features; lower is "
        "better, truth is what nothing beats, and slightly negative values are noise. Not FVD: compare only numbers of "
        "this table. Prompts play no part."
    )
    data = {"about": dict(about or {}), "distances": {name: each.plain_values() for name, each in found.items()}}
    return Section("distribution", "Distribution", " ".join([said, *left_out]), tables, (), data)
