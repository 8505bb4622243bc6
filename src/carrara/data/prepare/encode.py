"""Pieces as near-lossless H.264 in MP4: BT.709 limited range, tagged; equal frames give equal bytes."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

from carrara.data.prepare.convert import Converter, Planes

# As in core/mp4.py, mbtree=0 because x264's bytes differ from run to run for small frames otherwise. One thread per
# process: files are prepared side by side.
OPTIONS = {"crf": "10", "preset": "veryfast", "x264-params": "mbtree=0"}
_BT709, _LIMITED = 1, 1


def encode(path: Path, frames: Sequence[Planes], size: tuple[int, int], fps: float, converter: Converter) -> None:
    """Write these frames; size is (width, height)."""
    import av

    rate = Fraction(fps).limit_denominator(1001)
    with av.open(str(path), "w", format="mp4", options={"fflags": "+bitexact"}) as container:
        stream: Any = container.add_stream("libx264", rate=rate, options=OPTIONS)
        stream.width, stream.height, stream.pix_fmt = *size, converter.format
        codec = stream.codec_context
        codec.thread_count = 1
        codec.color_range, codec.colorspace = _LIMITED, _BT709
        codec.color_primaries, codec.color_trc = _BT709, _BT709
        for index, planes in enumerate(frames):
            frame = converter.frame(planes)
            frame.pts, frame.time_base = index, 1 / rate
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
