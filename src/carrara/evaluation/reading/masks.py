"""What is seen of an actor in one frame: its soft mask, cut out against the plate, and its colours.

A pixel belongs to an actor as far as its CIELAB colour differs from the plate and is not merely the plate in shadow.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from carrara.data.pond.world import FLOOR, GROWTH, SIZES
from carrara.evaluation.reading.colours import Array, shares
from carrara.evaluation.reading.stage import Stage

LOW, HIGH = 9.0, 27.0  # CIELAB differences from the plate: nothing yet, and wholly something else
SMALLEST = 0.45 * 1.1 * (min(SIZES.values()) / 2) ** 2  # square world units; less is not an actor, but crumbs
STEEP = 0.85  # of the actor's own contrast, above which a pixel is wholly the actor's
HOLE = 0.08  # of a filled mask's area: smaller holes are marks (most below 0.07), a larger one is a ring's (from 0.085)
LARGEST = 1.2 * np.pi * (GROWTH * max(SIZES.values()) / 2) ** 2  # more is not one actor
MOST = 4  # things in a frame, beyond which it is noise

CROSS = np.ones((3, 3), bool)


@dataclass(frozen=True)
class Sight:
    """One actor in one frame: its soft mask `h w` and CIELAB colours `h w 3`, cropped at corner (row, column); whole:
    nothing hides part of it; behind: CIELAB `3` of what it stands in front of."""

    alpha: Array
    lab: Array
    corner: tuple[int, int]
    whole: bool
    share: NDArray[np.float64]  # of its pixels, per colour
    behind: NDArray[np.float64]


Sights = list[Sight | None]  # one per frame


def actor_alpha(stage: Stage) -> Array:
    """How much each pixel is an actor's, `t h w` in [0, 1]."""
    difference = np.linalg.norm(stage.lab - stage.plate, axis=-1)
    alpha = np.clip((difference - LOW) / (HIGH - LOW), 0, 1)
    height = (np.arange(stage.lab.shape[1]) + 0.5 - stage.origin[1]) / stage.unit
    floor = np.abs(height - FLOOR - 0.012) < 0.06
    seen, behind = stage.lab[:, floor], stage.plate[None, floor]
    shade = (seen * behind).sum(axis=-1) / np.maximum((behind**2).sum(axis=-1), 1e-6)
    shadow = (shade > 0.6) & (shade < 1.0) & (np.linalg.norm(seen - shade[..., None] * behind, axis=-1) < 8)
    alpha[:, floor] *= ~shadow
    return (alpha * stage.valid).astype(np.float32)


def pieces(alpha: Array, unit: float) -> list[NDArray[np.bool_]] | None:
    """The connected regions of one frame that are large enough, largest first; None where it is no scene: where
    something is larger than any actor, or there are too many things."""
    solid = ndimage.binary_closing(np.pad(alpha > 0.5, 2), structure=CROSS)[2:-2, 2:-2] | (alpha > 0.5)
    labels, count = ndimage.label(solid, structure=CROSS)
    if not count:
        return []
    areas = np.bincount(labels.reshape(-1))[1:] / unit**2
    kept = [number + 1 for number in np.argsort(-areas) if areas[number] >= SMALLEST]
    if len(kept) > MOST or areas.max() > LARGEST:
        return None
    return [labels == number for number in kept]


def fill_marks(region: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Fill holes that are too small to be a ring's."""
    filled = ndimage.binary_fill_holes(region)
    holes, count = ndimage.label(filled & ~region)
    if not count:
        return region
    areas = np.bincount(holes.reshape(-1))
    areas[0] = 0
    return region | ((areas > 0) & (areas < HOLE * filled.sum()))[holes]


def sight(
    stage: Stage,
    alpha: Array,
    frame: int,
    region: NDArray[np.bool_],
    whole: bool,
    other: NDArray[np.bool_] | None = None,
) -> Sight:
    """Crop one region of a frame, with its soft edge, and look at its colours; other: a region that is another's.

    The edge is where half of the actor's own contrast is reached, so that a bright actor does not look swollen.
    """
    around = ndimage.binary_dilation(region, structure=CROSS)
    if other is not None:
        around &= ~other
    rows, columns = np.flatnonzero(around.any(axis=1)), np.flatnonzero(around.any(axis=0))
    box = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    lab = stage.lab[frame][box]
    difference = np.linalg.norm(lab - stage.plate[box], axis=-1)
    contrast = float(np.percentile(difference[region[box]], 40))
    soft = np.clip((difference - LOW) / (reach(contrast) - LOW), 0, 1) * (alpha[frame][box] > 0) * around[box]
    core = ndimage.binary_erosion(region[box])
    core = core if core.sum() >= 8 else region[box]
    inside = whole and not bool((region & (edge_of(stage.valid[frame]) | stage.wall)).any())
    behind = np.median(stage.plate[region], axis=0).astype(np.float64)
    corner = int(rows[0]), int(columns[0])
    return Sight(fill_inside(soft).astype(np.float32), lab, corner, inside, shares(lab[core]), behind)


def reach(contrast: float) -> float:
    """The CIELAB difference from the plate from which on a pixel is wholly an actor's, given the actor's own."""
    return max(HIGH, LOW + STEEP * (contrast - LOW))


def fill_inside(soft: Array) -> Array:
    """A soft mask `h w` that is solid inside, marks as well; its edge stays soft."""
    solid = fill_marks(soft > 0.5)
    return np.where(ndimage.binary_erosion(solid, structure=CROSS) | (solid & (soft <= 0.5)), 1.0, soft)


def edge_of(valid: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The outermost pixels of what the frame shows."""
    return ~ndimage.binary_erosion(valid, structure=CROSS)
