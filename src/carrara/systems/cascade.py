"""What the stages of a cascade share: sizes that fit, clips made smaller and larger, noise on what is enlarged, blocks.

Noise-conditioning augmentation is that of Ho et al. 2022, "Cascaded Diffusion Models", section 4.2: a stage that
enlarges learns on small clips with noise on them and is told how much, so that it forgives what the stage before gets
wrong, and the two can be trained apart.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from einops import rearrange, reduce, repeat
from torch import Generator, Tensor

from carrara.core.config import choose
from carrara.core.types import VideoShape
from carrara.diffusion.fields import TimeDraw, draw_times
from carrara.diffusion.predictions import add_noise
from carrara.systems.stage import COSINE

BETWEEN = ("repeat", "linear", "blank")


@dataclass(frozen=True)
class Rung:
    """A stage by its sizes: what it is given (None: text alone) and what it makes, frames per second at the end."""

    name: str
    takes: VideoShape | None
    makes: VideoShape
    fps: float


def check_ladder(rungs: Sequence[Rung]) -> None:
    """Refuse a cascade in which a stage is given something else than the stage before it makes."""
    if not rungs:
        raise ValueError("a cascade without stages: give at least the first")
    if rungs[0].takes is not None:
        raise ValueError(
            f"{rungs[0].name} takes {_size(rungs[0].takes)}, but nothing is before it; begin with text alone"
        )
    for before, stage in pairwise(rungs):
        if stage.takes != before.makes:
            wants = "text alone" if stage.takes is None else _size(stage.takes)
            raise ValueError(
                f"{stage.name} takes {wants}, but {before.name} makes {_size(before.makes)}; make them fit"
            )
        if stage.fps < before.fps:
            raise ValueError(f"{stage.name} has {stage.fps:g} fps, {before.name} has {before.fps:g}: stages add frames")


@dataclass(frozen=True)
class Augmentation:
    """Noise on the clip that a stage enlarges, in times of the cosine schedule; the stage is told it as a scalar.

    most: training draws levels evenly from [0, most]; level: of sampling, which must lie among them. 0 and 0 is off.
    """

    most: float = 0.5
    level: float = 0.1

    NAME = "augmentation"

    def __post_init__(self) -> None:
        if not 0 <= self.level <= self.most < 1:
            raise ValueError(f"level={self.level}, most={self.most}: expected 0 <= level <= most < 1")

    def draw(self, clips: int, generator: Generator) -> Tensor:
        """Levels `(clips,)` for a training step, stratified."""
        return self.most * draw_times(clips, generator, TimeDraw(uniform=1.0))

    def at_sampling(self, clips: int, device: torch.device | str = "cpu") -> Tensor:
        return torch.full((clips,), self.level, device=device)


def augment(clip: Tensor, levels: Tensor, noise: Tensor) -> Tensor:
    """Clips `b c f h w` noised to their levels `(b,)`; level 0 leaves a clip as it is, to the bit."""
    noised = add_noise(clip, noise, COSINE.alpha(levels), COSINE.sigma(levels))
    return torch.where((levels > 0).reshape(-1, 1, 1, 1, 1), noised, clip)


def shrink(clip: Tensor, time: int, space: int) -> Tensor:
    """Every time-th frame from the first on, each pixel the mean of space x space: `b c f h w`."""
    return reduce(clip[:, :, ::time], "b c f (h p) (w q) -> b c f h w", "mean", p=space, q=space)


def enlarge(clip: Tensor, time: int, space: int, between: str = "repeat") -> Tensor:
    """The opposite, to `time (f - 1) + 1` frames, bilinear in space.

    between: what frames that are not there are: "repeat" the one before, "linear" between neighbours, or "blank", 0.
    """
    choose("between", between, dict.fromkeys(BETWEEN))
    b, _, frames, height, width = clip.shape
    if space > 1:
        flat = rearrange(clip, "b c f h w -> (b f) c h w")
        flat = F.interpolate(flat, (height * space, width * space), mode="bilinear", align_corners=False)
        clip = rearrange(flat, "(b f) c h w -> b c f h w", b=b)
    if time == 1:
        return clip
    following = torch.cat((clip[:, :, 1:], clip[:, :, -1:]), dim=2)
    share = torch.arange(time, device=clip.device) / time
    if between == "linear":
        filled = torch.lerp(clip[:, :, :, None], following[:, :, :, None], share[:, None, None].to(clip))
    elif between == "repeat":
        filled = repeat(clip, "b c f h w -> b c f time h w", time=time)
    else:
        filled = clip[:, :, :, None] * (share == 0)[:, None, None]
    return rearrange(filled, "b c f time h w -> b c (f time) h w")[:, :, : time * (frames - 1) + 1]


@dataclass(frozen=True)
class Block:
    """Frames start..stop-1 of a clip, made in one go, of which the first `known` are there already."""

    start: int
    stop: int
    known: int


def blocks(frames: int, size: int, overlap: int) -> list[Block]:
    """A clip as blocks of at most `size` frames, each given the last `overlap` frames of the one before, or more.

    A clip of up to `size` frames is one block. Raises ValueError where nothing would be new in another one.
    """
    if not 0 < overlap < size and frames > size:
        raise ValueError(f"overlap={overlap}: expected at least 1 and less than the {size} frames of a block")
    found = [Block(0, min(frames, size), 0)]
    while (done := found[-1].stop) < frames:
        stop = min(done - overlap + size, frames)
        found.append(Block(stop - size, stop, done - (stop - size)))
    return found


def by_blocks(frames: int, size: int, overlap: int, make: Callable[[Block, Tensor | None], Tensor]) -> Tensor:
    """A clip `b c f h w`, made block by block: `make(block, past)` gives a whole block; past: its known frames."""
    clip: Tensor | None = None
    for block in blocks(frames, size, overlap):
        made = make(block, None if clip is None else clip[:, :, block.start :])
        clip = made if clip is None else torch.cat((clip, made[:, :, block.known :]), dim=2)
    assert clip is not None
    return clip


def as_beginning(past: Tensor, frames: int) -> tuple[Tensor, Tensor]:
    """Known frames `b c k h w` as the beginning of a clip: values `b c f h w`, and the mask `b f`, True where known."""
    rest = frames - past.shape[2]
    known = torch.cat((past, past.new_zeros(*past.shape[:2], rest, *past.shape[3:])), dim=2)
    mask = torch.arange(frames, device=past.device) < past.shape[2]
    return known, mask.expand(len(past), -1)


def _size(shape: VideoShape) -> str:
    return f"{shape.frames} frames of {shape.width}x{shape.height}"
