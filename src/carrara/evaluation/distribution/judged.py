"""Distances on the features of a network that the user brings (I3D, VideoMAE), as a part of a report.

Two numbers: the plain Frechet distance, which with I3D is FVD as it is usually computed, and the kernel distance, which
is unbiased at every number of clips. Not standard: both stand beside other real clips, frozen and shuffled ones, with
intervals; and a distance that does not tell these from the truth is left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from carrara.evaluation.distribution.distances import CONTROLS, shown
from carrara.evaluation.distribution.frechet import FOLDS, Floats, frechet_distance_estimate, mmd_estimate
from carrara.evaluation.distribution.fvd import Clip, Extractor
from carrara.evaluation.report.sections import Section
from carrara.evaluation.statistics import Estimate

LEAST_CLIPS = 2 * FOLDS  # fewer give no interval
NO_NETWORK = "it takes a network that is not shipped; give I3D's weights or a VideoMAE folder as --fvd PATH"

ABOUT = """\
How far the clips of each source are from the reference as a population, on features of {name}, whose weights were \
brought by path; lower is better and truth is what nothing beats. The Frechet distance is the plain one, biased upward \
by an amount that falls with the number of clips and is large below thousands: compare only numbers of as many clips, \
at the same size and rate. The first {frames} frames of each clip count, at the clip's own rate. The kernel distance \
(KID's kernel) has no such bias. Prompts play no part."""


def judged(clips: Iterable[Clip], reference: Floats, extractor: Extractor, seed: int = 0) -> dict[str, Estimate]:
    """The distances of clips uint8 `t h w 3` from a reference's features `n d`. Raises ValueError for too few."""
    features = extractor(clips)
    return {
        "Frechet distance": frechet_distance_estimate(features, reference, seed),
        "kernel distance": mmd_estimate(features, reference),
    }


def section(
    found: Mapping[str, Mapping[str, Estimate]], extractor: Extractor, about: Mapping[str, Any] | None = None
) -> Section:
    """found: by source, all against one reference; "truth" and the controls must be among them."""
    rows = {measure: {name: each[measure] for name, each in found.items()} for measure in found["truth"]}
    tables, left_out = shown(
        extractor.name, rows, lambda _: f"it does not tell {' and '.join(CONTROLS)} from truth here"
    )
    about_it = ABOUT.format(name=extractor.name, frames=extractor.frames)
    data = {
        "about": {"features": extractor.name, "frames": extractor.frames, **(about or {})},
        "distances": {name: {m: value.plain() for m, value in each.items()} for name, each in found.items()},
    }
    return Section("fvd", "Distribution, by a network of the user's", " ".join([about_it, *left_out]), tables, (), data)
