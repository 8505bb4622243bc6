"""Where the actors are in each frame: soft masks cut out against the plate, and who is who from frame to frame.

A pixel belongs to an actor as far as its CIELAB colour differs from the plate and is not merely the plate in shadow.
Two actors of different colours are told apart by colour even while they touch; of the same colour, by where they were,
and frames in which they touch count for neither.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from carrara.data.pond.world import FLOOR, GROWTH, SIZES
from carrara.evaluation.reading.colours import NAMES, Array, distances, name_colour, shares
from carrara.evaluation.reading.stage import Stage

LOW, HIGH = 9.0, 27.0  # CIELAB differences from the plate: nothing yet, and wholly something else
SMALLEST = 0.45 * 1.1 * (min(SIZES.values()) / 2) ** 2  # square world units; less is not an actor, but crumbs
STEEP = 0.85  # of the actor's own contrast, above which a pixel is wholly the actor's
HOLE = 0.1  # of a filled mask's area: smaller holes are marks, a larger one is a ring's
APART = 0.17  # share of frames in which two things of two colours must be seen apart to count as two
BOTH_ALIKE = 0.5  # the same for two of one colour, which may be one that a wall cuts in two
PURE, DIVIDE = 0.95, 0.86  # share of one of two colours above which a region is that actor alone; is not divided
LARGEST = 1.2 * np.pi * (GROWTH * max(SIZES.values()) / 2) ** 2  # more is not one actor
BESIDE = 1.15  # of the sum of two parts' radii, between whose middles lies more if they are two actors
MOST = 4  # things in a frame, beyond which it is noise

CROSS = np.ones((3, 3), bool)


@dataclass(frozen=True)
class Sight:
    """One actor in one frame: its soft mask `h w` and CIELAB colours `h w 3`, cropped at corner (row, column); whole:
    nothing hides part of it."""

    alpha: Array
    lab: Array
    corner: tuple[int, int]
    whole: bool
    share: NDArray[np.float64]  # of its pixels, per colour


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


def sight(stage: Stage, alpha: Array, frame: int, region: NDArray[np.bool_], whole: bool) -> Sight:
    """Crop one region of a frame, with its soft edge, and look at its colours.

    The edge is where half of the actor's own contrast is reached, so that a bright actor does not look swollen.
    """
    around = ndimage.binary_dilation(region, structure=CROSS)
    rows, columns = np.flatnonzero(around.any(axis=1)), np.flatnonzero(around.any(axis=0))
    box = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    lab = stage.lab[frame][box]
    difference = np.linalg.norm(lab - stage.plate[box], axis=-1)
    contrast = float(np.percentile(difference[region[box]], 40))
    high = max(HIGH, LOW + STEEP * (contrast - LOW))
    soft = np.clip((difference - LOW) / (high - LOW), 0, 1) * (alpha[frame][box] > 0) * around[box]
    solid = fill_marks(soft > 0.5)
    soft = np.where(ndimage.binary_erosion(solid, structure=CROSS) | (solid & (soft <= 0.5)), 1.0, soft)
    core = ndimage.binary_erosion(region[box])
    core = core if core.sum() >= 8 else region[box]
    inside = whole and not bool((region & (edge_of(stage.valid[frame]) | stage.wall)).any())
    return Sight(soft.astype(np.float32), lab, (int(rows[0]), int(columns[0])), inside, shares(lab[core]))


def edge_of(valid: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The outermost pixels of what the frame shows."""
    return ~ndimage.binary_erosion(valid, structure=CROSS)


