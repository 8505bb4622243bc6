"""What the stages of a system of pixels are shown of prepared clips: pieces at a stage's own size and rate.

One prepared folder serves all stages: of a clip every so-manieth frame, from anywhere in it, and the mean of squares of
pixels. A clip fits a stage where both are whole numbers and it is long enough.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from math import gcd, isclose, lcm

import torch
from einops import reduce
from torch import Generator, Tensor

from carrara.core.types import VideoShape
from carrara.data.clip_pixels import draw_view
from carrara.data.prepare.settings import Settings
from carrara.data.prepared import describe


@dataclass(frozen=True)
class Wanted:
    """The clips that a stage learns, by its name. fps: their frames per second; single frames have none; captioned:
    only of those that have a caption."""

    stage: str
    shape: VideoShape
    fps: float
    captioned: bool = False

    def every(self, fps: float) -> int:
        """Of clips at a rate every how-manieth frame is shown; 0 where that is no whole number."""
        if self.shape.frames == 1:
            return 1
        ratio = fps / self.fps
        return round(ratio) if isclose(ratio, round(ratio), rel_tol=1e-6) else 0

    def span(self, every: int) -> int:
        """Frames of a clip from the first that is shown to the last."""
        return (self.shape.frames - 1) * every + 1

    def fits(self, clip: VideoShape, fps: float) -> bool:
        """Whether a clip of this shape and rate can be shown."""
        every = self.every(fps)
        return every > 0 and self.fits_at(clip, every)

    def fits_at(self, clip: VideoShape, every: int) -> bool:
        """Whether it can be where every so-manieth frame is."""
        space = clip.height // self.shape.height
        sides = (space * self.shape.height, space * self.shape.width)
        return space > 0 and (clip.height, clip.width) == sides and clip.frames >= self.span(every)

    def cut(self, clip: Tensor, every: int, generator: Generator) -> Tensor:
        """A piece of a clip, uint8 `t h w 3`, from anywhere in it."""
        frames, height, width, _ = clip.shape
        shown, _, _ = draw_view(VideoShape(frames, height, width), self.span(every), 0, generator)
        space = height // self.shape.height
        some = clip[shown][::every]
        return some if space == 1 else _mean_of_squares(some, space)

    @property
    def still(self) -> Wanted:
        """Single frames of the same size."""
        return replace(self, shape=replace(self.shape, frames=1))

    def __str__(self) -> str:
        rate = f" at {self.fps:g} fps" if self.shape.frames > 1 else ""
        return f"{describe(self.shape)}{rate}{' with captions' * self.captioned}"


def how_to_prepare(wanted: Sequence[Wanted]) -> str:
    """The command that prepares clips which fit all of these stages."""
    height, width = lcm(*(one.shape.height for one in wanted)), lcm(*(one.shape.width for one in wanted))
    words = ["carrara data prepare CLIPS FOLDER", f"--sizes {width}x{height}"]
    step = gcd(height, width)
    if step % Settings.multiple:
        words.append(f"--multiple {step}")
    moving = [one for one in wanted if one.shape.frames > 1]
    if moving:
        rates = [Fraction(one.fps).limit_denominator(1000) for one in moving]
        fps = lcm(*(rate.numerator for rate in rates)) / gcd(*(rate.denominator for rate in rates))
        longest = max(one.span(one.every(fps)) for one in moving)
        words.append(f"--frames {max(5, 1 + 4 * -(-(longest - 1) // 4))} --fps {fps:g}")
    return " ".join(words)


def _mean_of_squares(clip: Tensor, space: int) -> Tensor:
    """Frames uint8 `t h w 3`, each pixel the mean of space x space."""
    mean = reduce(clip.float(), "t (h p) (w q) c -> t h w c", "mean", p=space, q=space)
    return mean.round().to(torch.uint8)
