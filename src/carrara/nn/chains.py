"""The formulas of `nn/fused.py` and `nn/products.py` as loops of their own (`nn/compiling.py`), forward and back.

Tensors are what those steps of autograd have at hand; whatever is summed is summed in float32. Pairs of bfloat16
numbers are taken apart and put together as 32-bit integers: what lies beside each other is turned together by rotary
positions, and compilers do not see that it can be done many pairs at a time.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from carrara.nn.loops import Loop

# gelu(x) = x sigmoid(x (A + B x^2)) is the tanh form (arXiv:1606.08415) without tanh, which costs three times as much.
A = math.sqrt(8 / math.pi)
B = 0.044715 * A

_HIGH = -65536  # of 32 bits the upper half


def _norm(x: Tensor, shift: Tensor, scale: Tensor, eps: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    x = x.float()
    mean = x.mean(-1, keepdim=True)
    rate = torch.rsqrt((x - mean).square().mean(-1, keepdim=True) + eps)
    return ((x - mean) * rate * (1 + scale) + shift).to(dtype), mean, rate


def _norm_back(gradient: Tensor, x: Tensor, scale: Tensor, mean: Tensor, rate: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    given, normed = gradient.float(), (x - mean) * rate
    by_normed = given * (1 + scale)
    level, along = by_normed.mean(-1, keepdim=True), (by_normed * normed).mean(-1, keepdim=True)
    by_x = (rate * (by_normed - level - normed * along)).to(x.dtype)
    return by_x, given.sum(1, keepdim=True), (given * normed).sum(1, keepdim=True)


def _gated(x: Tensor, h: Tensor, gate: Tensor) -> Tensor:
    return x + h * gate


def _gated_back(gradient: Tensor, h: Tensor, gate: Tensor) -> tuple[Tensor, Tensor]:
    return (gradient * gate).to(h.dtype), (gradient * h).sum(1, keepdim=True)


def _gelu(x: Tensor) -> tuple[Tensor, Tensor]:
    y = x.float()
    factor = A + B * y * y
    share = 1 / (1 + torch.exp(-factor * y))
    made = y * share
    return made.to(x.dtype), (share + (y - made) * share * (3 * factor - 2 * A)).to(x.dtype)


def _heads(x: Tensor, even: Tensor, odd: Tensor, eps: Tensor, heads: int) -> tuple[Tensor, Tensor]:
    first, second, rate = _normed_pairs(x, even, odd, eps)
    return _by_heads(_joined(first, second), heads), rate


def _turned_heads(
    x: Tensor, even: Tensor, odd: Tensor, cos: Tensor, sin: Tensor, eps: Tensor, heads: int
) -> tuple[Tensor, Tensor]:
    first, second, rate = _normed_pairs(x, even, odd, eps)
    a, b = (each.unflatten(-1, (heads, -1)) for each in (first, second))
    cos, sin = cos[:, :, None], sin[:, :, None]
    return _joined(a * cos - b * sin, a * sin + b * cos).transpose(1, 2).contiguous(), rate


def _heads_back(gradient: Tensor, x: Tensor, even: Tensor, odd: Tensor, rate: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    first, second = (each.transpose(1, 2) for each in _halves(gradient))
    return _pairs_back(first, second, x, even, odd, rate)


def _turned_heads_back(
    gradient: Tensor, x: Tensor, even: Tensor, odd: Tensor, rate: Tensor, cos: Tensor, sin: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    a, b = (each.transpose(1, 2) for each in _halves(gradient))
    cos, sin = cos[:, :, None], sin[:, :, None]
    return _pairs_back(a * cos + b * sin, b * cos - a * sin, x, even, odd, rate)


def _normed_pairs(x: Tensor, even: Tensor, odd: Tensor, eps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    first, second = _halves(x)
    rate = torch.rsqrt((first.square() + second.square()).sum(-1, keepdim=True) / x.shape[-1] + eps)
    return first * rate * even, second * rate * odd, rate


def _pairs_back(
    first: Tensor, second: Tensor, x: Tensor, even: Tensor, odd: Tensor, rate: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    shape = first.shape[2:]
    rate, even, odd = rate[..., None], even.view(shape), odd.view(shape)
    a, b = (each.unflatten(-1, shape) * rate for each in _halves(x))
    along = (first * a * even + second * b * odd).sum((-2, -1), keepdim=True) / x.shape[-1]
    by_x = _joined((first * even - a * along) * rate, (second * odd - b * along) * rate)
    return by_x, (first * a).sum((0, 1)), (second * b).sum((0, 1))


def _by_heads(pairs: Tensor, heads: int) -> Tensor:
    return pairs.unflatten(-1, (heads, -1)).transpose(1, 2).contiguous()


def _halves(x: Tensor) -> tuple[Tensor, Tensor]:
    """The first and the second numbers of bfloat16 pairs, as float32."""
    bits = x.view(torch.int32)
    return (bits << 16).view(torch.float32), (bits & _HIGH).view(torch.float32)


def _joined(first: Tensor, second: Tensor) -> Tensor:
    """Both rounded to bfloat16, to the nearest, and beside each other in 32 bits."""
    return ((_rounded(first) >> 16) & ~_HIGH) | (_rounded(second) & _HIGH)


def _rounded(x: Tensor) -> Tensor:
    bits = x.view(torch.int32)
    return bits + 0x7FFF + ((bits >> 16) & 1)


norm = Loop(_norm, "rs.", "r..", "r..", "")
norm_back = Loop(_norm_back, "rs.", "rs.", "r..", "rs.", "rs.")
gated = Loop(_gated, "rs.", "rs.", "r..")
gated_back = Loop(_gated_back, "rs.", "rs.", "r..")
gelu = Loop(_gelu, "r")
heads = Loop(_heads, "rs.", ".", ".", "")
heads_back = Loop(_heads_back, "r.s.", "rs.", ".", ".", "rs.")
turned_heads = Loop(_turned_heads, "rs.", ".", ".", "rs.", "rs.", "")
turned_heads_back = Loop(_turned_heads_back, "r.s.", "rs.", ".", ".", "rs.", "rs.", "rs.")
