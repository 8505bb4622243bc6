"""Who is who: the actors' masks from frame to frame.

Two actors of different colours are told apart by colour even while they touch; of the same colour, by where they were,
and frames in which they touch count for neither.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from carrara.evaluation.reading.colours import NAMES, Array, distances, name_colour
from carrara.evaluation.reading.masks import CROSS, SMALLEST, Sight, Sights, actor_alpha, pieces, sight
from carrara.evaluation.reading.stage import Stage

APART = 0.17  # share of frames in which two things of two colours must be seen apart to count as two
BOTH_ALIKE = 0.5  # the same for two of one colour, which may be one that a wall cuts in two
PURE, DIVIDE = 0.95, 0.86  # share of one of two colours above which a region is that actor alone; is not divided
BESIDE = 1.15  # of the sum of two parts' radii, between whose middles lies more if they are two actors


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
    names = colour_pair(pairs, joined_votes(stage, found), total)
    tracks = by_colour(stage, alpha, found, names) if names is not None else []
    # Neither of two may be a mark of the other that was taken for a thing beside it once.
    if not tracks or min(sum(s is not None for s in track) for track in tracks) < APART * total:
        if len(pairs) + crowd < BOTH_ALIKE * total:
            return 1, [[sights[0] if sights else None for sights in seen]]
        tracks = by_place(seen)
    return (2 if crowd < BOTH_ALIKE * total else 3), tracks


Votes = Counter[tuple[int, int]]  # how often two colours, as indices in order, are seen as two actors


def colour_pair(pairs: list[list[Sight]], joined: Votes, total: int) -> tuple[int, int] | None:
    """The two colours of two actors, if two different ones are seen apart for long enough, or twice and besides as one
    region, as while one passes behind the other; or if most frames show them as one region."""
    apart: Votes = Counter()
    for pair in pairs:
        first, second = sorted({NAMES.index(name) for s in pair if (name := name_colour(s.share))} | {-1, -2})[-2:]
        if first >= 0:
            apart[first, second] += 1
    if apart:
        names, count = apart.most_common(1)[0]
        if count >= 2 and count + joined[names] >= APART * total:
            return names
    names, count = joined.most_common(1)[0] if joined else ((0, 0), 0)
    return names if count >= BOTH_ALIKE * total else None


def joined_votes(stage: Stage, found: list[list[NDArray[np.bool_]]]) -> Votes:
    """Of the frames that show one region: those in which it is two things side by side, by their colours.

    An actor's own marks lie within it; two actors lie side by side, so the middles of their colours are further apart
    than radii of such areas reach.
    """
    votes: Votes = Counter()
    for t, regions in enumerate(found):
        if len(regions) == 1 and (names := side_by_side(stage.lab[t], regions[0], stage.unit)):
            votes[names] += 1
    return votes


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
    if not parts:
        return None
    first, place, size = parts[0]
    away = [(float(np.linalg.norm(middle - place)) / (radius + size), name) for name, middle, radius in parts[1:]]
    most, name = max(away, default=(0.0, 0))  # a car's wheel is nearer to it than another actor
    return (min(name, first), max(name, first)) if most >= BESIDE else None


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
        if touching:
            parts = given_back(parts, alpha[t] > 0.5)
        # A little of the other's colour: a detail of its own if the other is elsewhere, else perhaps a piece of it.
        touching = touching or any(not parts[other].any() for other in mixed)
        parts = [largest(part) for part in parts]
        for part, other, track in zip(parts, parts[::-1], tracks):
            enough = part.sum() >= 0.5 * SMALLEST * stage.unit**2
            track.append(sight(stage, alpha, t, part, not touching, other) if enough else None)
    return [beside_hidden(tracks[0], tracks[1]), beside_hidden(tracks[1], tracks[0])]


def given_back(parts: list[NDArray[np.bool_]], solid: NDArray[np.bool_]) -> list[NDArray[np.bool_]]:
    """Two parts of a region, without what hangs together with each only through gaps that were closed: that is the
    other's, as a dark tail that looks more like the colour of what follows it."""
    kept = [largest(part & solid) for part in parts]
    loose = [part & solid & ~own for part, own in zip(parts, kept)]
    return [kept[0] | loose[1], kept[1] | loose[0]]


def largest(region: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The largest connected part."""
    labels, count = ndimage.label(region, structure=CROSS)
    return labels == 1 + int(np.bincount(labels.reshape(-1))[1:].argmax()) if count > 1 else region


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
