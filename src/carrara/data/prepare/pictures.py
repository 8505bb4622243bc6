"""Picture files: upright, without transparency, in sRGB numbers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from carrara.data.prepare.fitting import Fit
from carrara.data.prepare.reasons import Unfit


@contextmanager
def open_picture(file: BinaryIO, most_pixels: int) -> Iterator[Any]:
    """A picture whose header has been read, not yet its pixels. Raises Unfit for what is none or too large."""
    from PIL import Image

    with readable():
        image = Image.open(file)
    with image:
        if image.width * image.height > most_pixels:
            raise Unfit("too_large", f"it is {image.width}x{image.height}; at most {most_pixels} pixels are decoded")
        yield image


@contextmanager
def readable() -> Iterator[None]:
    """Whatever goes wrong within, a picture cannot be read: Unfit."""
    import warnings

    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of large and odd files; the limit here is our own
            yield
    except UnidentifiedImageError:
        raise Unfit("unreadable", "not a readable picture") from None
    except (OSError, SyntaxError, ValueError, EOFError, MemoryError, Image.DecompressionBombError) as error:
        raise Unfit("unreadable", f"not a readable picture ({error})") from None


def flat(image: Any) -> NDArray[np.uint8]:
    """Its pixels `h w 3`, upright; what is transparent lies on white, 16 bits become 8."""
    from PIL import Image, ImageOps

    image = ImageOps.exif_transpose(image) or image
    if image.mode.startswith("I"):  # 16 bits of grey, which Pillow would clip
        deep = np.asarray(image).astype(np.int64)
        image = Image.fromarray((deep >> 8 if deep.max(initial=0) > 255 else deep).clip(0, 255).astype(np.uint8))
    if "A" in image.getbands() or "transparency" in image.info:
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    return np.asarray(image.convert("RGB"))


def fitted(pixels: NDArray[np.uint8], fit: Fit) -> NDArray[np.uint8]:
    """The picture at its bucket's size."""
    from PIL import Image

    scaled = np.asarray(Image.fromarray(pixels).resize(fit.scaled, Image.Resampling.BICUBIC, reducing_gap=3.0))
    width, height = fit.size
    return scaled[fit.top : fit.top + height, fit.left : fit.left + width]
