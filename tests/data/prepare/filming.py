"""Small films of known shots, and files that are odd in one known way."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

Frames = NDArray[np.uint8]


def shot(seed: int, frames: int, height: int = 48, width: int = 64, pan: float = 1.0) -> Frames:
    """A coloured texture, one for each seed, over which the camera pans by so many pixels a frame: `t h w 3`."""
    draw = np.random.default_rng(seed)
    wide = width + int(abs(pan) * frames) + 16
    grid = draw.integers(0, 256, (height // 16 + 2, wide // 16 + 2, 3)).astype(np.float64)
    rows, columns = np.arange(height) / 16, np.arange(wide) / 16
    top, left = rows.astype(int), columns.astype(int)
    down, across = (rows - top)[:, None, None], (columns - left)[None, :, None]
    upper = grid[top][:, left] * (1 - across) + grid[top][:, left + 1] * across
    lower = grid[top + 1][:, left] * (1 - across) + grid[top + 1][:, left + 1] * across
    texture = (upper * (1 - down) + lower * down).round().astype(np.uint8)
    starts = [round(abs(pan) * index) for index in range(frames)]
    return np.stack([texture[:, start : start + width] for start in (starts if pan >= 0 else starts[::-1])])


def write(
    path: Path,
    frames: Sequence[NDArray[np.uint8]] | Frames,
    fps: float = 16,
    *,
    codec: str = "libx264",
    pts: Sequence[int] | None = None,
    base: Fraction | None = None,
    pix_fmt: str = "yuv420p",
    aspect: Fraction | None = None,
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
    before: Any = None,
) -> Path:
    """Write a film. pts: times in units of `base`; before: called with the stream before the first frame."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rate = Fraction(fps).limit_denominator(1001)
    with av.open(str(path), "w", options=container_options or {}) as container:
        stream: Any = container.add_stream(codec, rate=rate, options=options or {})
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = pix_fmt
        stream.codec_context.thread_count = 1
        if codec == "libx264" and not options:
            stream.options = {"crf": "10", "preset": "ultrafast"}
        if base is not None:
            stream.codec_context.time_base = base
        if aspect is not None:
            stream.codec_context.sample_aspect_ratio = aspect
        if before is not None:
            before(stream)
        for index, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            frame.pts = index if pts is None else pts[index]
            frame.time_base = base or 1 / rate
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path
