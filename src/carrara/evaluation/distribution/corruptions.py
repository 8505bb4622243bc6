"""Known damage to clips: what a measure of video must notice, and by how much.

Every function takes and returns a clip uint8 `t h w 3` of the same shape and draws only from the generator it is given.
Used twice: the motion network learns some of them as labels, and distribution distances are validated on all.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from einops import rearrange
from torch import Generator, Tensor

Corruption = Callable[[Tensor, Generator], Tensor]


def frozen(clip: Tensor, generator: Generator) -> Tensor:
    """The first frame in the place of all."""
    return clip[:1].expand_as(clip).contiguous()


def shuffled(clip: Tensor, generator: Generator) -> Tensor:
    """The frames in random order; never the order they came in."""
    return clip[_other_order(len(clip), generator)]


def reversed_(clip: Tensor, generator: Generator) -> Tensor:
    """The last frame first."""
    return clip.flip(0)


def swapped_neighbours(share: float) -> Corruption:
    """Frames 2i and 2i + 1 change places, in this share of the pairs."""

    def corrupt(clip: Tensor, generator: Generator) -> Tensor:
        order = torch.arange(len(clip))
        for first in range(0, len(clip) - 1, 2):
            if float(torch.rand((), generator=generator)) < share:
                order[first], order[first + 1] = first + 1, first
        return clip[order]

    return corrupt


def stuttering(hold: int) -> Corruption:
    """Every frame stands for `hold` frames: the right places at the right times, without what lies between."""
    return lambda clip, generator: clip[torch.arange(len(clip)) // hold * hold]


def noisy(deviation: float) -> Corruption:
    """Independent Gaussian noise on every value, its deviation in units of the whole range (1 = 255 levels)."""

    def corrupt(clip: Tensor, generator: Generator) -> Tensor:
        noise = torch.randn(clip.shape, generator=generator) * (255 * deviation)
        return (clip + noise).round().clamp(0, 255).to(torch.uint8)

    return corrupt


def blurred(sigma: float) -> Corruption:
    """Gaussian blur of every frame; sigma as a share of the shorter side, so that all sizes blur alike."""
    return lambda clip, generator: _blur(clip, sigma * min(clip.shape[1:3]))


def recoloured(clip: Tensor, generator: Generator) -> Tensor:
    """Red, green and blue change places in turn: another colour for everything, the same edges and motion."""
    return clip.roll(1, dims=-1)


def actors_recoloured(clip: Tensor, mask: Tensor) -> Tensor:
    """As `recoloured`, where the mask `t h w` is not 0 (the actors) and nowhere else."""
    return torch.where(mask[..., None] > 0, clip.roll(1, dims=-1), clip)


def _other_order(count: int, generator: Generator) -> Tensor:
    order = torch.randperm(count, generator=generator)
    return order.roll(1) if count > 1 and bool((order == torch.arange(count)).all()) else order


def _blur(clip: Tensor, sigma: float) -> Tensor:
    """Separable Gaussian blur with repeated edges; sigma in pixels."""
    if sigma <= 0:
        return clip
    rows, columns = (_smoothing(length, sigma) for length in clip.shape[1:3])
    frames = rearrange(clip.float(), "t h w c -> t c h w")
    found = rearrange(rows @ frames @ columns.T, "t c h w -> t h w c")
    return found.round().clamp(0, 255).to(torch.uint8).contiguous()


def _smoothing(length: int, sigma: float) -> Tensor:
    """The blur along one axis as a matrix: row i has what position i takes of every position."""
    reach = math.ceil(3 * sigma)
    offsets = torch.arange(-reach, reach + 1)
    kernel = torch.exp(-0.5 * (offsets / sigma) ** 2)
    sources = (torch.arange(length)[:, None] + offsets).clamp(0, length - 1)
    return torch.zeros(length, length).scatter_add_(1, sources, (kernel / kernel.sum()).expand(length, -1))