def find_actors(stage: Stage) -> tuple[int | None, list[Sights]]:
    """How many actors there are (None: unreadable) and, for at most two, what is seen of each in every frame."""
    alpha = actor_alpha(stage)
    scenes = [pieces(frame, stage.unit) for frame in alpha]
    total = len(scenes)
    if sum(regions is None for regions in scenes) > total / 2:
        return None, []
    found = [regions or [] for regions in scenes]
    if not any(found):
        return 0, []
    seen = [[sight(stage, alpha, t, region, True) for region in regions[:3]] for t, regions in enumerate(found)]
    crowd = sum(len(sights) >= 3 for sights in seen)
    pairs = [sights[:2] for sights in seen if len(sights) == 2]
    names = colour_pair(pairs, total) or joined_pair(stage, found)
    tracks = by_colour(stage, alpha, found, names) if names is not None else []
    # Neither of two may be a mark of the other that was taken for a thing beside it once.
    if not tracks or min(sum(s is not None for s in track) for track in tracks) < APART * total:
        if len(pairs) + crowd < BOTH_ALIKE * total:
            return 1, [[sights[0] if sights else None for sights in seen]]
        tracks = by_place(seen)
    return (2 if crowd < BOTH_ALIKE * total else 3), tracks


def colour_pair(pairs: list[list[Sight]], total: int) -> tuple[int, int] | None:
    """The two colours of two actors, as indices, if two different ones are seen apart for long enough."""
    votes: Counter[tuple[int, int]] = Counter()
    for pair in pairs:
        first, second = sorted({NAMES.index(name) for s in pair if (name := name_colour(s.share))} | {-1, -2})[-2:]
        if first >= 0:
            votes[first, second] += 1
    if not votes:
        return None
    names, count = votes.most_common(1)[0]
    return names if count >= max(2, APART * total) else None


def joined_pair(stage: Stage, found: list[list[NDArray[np.bool_]]]) -> tuple[int, int] | None:
    """The two colours of two actors so close together that most frames show them as one region; as indices.

    An actor's own marks lie within it; two actors lie side by side, so the middles of their colours are further apart
    than radii of such areas reach.
    """
    votes: Counter[tuple[int, int]] = Counter()
    for t, regions in enumerate(found):
        if len(regions) == 1 and (names := side_by_side(stage.lab[t], regions[0], stage.unit)):
            votes[names] += 1
    names, count = votes.most_common(1)[0] if votes else ((0, 0), 0)
    return names if count >= BOTH_ALIKE * len(found) else None


def side_by_side(lab: Array, region: NDArray[np.bool_], unit: float) -> tuple[int, int] | None:
    """The two colours, as indices, of a region `h w` that is two things side by side; None if it is one."""
    far = distances(lab[region])
    nearest, sure = far.argmin(axis=1), far.min(axis=1) < 18
    parts = []
    for name in np.argsort(-np.bincount(nearest[sure], minlength=len(NAMES)), kind="stable")[:3]:
        part = np.zeros(region.shape, bool)
        part[region] = sure & (nearest == name)
        labels, count = ndimage.label(ndimage.binary_closing(part, structure=CROSS), structure=CROSS)
        areas = np.bincount(labels.reshape(-1))[1:]
        if count and areas.max() >= 0.5 * SMALLEST * unit**2:
            middle = np.array(ndimage.center_of_mass(labels == 1 + int(areas.argmax())))
            parts.append((int(name), middle, np.sqrt(areas.max() / np.pi)))
    for name, middle, radius in parts[1:]:
        first, place, reach = parts[0]
        if np.linalg.norm(middle - place) >= BESIDE * (radius + reach):
            return min(name, first), max(name, first)
    return None


