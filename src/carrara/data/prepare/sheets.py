"""Small pictures of clips, for people and for captioners."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from carrara.core.pictures import arrange

_HEIGHT = 96  # pixels of a frame in a strip
_MOST = 1 << 20  # pieces are our own, of a size that fits


def strip(frames: Sequence[NDArray[np.uint8]], height: int = _HEIGHT) -> NDArray[np.uint8]:
    """Frames `h w 3` side by side, small."""
    from PIL import Image

    high, wide = frames[0].shape[:2]
    size = (max(1, round(wide * height / high)), height)
    small = [np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BOX)) for frame in frames]
    return arrange(np.stack(small), len(small))


def jpeg(image: NDArray[np.uint8]) -> bytes:
    """A picture `h w 3` as a small file; equal pictures give equal bytes."""
    from PIL import Image

    packed = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(packed, "JPEG", quality=82)
    return packed.getvalue()


def save_jpeg(path: Path, image: NDArray[np.uint8]) -> None:
    """Write one."""
    path.write_bytes(jpeg(image))


def frames_of(path: Path, count: int) -> list[NDArray[np.uint8]]:
    """Some frames of a piece, evenly spread, `h w 3`; of a picture the one there is."""
    from carrara.core import mp4, pictures  # not core/media.py, which would wait for torch

    read = pictures.read if path.suffix == ".png" else mp4.read
    frames = read(path, _MOST, _MOST * _MOST)[0]
    return [frames[index] for index in np.linspace(0, len(frames) - 1, min(count, len(frames))).round().astype(int)]
