"""Clips as pictures for a report: some frames side by side, small."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from carrara.core.pictures import arrange

SIDE = 128  # pixels: the tallest that a frame is shown


def strip(frames: NDArray[np.uint8], count: int = 6) -> NDArray[np.uint8]:
    """Some frames of `t h w 3`, evenly spread, the first and the last among them, as one picture `H W 3`."""
    from PIL import Image

    chosen = frames[np.linspace(0, len(frames) - 1, min(count, len(frames))).round().astype(int)]
    height, width = chosen.shape[1:3]
    if height > SIDE:
        size = (max(1, round(width * SIDE / height)), SIDE)
        chosen = np.stack([np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BOX)) for frame in chosen])
    return arrange(chosen, len(chosen))
