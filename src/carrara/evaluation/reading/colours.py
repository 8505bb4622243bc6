"""Colours as an eye tells them apart: CIELAB arrays, and which of the pond's colours a region is painted in.

An actor is its own colour times a shade between about 0.9 and 1.15 (lighter on top), plus a darker edge and a mark. So
a colour here is the short line of its shades in CIELAB, and a region has the colour whose line most of its pixels are
near.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from carrara.data.pond.world import COLOURS

Array = NDArray[np.float32]

NAMES = tuple(COLOURS)
SHADES = (0.9, 1.0, 1.1)
NEAR = 22.0  # CIELAB units between a pixel and a colour's shades that still count; colours are at least 30 apart

_MATRIX = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]],
    np.float32,
)
_WHITE = np.array([0.95047, 1.0, 1.08883], np.float32)


@lru_cache(maxsize=1)
def _linear() -> Array:
    value = np.arange(256, dtype=np.float32) / 255
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4).astype(np.float32)


def to_lab(rgb: NDArray[np.uint8]) -> Array:
    """sRGB uint8 `... 3` to CIELAB under D65 float32 `... 3` (IEC 61966-2-1, CIE 15)."""
    xyz = _linear()[rgb] @ _MATRIX.T / _WHITE
    f = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
    x, y, z = f[..., 0], f[..., 1], f[..., 2]
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1).astype(np.float32)


@lru_cache(maxsize=1)
def shades() -> Array:
    """CIELAB of every colour's shades, `colours shades 3`."""
    rgb = np.array(list(COLOURS.values()), float)[:, None] * np.array(SHADES)[None, :, None]
    return to_lab(np.clip(np.rint(rgb), 0, 255).astype(np.uint8))


def distances(lab: Array) -> Array:
    """How far CIELAB values `n 3` are from the colours: `n colours`, to the nearest shade of each."""
    return np.linalg.norm(lab[:, None, None] - shades()[None], axis=-1).min(axis=2)


def shares(lab: Array) -> NDArray[np.float64]:
    """The share of pixels `n 3` that each colour is the nearest of and near, `colours`; zero where nothing is near."""
    if not len(lab):
        return np.zeros(len(NAMES))
    far = distances(lab)
    nearest = far.argmin(axis=1)
    return np.bincount(nearest[far.min(axis=1) < NEAR], minlength=len(NAMES)) / len(lab)


def name_colour(share: NDArray[np.float64], least: float = 0.2) -> str | None:
    """The colour with the largest share, None where even that is too little to be a reading."""
    best = int(share.argmax())
    return NAMES[best] if share[best] >= least else None
