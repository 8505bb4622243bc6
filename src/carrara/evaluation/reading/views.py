"""One actor in all the frames that show it, in the common frame of shapes; and which shape that is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from carrara.evaluation.reading.colours import Array, name_colour
from carrara.evaluation.reading.masks import Sights
from carrara.evaluation.reading.painted import apart
from carrara.evaluation.reading.silhouettes import GRID, SPAN, Templates, normalise, plainness, poses_of
from carrara.evaluation.reading.tracks import Floats

CLOSE = 0.06  # intersection over union below the best fit, within which what is painted inside an outline counts too
PAINTED = 0.005  # intersection over union that a CIELAB unit of difference is worth there


@dataclass(frozen=True)
class Views:
    """One actor in the frames `seen` (m of them).

    Normalised masks and plain parts `m p`, their CIELAB colours `m p 3`, areas in pixels `m`, centroids `m 2` (x, y in
    pixels of the canvas), and which frames show it whole, `m`; behind: CIELAB `3` of what it stands in front of.
    """

    seen: NDArray[np.int64]
    masks: Array
    plains: Array
    labs: Array
    areas: Floats
    places: Floats
    whole: NDArray[np.bool_]
    behind: Floats


def look(sights: Sights) -> tuple[Views, NDArray[np.float64]]:
    """An actor's masks in the common frame, and the share of its pixels that each colour has."""
    shown = [(t, s) for t, s in enumerate(sights) if s is not None]
    whole = np.array([s.whole for _, s in shown])
    if whole.sum() < 3:  # nearly always cut off: better judged where most of it is seen than not at all
        visible = np.array([float(s.alpha.sum()) for _, s in shown])
        whole = visible >= 0.8 * visible.max()
    share = np.median([s.share for (_, s), clean in zip(shown, whole) if clean], axis=0)
    colour = name_colour(share)
    masks, plains, labs, areas, places = [], [], [], [], []
    for _, s in shown:
        own = s.alpha * plainness(s.lab, colour) if colour else s.alpha
        mask, plain, lab, area, (column, row) = normalise(s.alpha, own, s.lab)
        masks.append(mask)
        plains.append(plain)
        labs.append(lab)
        areas.append(area)
        places.append((column + s.corner[1] + 0.5, row + s.corner[0] + 0.5))
    seen = np.array([t for t, _ in shown])
    behind = np.median([s.behind for _, s in shown], axis=0)
    return Views(
        seen, np.stack(masks), np.stack(plains), np.stack(labs), np.array(areas), np.array(places), whole, behind
    ), share


def best_shape(
    support: dict[str, float], views: Views, known: Templates, fit: Array, weight: Floats, colour: str | None
) -> str:
    """The shape whose outline fits best; of those that fit about as well, the one that is painted like what is seen.

    support: how well each shape fits; fit: of every view and template, `m n`; weight: of the views, `m`.
    """
    best = max(support.values())
    close = [name for name, value in support.items() if value > best - CLOSE]
    if colour is None or len(close) == 1:
        return max(support, key=lambda name: support[name])
    worth = {}
    for name in close:
        far = apart(views.labs, views.masks, known, poses_of(name, known, fit), colour)
        worth[name] = support[name] - PAINTED * float(np.average(far, weights=weight))
    return max(worth, key=lambda name: worth[name])


def filled(masks: Array, weight: Floats) -> float:
    """How much of the middle of normalised masks `m p` is the actor's, in [0, 1]; weight: of each, `m`."""
    at = np.linspace(-SPAN, SPAN, GRID)
    middle = np.hypot(*np.meshgrid(at, at)).reshape(-1) < 0.2
    return float(np.average(masks[:, middle].mean(axis=1), weights=weight))
