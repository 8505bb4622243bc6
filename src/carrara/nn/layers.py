"""The transformer's smaller layers: adaptive norms, the embedding of noise levels, and small perceptrons.

Precision: the residual stream, norms, noise levels and modulation are float32; matrices run in `compute_dtype`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from carrara.nn.lora import with_terms
from carrara.nn.positions import angle_dtype
from carrara.nn.products import gelu, linear, linear_gelu


def compute_dtype(weight: Tensor) -> torch.dtype:
    """What matrices run in: autocast's type where it is on, else the type of the weights."""
    kind = weight.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype


def sinusoid(position: Tensor, width: int) -> Tensor:
    """`(..., width)` float32: cosines, then sines, of position * 10000^(-i / half), i < half = width / 2.

    The angles are float64: at position 1000 a float32 angle is already wrong in the fifth digit.
    """
    half, dtype = width // 2, angle_dtype(position.device)
    rates = 10000.0 ** (-torch.arange(half, device=position.device, dtype=dtype) / half)
    angle = position.to(dtype)[..., None] * rates
    return torch.cat((angle.cos(), angle.sin()), dim=-1).float()


def linear32(layer: nn.Linear, x: Tensor) -> Tensor:
    """A linear layer in float32 whatever type its weights are kept in."""
    return with_terms(layer, x, F.linear(x, layer.weight.float(), None if layer.bias is None else layer.bias.float()))


class LevelEmbedding(nn.Module):
    """Noise levels in [0, 1] to what modulates the blocks, always in float32.

    Networks of this family are told 1000 t. Given levels in float64, the product gives back the integers that a
    foreign schedule divided by 1000.
    """

    def __init__(self, dim: int, frequencies: int, chunks: int) -> None:
        super().__init__()
        self.frequencies, self.chunks = frequencies, chunks
        self.rise = nn.Linear(frequencies, dim)
        self.out = nn.Linear(dim, dim)
        self.modulation = nn.Linear(dim, chunks * dim)

    def forward(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Levels `(...)` to the embedding `(..., d)` and the modulation `(..., chunks, d)`."""
        with torch.autocast(t.device.type, enabled=False):
            steps = (t.to(angle_dtype(t.device)) * 1000).float()
            embedded = linear32(self.out, F.silu(linear32(self.rise, sinusoid(steps, self.frequencies))))
            return embedded, linear32(self.modulation, F.silu(embedded)).unflatten(-1, (self.chunks, -1))


@dataclass(frozen=True)
class Levels:
    """Modulation `u k d` of the u distinct noise levels, and which of them each group of tokens has, `b g`."""

    values: Tensor
    which: Tensor | None  # None: the u levels are the b groups of a batch with one group each, or b g in order
    groups: tuple[int, int]

    def spread(self, bias: Tensor) -> tuple[Tensor, ...]:
        """Add a block's bias `1 k d` to the distinct levels, then give every group its own: k tensors `b g 1 d`."""
        parts = (self.values + bias.float()).unbind(1)
        if self.which is not None:
            return tuple(part[self.which].unsqueeze(2) for part in parts)
        return tuple(part.view(*self.groups, 1, -1) for part in parts)


class Linear(nn.Linear):
    """`nn.Linear`, with the product that is fastest where it runs."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias, compute_dtype(self.weight))


class MLP(nn.Module):
    """Linear, GELU (tanh form), Linear."""

    def __init__(self, dim: int, hidden: int, out: int) -> None:
        super().__init__()
        self.rise = Linear(dim, hidden)
        self.fall = Linear(hidden, out)

    def forward(self, x: Tensor) -> Tensor:
        if type(self.rise) is not Linear:  # what a layer was replaced by, an adapter for one, makes it itself
            return self.fall(gelu(self.rise(x)))
        return self.fall(linear_gelu(x, self.rise.weight, self.rise.bias, compute_dtype(self.rise.weight)))


class Patches(nn.Module):
    """Cut `b c f h w` into patches and embed each: a convolution whose stride is its kernel, as one matrix."""

    def __init__(self, channels: int, dim: int, patch: tuple[int, int, int]) -> None:
        super().__init__()
        self.patch = patch
        self.weight = nn.Parameter(torch.empty(dim, channels, *patch))  # a Conv3d's shape
        self.bias = nn.Parameter(torch.zeros(dim))
        nn.init.normal_(self.weight, std=1 / math.sqrt(channels * math.prod(patch)))

    def forward(self, x: Tensor) -> Tensor:
        """`b c (f pf) (h ph) (w pw)` -> `b f (h w) d`."""
        pf, ph, pw = self.patch
        cut = x.unflatten(4, (-1, pw)).unflatten(3, (-1, ph)).unflatten(2, (-1, pf))  # b c f pf h ph w pw
        cut = cut.permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(4).flatten(2, 3)  # b f (h w) (c pf ph pw)
        return F.linear(cut, self.weight.flatten(1), self.bias)
