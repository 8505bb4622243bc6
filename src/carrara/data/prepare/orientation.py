"""Which way up a picture is: the eight turns and flips that a display matrix can ask for.

FFmpeg reports the matrix beside each frame and decodes without applying it. Row-major 3 x 3 in 16.16 fixed point: a
pixel (x, y) is shown at (a x + c y, b x + d y) with the entries a b . / c d . / . . . (ISO/IEC 14496-12, 8.3.2.3).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Orientation:
    """swap: rows become columns; then flips across and down."""

    swap: bool = False
    across: bool = False
    down: bool = False

    def __call__(self, plane: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """A plane `h w` or pixels `h w c`, upright (a view)."""
        plane = np.swapaxes(plane, 0, 1) if self.swap else plane
        return plane[:: -1 if self.down else 1, :: -1 if self.across else 1]


def from_matrix(matrix: bytes) -> Orientation:
    """The nearest of the eight; an empty or degenerate matrix turns nothing."""
    if len(matrix) < 36:
        return Orientation()
    a, b, _, c, d = np.frombuffer(matrix, "<i4", 5).astype(np.int64).tolist()
    if abs(a) + abs(d) >= abs(b) + abs(c):
        return Orientation(False, a < 0, d < 0)
    return Orientation(True, c < 0, b < 0)


def orientation(frame: Any) -> Orientation:
    """What a decoded frame asks for."""
    for data in frame.side_data:
        if data.type.name == "DISPLAYMATRIX":
            return from_matrix(bytes(data))
    return Orientation()
