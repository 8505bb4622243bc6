"""Pieces as near-lossless H.264 in MP4: BT.709 limited range, tagged; equal frames give equal bytes."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

from carrara.data.prepare.colours import BT709, LIMITED

# As in core/mp4.py, mbtree=0 because x264's bytes differ from run to run for small frames otherwise. One thread per
# process: files are prepared side by side.
OPTIONS = {"crf": "10", "preset": "veryfast", "x264-params": "mbtree=0"}


def encode(path: Path, frames: Sequence[Any], fps: float) -> None:
    """Write these frames, tagged `av.VideoFrame`s of one size and format, which are given times by that."""
    import av

    rate = Fraction(fps).limit_denominator(1001)
    step = 1 / rate
    with av.open(str(path), "w", format="mp4", options={"fflags": "+bitexact"}) as container:
        stream: Any = container.add_stream("libx264", rate=rate, options=OPTIONS)
        stream.width, stream.height, stream.pix_fmt = frames[0].width, frames[0].height, frames[0].format.name
        codec = stream.codec_context
        codec.thread_count = 1
        codec.color_range, codec.colorspace = LIMITED, BT709
        codec.color_primaries, codec.color_trc = BT709, BT709
        for index, frame in enumerate(frames):
            frame.pts, frame.time_base = index, step
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    del container, stream, codec
    gc.collect(0)  # they are a cycle, and hold megabytes of which the collector does not know
