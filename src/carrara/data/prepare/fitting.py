"""From a source's picture to a bucket's: which size it goes to, scaled to cover it, the rest cut away evenly."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from carrara.data.prepare.reasons import Unfit
from carrara.data.prepare.settings import Settings

_ALIKE = 0.02  # shares of the picture kept that differ less count as equal, and the larger bucket wins


@dataclass(frozen=True)
class Fit:
    """A picture shown at `scaled` (width, height) pixels, of which a window of `size` from (left, top) stays."""

    size: tuple[int, int]
    scaled: tuple[int, int]
    left: int
    top: int
    kept: float


def fit(width: float, height: float, settings: Settings) -> Fit:
    """The bucket for an upright picture of square pixels, by its aspect first and its size second.

    Raises Unfit where every bucket would enlarge it or cut it too much.
    """
    said = f"{width:.0f}x{height:.0f}"
    scales = {size: max(size[0] / width, size[1] / height) for size in settings.sizes}
    small = {size: scale for size, scale in scales.items() if scale <= settings.most_upscaled}
    if not small:
        least = min(scales.values())
        raise Unfit(
            "too_small", f"{said} would be enlarged {least:.2f} times; at most {settings.most_upscaled:g} is allowed"
        )
    kept = {size: size[0] * size[1] / (width * height * scale * scale) for size, scale in small.items()}
    best = max(kept.values())
    if 1 - best > settings.most_cropped:
        raise Unfit(
            "shape", f"{1 - best:.0%} of {said} would be cut away; at most {settings.most_cropped:.0%} is allowed"
        )
    near = [size for size in kept if kept[size] >= best - _ALIKE]
    size = max(near, key=lambda size: (size[0] * size[1], kept[size]))
    # Even sides and offsets, for colour is stored at every second pixel.
    wide, high = (max(side, 2 * ceil(round(full * scales[size], 6) / 2)) for side, full in zip(size, (width, height)))
    return Fit(size, (wide, high), (wide - size[0]) // 4 * 2, (high - size[1]) // 4 * 2, kept[size])
