"""GIF, animated WebP and PNG contact sheets through Pillow.

Pillow and libwebp merge equal neighbours into one picture of longer duration, so reading counts time, not pictures.
"""

from __future__ import annotations

from collections.abc import Callable
from math import ceil, sqrt
from pathlib import Path
from typing import Any

import numpy as np

from carrara.core.media import Record, check_limits

_GAP = 2  # white pixels between the frames of a contact sheet
_PALETTE_FRAMES = 16  # how many frames, evenly spread, choose a GIF's colours
_TICK = {".gif": 100, ".webp": 1000}  # how many units of duration make a second
_IMAGE_DESCRIPTION = 0x010E  # EXIF


def write(path: Path, frames: np.ndarray, fps: float, record: Record) -> None:
    """Write uint8 `t h w 3` as .gif, .webp or .png (a contact sheet), with the record in the comment field."""
    from PIL import Image, PngImagePlugin

    suffix = path.suffix
    if suffix == ".png":
        info = PngImagePlugin.PngInfo()
        info.add_text("Comment", record.pack(ascii_only=True))
        Image.fromarray(arrange(frames)).save(path, pnginfo=info, optimize=True)
        return
    ends = _ends(len(frames), fps, _TICK[suffix])
    durations = [(end - start) * 1000 // _TICK[suffix] for start, end in zip([0, *ends], ends)]
    images = [Image.fromarray(frame) for frame in frames]
    if suffix == ".gif":
        chosen = frames[np.linspace(0, len(frames) - 1, min(len(frames), _PALETTE_FRAMES)).round().astype(int)]
        stacked = Image.fromarray(np.ascontiguousarray(chosen.reshape(-1, *chosen.shape[2:])))
        palette = stacked.quantize(256, method=Image.Quantize.MEDIANCUT)
        # One palette and no dithering: still surfaces do not flicker.
        images = [image.quantize(palette=palette, dither=Image.Dither.NONE) for image in images]
        options: dict[str, Any] = {"comment": record.pack(ascii_only=True).encode(), "loop": 0, "optimize": False}
    else:
        exif = Image.Exif()
        exif[_IMAGE_DESCRIPTION] = record.pack(ascii_only=True)
        options = {"exif": exif, "loop": 0, "quality": 92, "method": 4}
    images[0].save(path, save_all=True, append_images=images[1:], duration=durations, **options)


def read(path: Path, max_frames: int, max_bytes: int) -> tuple[np.ndarray, float, dict[str, str]]:
    """Read a picture file: (uint8 `t h w 3`, frames per second, metadata). A still picture is one frame."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            count = getattr(image, "n_frames", 1)
            check_limits(path, count, image.width * image.height * 3, max_frames, max_bytes)
            if image.format == "GIF" and not path.read_bytes().endswith(b";"):
                raise ValueError(f"{path}: damaged, its end is missing; copy it again")
            pixels, durations = [], []
            for index in range(count):
                image.seek(index)
                upright = ImageOps.exif_transpose(image) or image
                pixels.append(np.asarray(upright.convert("RGB")))
                durations.append(int(image.info.get("duration", 0)))
            record = Record.unpack(_comment(image))
            tags = {str(key): value for key, value in image.info.items() if isinstance(value, str)}
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path}: not a readable picture, or damaged ({error})") from None
    if record and count == 1 and path.suffix.lower() == ".png":
        return _cut(pixels[0], record), record.fps, dict(record.metadata)

    def check(frames: int) -> None:
        check_limits(path, frames, pixels[0].nbytes, max_frames, max_bytes)

    which, fps = _in_time(durations, record, _TICK.get(path.suffix.lower(), 1000), check)
    return np.stack(pixels)[which], fps, dict(record.metadata) if record else tags


def arrange(frames: np.ndarray, columns: int | None = None) -> np.ndarray:
    """Frames `t h w 3` in reading order as one picture, by default about as wide as high."""
    count, height, width, _ = frames.shape
    if columns is not None and columns < 1:
        raise ValueError(f"columns={columns}: must be at least 1")
    columns = min(count, columns or _columns(count, height, width))
    rows = ceil(count / columns)
    sheet = np.full((rows * (height + _GAP) - _GAP, columns * (width + _GAP) - _GAP, 3), 255, np.uint8)
    for index, frame in enumerate(frames):
        top, left = index // columns * (height + _GAP), index % columns * (width + _GAP)
        sheet[top : top + height, left : left + width] = frame
    return sheet


def _columns(count: int, height: int, width: int) -> int:
    """Near a square; of the counts near it, the one that leaves the fewest places empty."""
    middle = max(1, round(sqrt(count * height / width)))
    near = range(max(1, middle - 1), middle + 2)
    return min(near, key=lambda columns: (-count % columns, abs(columns - middle)))


def _cut(sheet: np.ndarray, record: Record) -> np.ndarray:
    shape = record.shape
    columns = (sheet.shape[1] + _GAP) // (shape.width + _GAP)
    if (
        columns < 1
        or sheet.shape != arrange(np.zeros((shape.frames, shape.height, shape.width, 3), np.uint8), columns).shape
    ):
        return sheet[None]  # cropped or scaled since: an ordinary picture
    places = [
        (index // columns * (shape.height + _GAP), index % columns * (shape.width + _GAP))
        for index in range(shape.frames)
    ]
    return np.stack([sheet[top : top + shape.height, left : left + shape.width] for top, left in places])


def _ends(count: int, fps: float, tick: int) -> list[int]:
    """When each frame ends, in whole ticks: rounding never adds up."""
    return [max(round((index + 1) * tick / fps), index + 1) for index in range(count)]


def _in_time(
    durations: list[int], record: Record | None, tick: int, check: Callable[[int], None]
) -> tuple[np.ndarray, float]:
    """Pictures with durations in ms as frames at one rate, merged ones taken apart again: (which picture, rate).

    check: refuses so many frames (ValueError); it is asked before anything of that length is made.
    """
    count, ends = len(durations), np.cumsum(durations)
    if record:
        check(record.shape.frames)
        wanted = [end * 1000 // tick for end in _ends(record.shape.frames, record.fps, tick)]
        if count == 1 or (count <= len(wanted) and abs(int(ends[-1]) - wanted[-1]) <= 1000 // tick):
            return np.minimum(np.searchsorted(ends, wanted), count - 1), record.fps
    shortest, longest = min(durations), max(durations)
    if shortest <= 0:
        return np.arange(count), 10.0 if count > 1 else 1.0  # players show frames without duration at about 10 a second
    if longest - shortest <= 1000 // tick:  # one rate, rounded
        return np.arange(count), count * 1000 / int(ends[-1])
    check(int(ends[-1]) // shortest)
    middles = (np.arange(int(ends[-1]) // shortest) + 0.5) * shortest
    return np.minimum(np.searchsorted(ends, middles), count - 1), 1000 / shortest


def _comment(image: Any) -> str | None:
    text = image.info.get("Comment") or image.info.get("comment") or image.getexif().get(_IMAGE_DESCRIPTION)
    return text.decode("utf-8", "replace") if isinstance(text, bytes) else text
