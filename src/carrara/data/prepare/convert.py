"""Decoded frames as pictures of a bucket's size in BT.709 limited range, and as small pictures for finding cuts.

One pass of the scaler in the source's own colours, then those of the small picture are converted; no RGB in between
where the source has none.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from carrara.core.mp4 import matrix_of
from carrara.data.prepare.colours import BT709, FULL, LIMITED, Colours, Plane, colours_of, convert
from carrara.data.prepare.fitting import Fit
from carrara.data.prepare.orientation import Orientation
from carrara.data.prepare.settings import Settings
from carrara.data.prepare.shots import Small

SMALL = (64, 36)  # width and height of the pictures that are compared
_PLAIN = Orientation()


class Converter:
    """Holds the scalers, which are set up once for each kind of source."""

    def __init__(self, settings: Settings) -> None:
        from av.video.reformatter import Interpolation, VideoReformatter

        self.format = f"yuv{settings.chroma}p"
        self._parts = (1, 2, 2) if settings.chroma == 420 else (1, 1, 1)
        self._scaler, self._shrinker, self._sketcher = (VideoReformatter() for _ in range(3))
        self._fine, self._coarse = Interpolation.BICUBIC, Interpolation.AREA
        # The scaler's fast arithmetic darkens by one to two levels where it changes matrix or range.
        self._exact = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.BITEXACT

    def small(self, frame: Any) -> Small:
        """`3 h w`: Y, U, V of the whole picture, tiny, in limited range."""
        tiny = self._shrinker.reformat(
            frame,
            *SMALL,
            "yuv444p",
            interpolation=self._coarse,
            src_color_range=_range(frame),
            dst_color_range=LIMITED,
            threads=1,
        )
        return np.stack(planes_of(tiny), dtype=np.int16)

    def picture(self, frame: Any, fit: Fit, turn: Orientation) -> Any:
        """The frame upright at its bucket's size, as the encoder takes it: a tagged frame of `format`."""
        own = colours_of(frame)
        high, wide = fit.scaled if turn.swap else fit.scaled[::-1]
        if own is None:  # no planes to convert afterwards: the scaler makes the wanted ones
            matrices, ranges, how = (matrix_of(frame), BT709), (_range(frame), LIMITED), self._exact
            own = Colours(BT709, False)
        else:
            kept = FULL if own.full else LIMITED
            matrices, ranges, how = (own.matrix, own.matrix), (kept, kept), self._fine
        scaled = self._scaler.reformat(
            frame,
            wide,
            high,
            self.format,
            src_colorspace=matrices[0],
            dst_colorspace=matrices[1],
            src_color_range=ranges[0],
            dst_color_range=ranges[1],
            interpolation=how,
            threads=1,
        )
        finished = self._finished(scaled, own, fit, turn, scaled is frame)
        finished.colorspace, finished.color_range = BT709, LIMITED
        return finished

    def _finished(self, scaled: Any, own: Colours, fit: Fit, turn: Orientation, borrowed: bool) -> Any:
        """Turned, cut to size, in the wanted colours; in place where it is of its size, and nobody else's."""
        planes = planes_of(scaled)
        if turn == _PLAIN and fit.size == fit.scaled and not borrowed:
            if not own.wanted:
                convert(own, planes, planes)
            return scaled
        import av

        width, height = fit.size
        cut = [
            turn(plane)[fit.top // part : (fit.top + height) // part, fit.left // part : (fit.left + width) // part]
            for plane, part in zip(planes, self._parts)
        ]
        finished = av.VideoFrame(width, height, self.format)
        convert(own, cut, planes_of(finished))
        return finished

    def pixels(self, picture: Any, height: int) -> NDArray[np.uint8]:
        """A finished picture in sRGB `h w 3`, so many pixels high."""
        rgb = self._sketcher.reformat(
            picture,
            max(1, round(picture.width * height / picture.height)),
            height,
            "rgb24",
            dst_color_range=FULL,
            interpolation=self._coarse,
            threads=1,
        )
        return np.asarray(rgb.to_ndarray(), np.uint8)


def luma_of(picture: Any) -> Plane:
    """Brightness `h w` of a finished picture, in limited range, without a copy."""
    return planes_of(picture)[0]


def planes_of(frame: Any) -> list[Plane]:
    """The planes of a planar 8-bit frame, `h w` each, without a copy."""
    rows = []
    for plane in frame.planes:
        lines = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)
        rows.append(lines[: plane.height, : plane.width])
    return rows


def _range(frame: Any) -> int | None:
    """What the frame says; FFmpeg itself knows that yuvj formats and RGB are full."""
    return frame.color_range or None
