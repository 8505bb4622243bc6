"""Decoded frames as planes of a bucket's size in BT.709 limited range, and as small pictures for finding cuts.

One pass of the scaler from the decoded frame to the piece: no RGB in between where the source is BT.709 already.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from carrara.core.mp4 import matrix_of
from carrara.data.prepare.fitting import Fit
from carrara.data.prepare.orientation import Orientation
from carrara.data.prepare.settings import Settings
from carrara.data.prepare.shots import Small

Planes = NDArray[np.uint8]
"""A frame as the encoder takes it: for 4:2:0 `h * 3/2, w` (Y, then U and V packed), for 4:4:4 `3 h w`."""

SMALL = (64, 36)  # width and height of the pictures that are compared
_BT709, _LIMITED = 1, 1  # ITU-T H.273; FFmpeg's code for the range
_FULL = 2


class Converter:
    """Holds the scalers, which are set up once for each kind of source."""

    def __init__(self, settings: Settings) -> None:
        from av.video.reformatter import Interpolation, VideoReformatter

        self.format = f"yuv{settings.chroma}p"
        self._half = 2 if settings.chroma == 420 else 1
        self._scaler, self._shrinker, self._sketcher = (VideoReformatter() for _ in range(3))
        self._fine, self._coarse = Interpolation.BICUBIC, Interpolation.AREA
        # The scaler's fast arithmetic darkens by one to two levels where matrix or range change.
        self._exact = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.BITEXACT

    def small(self, frame: Any) -> Small:
        """`3 h w`: Y, U, V of the whole picture, tiny, in limited range."""
        tiny = self._shrinker.reformat(
            frame,
            *SMALL,
            "yuv444p",
            interpolation=self._coarse,
            src_color_range=_range(frame),
            dst_color_range=_LIMITED,
            threads=1,
        )
        return np.stack(planes_of(tiny)).astype(np.int16)

    def planes(self, frame: Any, fit: Fit, turn: Orientation) -> Planes:
        """The frame upright at its bucket's size."""
        wide, high = fit.scaled
        scaled = self._scaler.reformat(
            frame,
            high if turn.swap else wide,
            wide if turn.swap else high,
            self.format,
            src_colorspace=matrix_of(frame),
            dst_colorspace=_BT709,
            src_color_range=_range(frame),
            dst_color_range=_LIMITED,
            interpolation=self._fine if _is_bt709(frame) else self._exact,
            threads=1,
        )
        width, height = fit.size
        cut = [
            turn(plane)[fit.top // part : (fit.top + height) // part, fit.left // part : (fit.left + width) // part]
            for plane, part in zip(planes_of(scaled), (1, self._half, self._half))
        ]
        packed = np.concatenate([plane.reshape(-1) for plane in cut])
        return packed.reshape((3, height, width) if self._half == 1 else (height * 3 // 2, width))

    def frame(self, planes: Planes) -> Any:
        """The planes as a frame again, tagged."""
        import av

        frame = av.VideoFrame.from_ndarray(planes, format=self.format)
        frame.colorspace, frame.color_range = _BT709, _LIMITED
        return frame

    def pixels(self, planes: Planes, height: int) -> NDArray[np.uint8]:
        """The planes as a small sRGB picture `h w 3`, so many pixels high."""
        frame = self.frame(planes)
        rgb = self._sketcher.reformat(
            frame,
            max(1, round(frame.width * height / frame.height)),
            height,
            "rgb24",
            dst_color_range=_FULL,
            interpolation=self._coarse,
            threads=1,
        )
        return np.asarray(rgb.to_ndarray(), np.uint8)

    def luma(self, planes: Planes) -> NDArray[np.uint8]:
        """Brightness `h w` in limited range."""
        return planes[0] if self._half == 1 else planes[: planes.shape[0] * 2 // 3]


def planes_of(frame: Any) -> list[NDArray[np.uint8]]:
    """The planes of a planar 8-bit frame, `h w` each, without a copy."""
    rows = []
    for plane in frame.planes:
        lines = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)
        rows.append(lines[: plane.height, : plane.width])
    return rows


def _is_bt709(frame: Any) -> bool:
    """Whether its planes need no other colours."""
    return (
        frame.format.name == "yuv420p"
        and (matrix_of(frame) or frame.colorspace) == _BT709
        and frame.color_range < _FULL
    )


def _range(frame: Any) -> int | None:
    """What the frame says; FFmpeg itself knows that yuvj formats and RGB are full."""
    return frame.color_range or None
