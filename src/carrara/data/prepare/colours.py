"""The colours of a picture in planes: from the matrix and range of its source to BT.709 in limited range.

Not standard: no RGB in between. Brightness and the two colour differences of one matrix are an affine function of those
of any other, so that nothing is clipped on the way, and colours at half the resolution are converted there, where there
are a quarter as many. FFmpeg's scaler goes through RGB, and its fast arithmetic darkens by one to two levels by that.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from carrara.core.mp4 import matrix_of

Plane = NDArray[np.uint8]

BT709, LIMITED, FULL = 1, 1, 2  # ITU-T H.273; FFmpeg's codes for the ranges
_WEIGHTS = {  # of red and blue in brightness, ITU-T H.273 table 4
    BT709: (0.2126, 0.0722),
    4: (0.30, 0.11),
    5: (0.299, 0.114),
    6: (0.299, 0.114),
    7: (0.212, 0.087),
    9: (0.2627, 0.0593),
}
_PARTS = 64  # of a step of brightness, in 16 bits
_PLANAR = ("yuv4", "yuvj4", "yuva4", "nv12", "nv21", "p010", "p016")  # how names of such formats begin


@dataclass(frozen=True)
class Colours:
    """How a source codes colours: matrix by its number in H.273; full: black is 0 and white 255, not 16 and 235."""

    matrix: int
    full: bool

    @property
    def wanted(self) -> bool:
        """Whether they are what is written."""
        return self == Colours(BT709, False)


def colours_of(frame: Any) -> Colours | None:
    """Those of a decoded frame; None for what has no such planes (RGB, grey) or a matrix that is none."""
    matrix = matrix_of(frame) or int(frame.colorspace)
    name = frame.format.name
    if matrix not in _WEIGHTS or not name.startswith(_PLANAR):
        return None
    return Colours(matrix, frame.color_range == FULL or name.startswith("yuvj"))


@cache
def conversion(colours: Colours) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """A matrix 3 x 3 and an offset: what is wanted of (Y, U, V) 0 to 255, as m @ yuv + offset."""
    linear = _from_rgb(BT709) @ np.linalg.inv(_from_rgb(colours.matrix))
    wide, centre = _scales(colours.full)
    narrow, goal = _scales(False)
    whole = narrow[:, None] * linear / wide
    return whole.astype(np.float32), (goal - whole @ centre).astype(np.float32)


def _from_rgb(matrix: int) -> NDArray[np.float64]:
    """Y in [0, 1], Cb and Cr in [-0.5, 0.5] of RGB in [0, 1]."""
    red, blue = _WEIGHTS[matrix]
    y = np.array([red, 1 - red - blue, blue])
    cb, cr = (np.array([0, 0, 1]) - y) / (2 - 2 * blue), (np.array([1, 0, 0]) - y) / (2 - 2 * red)
    return np.stack([y, cb, cr])


def _scales(full: bool) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Steps from the least to the largest, and the code of nothing."""
    if full:
        return np.array([255.0, 255, 255]), np.array([0.0, 128, 128])
    return np.array([219.0, 224, 224]), np.array([16.0, 128, 128])


def convert(colours: Colours, source: list[Plane], target: list[Plane]) -> None:
    """Planes Y, U, V into others of their sizes, or themselves; U and V are as large as Y, or half as wide and high."""
    if colours.wanted:
        for one, other in zip(source, target):
            other[:] = one
        return
    tables = _tables(colours)
    pair = source[1].astype(np.intp)  # U and V as one number
    pair <<= 8
    pair |= source[2]
    y = source[0].astype(np.int16)
    y *= tables.slope
    _add(y, tables.tints.take(pair))
    y >>= _PARTS.bit_length() - 1
    _store(y, target[0])
    for table, plane in zip(tables.colours, target[1:]):
        plane[:] = table.take(pair)


@dataclass(frozen=True, eq=False)
class _Tables:
    """What `conversion` makes of every pair of U and V, `65536` by 256 U + V.

    slope: of brightness, in parts; tints: what is added to it, int16 in parts, twice in 32 bits; colours: U and V.
    """

    slope: int
    tints: NDArray[np.int32]
    colours: tuple[Plane, Plane]


@cache
def _tables(colours: Colours) -> _Tables:
    matrix, offset = conversion(colours)
    u, v = (code.reshape(-1) for code in np.indices((256, 256)).astype(np.float32))
    made = (np.empty(u.shape, np.uint8), np.empty(u.shape, np.uint8))
    for number, table in enumerate(made, 1):
        _store(matrix[number, 1] * u + matrix[number, 2] * v + (offset[number] + 0.5), table)
    slope = round(_PARTS * float(matrix[0, 0]))
    middle = (_PARTS * float(matrix[0, 0]) - slope) * 128  # so that the rounded slope is off by at most 0.1 anywhere
    tint = np.rint(_PARTS * (matrix[0, 1] * u + matrix[0, 2] * v + (offset[0] + 0.5)) + middle).astype(np.int16)
    return _Tables(slope, np.repeat(tint, 2).view(np.int32), made)


def _add(y: NDArray[np.int16], tints: NDArray[np.int32]) -> None:
    """To each place what belongs to its colour, which is as large, or half as large to either side."""
    twice = tints.view(np.int16)
    if tints.shape == y.shape:
        y += twice[:, ::2]
        return
    paired = y.reshape(len(tints), 2, -1)  # a view: two rows for each of colour
    paired += twice[:, None]


def _store(values: NDArray[np.float32] | NDArray[np.int16], to: Plane) -> None:
    """Without what lies beyond; changes the values."""
    np.clip(values, 0, 255, out=values)
    np.copyto(to, values, casting="unsafe")
