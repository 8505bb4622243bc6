"""Pieces that show the same: tiny pictures of four moments, a perceptual hash to find likely pairs, a check.

The hash is the sign of the low frequencies of each picture's cosine transform. It alone would call two takes of one
person in one room the same; so of each likely pair the tiny pictures are compared, and at no place and time may they
differ by more than what coding and scaling do. (Measured on real clips: the same one at three quarters of the size and
CRF 33 differs by 0.02 to 0.065, the next second of the same shot by 0.26 to 0.43.)
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

SIDE = 16
MOMENTS = 4
_LOW = 8  # frequencies to either side
_BITS = MOMENTS * _LOW * _LOW
_BANDS = 24  # of the bits, the lowest frequencies first
_SPAN = 219
_NOISE = 0.015  # difference that coding makes in any case

Thumbs = NDArray[np.uint8]
"""`moments side side`: brightness in limited range."""
Keys = list[tuple[int, bytes]]
"""Each band of a hash with its number."""


def thumb(luma: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A picture `h w` as means over a grid."""
    rows, columns = (_means(side) for side in luma.shape)
    return (rows @ luma.astype(np.float32) @ columns.T + 0.5).astype(np.uint8)


@cache
def _means(side: int) -> NDArray[np.float32]:
    """`SIDE side`: what makes a row of so many places the means of its stretches."""
    bounds = np.linspace(0, side, SIDE + 1).astype(int)
    places = np.arange(side)
    inside = (places >= bounds[:-1, None]) & (places < np.maximum(bounds[1:], bounds[:-1] + 1)[:, None])
    return (inside / inside.sum(axis=1, keepdims=True)).astype(np.float32)


def thumbs_of(lumas: Sequence[NDArray[np.uint8]]) -> Thumbs:
    """Four moments of a clip, evenly spread; of a picture four times the same."""
    chosen = np.linspace(0, len(lumas) - 1, MOMENTS).round().astype(int)
    made = {index: thumb(lumas[index]) for index in set(chosen.tolist())}
    return np.stack([made[index] for index in chosen.tolist()])


@cache
def _cosines() -> NDArray[np.float64]:
    places, waves = np.arange(SIDE) + 0.5, np.arange(_LOW)
    return np.cos(np.pi / SIDE * places * waves[:, None])


def perceptual_hash(thumbs: Thumbs) -> NDArray[np.bool_]:
    """256 bits, from low frequencies to high: which of each moment lie above its median."""
    waves = np.einsum("ua,tab,vb->tuv", _cosines(), thumbs.astype(np.float64), _cosines()).reshape(MOMENTS, -1)
    waves[:, 0] = 0.0  # how bright the picture is says nothing of what it shows
    bits = waves > np.median(waves, axis=1, keepdims=True)
    order = np.argsort(np.add.outer(np.arange(_LOW), np.arange(_LOW)).reshape(-1), kind="stable")
    return bits[:, order].T.reshape(-1)


def distance(one: Thumbs, other: Thumbs) -> float:
    """The largest difference at any place and moment, as a share of white."""
    return float(np.abs(one.astype(np.int16) - other.astype(np.int16)).max()) / _SPAN


def allowance(thumbs: Thumbs, threshold: float) -> float:
    """How much a piece may differ from this one and still be it. Of a calm piece no more than half of what moves in it:
    the next second of the same shot differs by little too, and is another piece."""
    moved = distance(thumbs[1:], thumbs[:-1])
    return threshold if moved == 0 else min(threshold, max(_NOISE, moved / 2))


class Duplicates:
    """The pieces so far, searched by bands of their hashes: likely are those that agree in a whole band. Hashes that
    differ in fewer bits than there are bands do for certain, those that differ in twice as many nearly always."""

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold
        self._names: list[int] = []
        self._thumbs: list[Thumbs] = []
        self._bands: dict[tuple[int, bytes], list[int]] = defaultdict(list)

    def admit(self, name: int, thumbs: Thumbs) -> int | None:
        """The first piece that shows the same; if there is none, this one is kept."""
        keys = _keys(thumbs)
        twin = self._find(thumbs, keys)
        if twin is None:
            self._add(name, thumbs, keys)
        return twin

    def find(self, thumbs: Thumbs) -> int | None:
        """The first piece that shows the same, if one does."""
        return self._find(thumbs, _keys(thumbs))

    def add(self, name: int, thumbs: Thumbs) -> None:
        """A piece that is kept."""
        self._add(name, thumbs, _keys(thumbs))

    def _find(self, thumbs: Thumbs, keys: Keys) -> int | None:
        limit = allowance(thumbs, self.threshold)
        likely = sorted({index for key in keys for index in self._bands.get(key, ())})
        for index in likely:
            if distance(self._thumbs[index], thumbs) <= limit:
                return self._names[index]
        return None

    def _add(self, name: int, thumbs: Thumbs, keys: Keys) -> None:
        for key in keys:
            self._bands[key].append(len(self._names))
        self._names.append(name)
        self._thumbs.append(thumbs)


def _keys(thumbs: Thumbs) -> Keys:
    bands = np.array_split(perceptual_hash(thumbs), _BANDS)
    return [(band, np.packbits(part).tobytes()) for band, part in enumerate(bands)]