def by_colour(stage: Stage, alpha: Array, found: list[list[NDArray[np.bool_]]], names: tuple[int, int]) -> list[Sights]:
    """Two actors of different colours: every region goes to the colour it shows, one that shows both is divided."""
    tracks: list[Sights] = [[], []]
    for t, regions in enumerate(found):
        parts = [np.zeros(alpha.shape[1:], bool), np.zeros(alpha.shape[1:], bool)]
        touching, mixed = False, []
        painted = [paint(stage.lab[t][region], names) for region in regions]
        mostly = {int(share.argmax()) for _, _, share in painted if share.any()}
        for region, (which, sure, share) in zip(regions, painted):
            # An actor that another hides in part borders on it: of two regions that are apart, neither holds both.
            apart = len(mostly) == 2
            two = share.min() > 0 and side_by_side(stage.lab[t], region, stage.unit)
            alone = (apart or share.max() > DIVIDE) and not two
            if alone or not sure.any():
                parts[int(share.argmax())] |= region
                if 0 < share.max() < PURE:
                    mixed.append(int(share.argmin()))
                continue
            touching = True
            marks = np.zeros(alpha.shape[1:], np.int8)
            marks[region] = np.where(sure, which + 1, 0)
            for number in (1, 2):  # single pixels of the other colour are blends
                kept = ndimage.binary_opening(marks == number, structure=np.ones((2, 2)))
                marks[(marks == number) & ~kept] = 0
            if not marks.any():
                continue
            nearest = ndimage.distance_transform_edt(marks == 0, return_distances=False, return_indices=True)
            owner = marks[tuple(nearest)]
            for number in (0, 1):
                parts[number] |= region & (owner == number + 1)
        # A little of the other's colour: a detail of its own if the other is elsewhere, else perhaps a piece of it.
        touching = touching or any(not parts[other].any() for other in mixed)
        for part, track in zip(parts, tracks):
            labels, count = ndimage.label(part, structure=CROSS)
            if count > 1:
                part = labels == 1 + int(np.bincount(labels.reshape(-1))[1:].argmax())
            enough = part.sum() >= 0.5 * SMALLEST * stage.unit**2
            track.append(sight(stage, alpha, t, part, not touching) if enough else None)
    return [beside_hidden(tracks[0], tracks[1]), beside_hidden(tracks[1], tracks[0])]


def paint(lab: Array, names: tuple[int, int]) -> tuple[NDArray[np.int64], NDArray[np.bool_], NDArray[np.float64]]:
    """Which of two colours each pixel of `m 3` is nearer to, for which of them that is sure, and either's share of
    these."""
    far = distances(lab)[:, list(names)]
    which = far.argmin(axis=1)
    sure = (far.min(axis=1) < 14) & (np.abs(far[:, 0] - far[:, 1]) > 12)
    return which, sure, np.bincount(which[sure], minlength=2) / max(1, sure.sum())


def beside_hidden(track: Sights, other: Sights) -> Sights:
    """A track whose masks are not taken for whole while the other actor is hidden: edges of it may be in them.

    Hidden is what is not seen between frames that show it; what has left, or has not come yet, is elsewhere.
    """
    shown = [t for t, s in enumerate(other) if s is not None]
    hidden = set(range(shown[0], shown[-1])) - set(shown) if shown else set()
    return [replace(s, whole=False) if s is not None and t in hidden else s for t, s in enumerate(track)]


def by_place(seen: list[list[Sight]]) -> list[Sights]:
    """Two actors that look alike: each goes on from where it was last; frames in which they touch show neither."""
    tracks: list[Sights] = [[], []]
    last: list[NDArray[np.float64] | None] = [None, None]
    for sights in seen:
        if len(sights) < 2:
            for track in tracks:
                track.append(None)
            continue
        pair = list(sights[:2])
        at = [middle(s) for s in pair]
        if last[0] is not None and last[1] is not None:
            straight = np.linalg.norm(at[0] - last[0]) + np.linalg.norm(at[1] - last[1])
            crossed = np.linalg.norm(at[1] - last[0]) + np.linalg.norm(at[0] - last[1])
            if crossed < straight:
                pair.reverse()
                at.reverse()
        for number in (0, 1):
            tracks[number].append(pair[number])
            last[number] = at[number]
    return tracks


def middle(s: Sight) -> NDArray[np.float64]:
    """A mask's centroid on the canvas: row, column."""
    return np.array(ndimage.center_of_mass(s.alpha)) + s.corner
