"""Small pictures put together: frames enlarged, rows with a caption, heat maps, a box around a patch.

All pictures are uint8 `h w 3`, all films uint8 `t h w 3`; lengths are pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from einops import repeat
from torch import Tensor

GAP = 4
_PAPER, _INK = 255, (40, 40, 40)
_TEXT, _LINE = 12, 14  # size of the letters, height of a line
_HEAT = ((0, 0, 8), (70, 10, 95), (165, 35, 95), (225, 85, 40), (250, 165, 10), (255, 250, 170))  # dark to bright
_BOX = (60, 255, 80)


def enlarge(frames: Tensor, width: int) -> Tensor:
    """Frames `... h w 3` by the largest whole factor that stays within `width`, pixels repeated; none are shrunk."""
    factor = max(1, width // frames.shape[-2])
    return repeat(frames, "... h w c -> ... (h i) (w j) c", i=factor, j=factor)


def beside(pictures: Sequence[Tensor], gap: int = GAP) -> Tensor:
    """Pictures or films `... h w 3` of one height from left to right, white between them."""
    space = pictures[0].new_full((*pictures[0].shape[:-2], gap, 3), _PAPER)
    return torch.cat([part for picture in pictures for part in (space, picture)][1:], dim=-2)


def above(pictures: Sequence[Tensor], gap: int = GAP) -> Tensor:
    """Pictures or films from top to bottom, the narrower ones filled up with white."""
    width = max(picture.shape[-2] for picture in pictures)
    filled = [
        torch.cat((picture, picture.new_full((*picture.shape[:-2], width - picture.shape[-2], 3), _PAPER)), dim=-2)
        for picture in pictures
    ]
    space = filled[0].new_full((*filled[0].shape[:-3], gap, width, 3), _PAPER)
    return torch.cat([part for picture in filled for part in (space, picture)][1:], dim=-3)


def caption(text: str, width: int) -> Tensor:
    """Text on white, `h width 3`, in as many lines as it takes."""
    from PIL import Image, ImageDraw

    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        lines = [*lines[:-1], longer] if _font().getlength(longer) < width - 2 or not lines[-1] else [*lines, word]
    image = Image.new("RGB", (width, len(lines) * _LINE + 4), (_PAPER,) * 3)
    draw = ImageDraw.Draw(image)
    for number, line in enumerate(lines):
        draw.text((1, 1 + number * _LINE), line, fill=_INK, font=_font())
    return torch.from_numpy(np.array(image))


def captioned(picture: Tensor, text: str) -> Tensor:
    """A picture `h w 3` or film `t h w 3` under a text."""
    line = caption(text, picture.shape[-2])
    return torch.cat((line.expand(*picture.shape[:-3], -1, -1, -1), picture), dim=-3)


def even(film: Tensor) -> Tensor:
    """A film with even sides, as H.264 wants them: white pixels at the right and at the bottom."""
    t, h, w, _ = film.shape
    padded = film.new_full((t, h + h % 2, w + w % 2, 3), _PAPER)
    padded[:, :h, :w] = film
    return padded


def heat(values: Tensor) -> Tensor:
    """Values in [0, 1] as colours, `... -> ... 3` uint8: black, purple, orange, pale yellow; brighter is more."""
    stops = torch.tensor(_HEAT, dtype=torch.float32, device=values.device)
    place = values.float().clamp(0, 1) * (len(stops) - 1)
    low = place.floor().long().clamp_max(len(stops) - 2)
    return torch.lerp(stops[low], stops[low + 1], (place - low)[..., None]).round().to(torch.uint8)


def overlay(frames: Tensor, values: Tensor) -> Tensor:
    """A heat map over frames `t h w 3`: values `t r c` in [0, 1], each over its rectangle of the frame, which stays
    visible in grey."""
    height, width = frames.shape[1] // values.shape[1], frames.shape[2] // values.shape[2]
    values = repeat(values, "t r c -> t (r i) (c j)", i=height, j=width)
    grey = repeat(frames.float().mean(-1), "t h w -> t h w c", c=3)
    return (0.45 * grey + 0.55 * heat(values).float()).round().to(torch.uint8)


def boxed(frame: Tensor, top: int, left: int, height: int, width: int, line: int = 2) -> Tensor:
    """A frame `h w 3` with a green box drawn just inside this rectangle."""
    frame = frame.clone()
    window = frame[top : top + height, left : left + width]
    for edge in (window[:line], window[-line:], window[:, :line], window[:, -line:]):
        edge[:] = torch.tensor(_BOX, dtype=frame.dtype, device=frame.device)
    return frame


def strip(frames: Tensor, gap: int = 2) -> Tensor:
    """Frames `t h w 3` side by side."""
    return beside(list(frames), gap)


@lru_cache(maxsize=1)
def _font() -> Any:
    from PIL import ImageFont

    return ImageFont.load_default(_TEXT)
