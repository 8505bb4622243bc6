"""The picture behind the actors: what each pixel shows when nobody stands there.

Not a plain median over time: an actor that spins or grows in its place covers the same pixels throughout, and a lily
pad or the moon has a colour that the ground has not. So common ground, scenery and actors are told apart by colour, by
constancy and by thickness.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from carrara.evaluation.reading.colours import Array, distances

THIN = 0.036  # of the frame's shorter side, below which scenery may be the rim of an actor that it touches
CORE = 0.004  # of the frame's shorter side squared: less that is not scenery is no actor
SQUARE = np.ones((3, 3))
STEADY = 7.0  # CIELAB units from its middle within which a pixel stays as it is
OWN = 13.0  # CIELAB units from an actor's colours within which scenery might be an actor


def make_plate(lab: Array, loose: NDArray[np.bool_], possible: NDArray[np.bool_], valid: NDArray[np.bool_]) -> Array:
    """The picture behind the actors, CIELAB `h w 3`.

    Where the background is seen in some frames: the median over those. Where it never is, either a decoration stands
    there (a cloud, the moon, a lily pad: see `decorations`), which belongs to the plate as it is, or an actor is in
    front of it all the time: then the ground along the row.
    """
    usual = valid & ~loose
    often = usual.sum(axis=0)
    plate = np.nanmedian(np.where(usual[..., None], lab, np.nan), axis=0) if often.all() else hollow_median(lab, usual)
    middle = np.median(lab, axis=0)
    unseen = (often < max(1, 0.1 * len(lab))) & valid.any(axis=0)
    scenery = decorations(lab, middle, loose, possible, unseen)
    uncovered, colours = at_times(lab, possible, unseen & ~scenery)
    uncovered &= ~rims(scenery | uncovered, unseen)
    rows = row_colours(plate, unseen)
    plate = np.where(np.isnan(plate) | unseen[..., None], rows[:, None], plate)
    plate[scenery] = middle[scenery]
    plate[uncovered] = colours[uncovered]
    return plate.astype(np.float32)


def hollow_median(lab: Array, usual: NDArray[np.bool_]) -> Array:
    """The median over the frames where `usual`, NaN where it never is."""
    result = np.full(lab.shape[1:], np.nan, np.float32)
    some = usual.any(axis=0)
    result[some] = np.nanmedian(np.where(usual[:, some, None], lab[:, some], np.nan), axis=0)
    return result


def decorations(
    lab: Array, middle: Array, loose: NDArray[np.bool_], possible: NDArray[np.bool_], unseen: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """Which of the pixels that never show the common ground show scenery, `h w`.

    Scenery keeps its colour in most frames, and it is one that the background has at this height, however rarely. If
    no actor could have that colour, that settles it; a white star or a white ball: it is scenery if it is thin, or if
    all of it stays and nothing else hangs together with it in most frames (an actor has a mark and an edge, and moves).
    """
    keeps = np.linalg.norm(lab - middle, axis=-1) < STEADY
    rare = unseen & (keeps.mean(axis=0) >= 0.55) & (possible.mean(axis=0) >= 0.5)
    like_actor = np.zeros_like(rare)
    like_actor[rare] = distances(middle[rare]).min(axis=1) < OWN
    scenery = rare & ~like_actor
    doubtful = rare & like_actor
    thick = ndimage.binary_opening(doubtful, structure=SQUARE)
    scenery |= doubtful & ~ndimage.binary_dilation(thick, iterations=2)
    regions, count = ndimage.label(doubtful & ~scenery, structure=SQUARE)
    if count:
        frames = [ndimage.label(frame & ~scenery, structure=SQUARE)[0] for frame in loose]
        for number in range(1, count + 1):
            inside = regions == number
            area = int(inside.sum())
            around = [int(np.isin(frame, np.unique(frame[inside & (frame > 0)])).sum()) for frame in frames]
            if np.median(around) < 1.25 * area + 6 and np.median(keeps[:, inside].mean(axis=1)) > 0.93:
                scenery |= inside
    return scenery & ~rims(scenery, unseen)


def at_times(lab: Array, possible: NDArray[np.bool_], where: NDArray[np.bool_]) -> tuple[NDArray[np.bool_], Array]:
    """Scenery that an actor covers for much of the clip: pixels `h w` that have one and the same possible colour, which
    no actor has, in a fifth of the frames or more; and that colour, `h w 3`."""
    found, colours = np.zeros_like(where), np.zeros(lab.shape[1:], np.float32)
    if where.any():
        pixels = lab[:, where]
        free = possible[:, where] & (distances(pixels.reshape(-1, 3)).min(axis=1).reshape(pixels.shape[:2]) > OWN)
        colour = hollow_median(pixels, free)
        same = (free & (np.linalg.norm(pixels - colour, axis=-1) < STEADY)).sum(axis=0)
        found[where] = (same >= 0.2 * len(lab)) & (same >= 0.8 * free.sum(axis=0))
        colours[where] = colour
    return found, colours


def rims(scenery: NDArray[np.bool_], unseen: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Thin parts of the scenery that hang together with an actor: its own soft edge, blended to a likely colour."""
    regions, _ = ndimage.label(unseen, structure=SQUARE)
    areas, actors = (np.bincount(regions[mask], minlength=regions.max() + 1) for mask in (unseen, unseen & ~scenery))
    has_actor = actors > np.maximum(0.25 * areas, CORE * min(scenery.shape) ** 2)
    side = max(3, round(THIN * min(scenery.shape)))
    thick = ndimage.binary_opening(scenery, structure=np.ones((side, side)))
    return scenery & has_actor[regions] & ~ndimage.binary_dilation(thick, structure=SQUARE, iterations=side // 2)


def row_colours(plate: Array, unseen: NDArray[np.bool_]) -> Array:
    """The middle colour of each row `h 3`, taken over from neighbouring rows where a row shows nothing."""
    known = np.where(unseen[..., None], np.nan, plate)
    rows = np.ma.median(np.ma.masked_invalid(known), axis=1).filled(np.nan)
    good = ~np.isnan(rows).any(axis=1)
    if not good.any():
        return np.zeros_like(rows)
    at = np.arange(len(rows))
    return np.stack([np.interp(at, at[good], rows[good, channel]) for channel in range(3)], axis=1)
