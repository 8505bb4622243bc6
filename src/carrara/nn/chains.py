"""The formulas of `nn/fused.py` and `nn/products.py` as loops of their own (`nn/loops.py`), forward and back.

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


def by_groups(x: Tensor, *modulations: Tensor) -> bool:
    """Whether these are `b g s d` and `b g 1 d`, which the norms and sums below are made for."""
    return x.ndim == 4 and all(each.shape == (*x.shape[:2], 1, x.shape[3]) for each in modulations)


def norm(x: Tensor, shift: Tensor, scale: Tensor, eps: float, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """The modulated norm in `dtype`, and the mean and the rate `(b g) s 1` of every row."""
    made, mean, rate = _norm(*_flat(x, shift, scale), torch.tensor(eps), dtype)
    return made.view_as(x), mean, rate


def norm_back(gradient: Tensor, x: Tensor, scale: Tensor, mean: Tensor, rate: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What x, the shift and the scale learn."""
    by_x, by_shift, by_scale = _norm_back(*_flat(gradient, x, scale), mean, rate)
    return by_x.view_as(x), by_shift.view_as(scale), by_scale.view_as(scale)


def gated(x: Tensor, h: Tensor, gate: Tensor) -> Tensor:
    """x + gate h."""
    return _gated(*_flat(x, h, gate)).view_as(x)


def gated_back(gradient: Tensor, h: Tensor, gate: Tensor) -> tuple[Tensor, Tensor]:
    """What h and the gate learn."""
    by_h, by_gate = _gated_back(*_flat(gradient, h, gate))
    return by_h.view_as(h), by_gate.view_as(gate)


def gelu(x: Tensor) -> tuple[Tensor, Tensor]:
    """GELU in its tanh form, and its derivative."""
    made, slope = _gelu(x.flatten(0, -2))
    return made.view_as(x), slope.view_as(x)


def heads(x: Tensor, weight: Tensor, turns: Tensor | None, count: int, eps: float) -> tuple[Tensor, Tensor]:
    """bfloat16 rows `b n d` normed, turned and split into `b h n c`; and the rate `b n 1` of every row."""
    given = (x, *_even_and_odd(weight))
    if turns is None:
        made, rate = _heads(*given, torch.tensor(eps), count)
    else:
        made, rate = _turned_heads(*given, *turns.unbind(-1), torch.tensor(eps), count)
    return made.view(x.dtype), rate


def heads_back(
    gradient: Tensor, x: Tensor, weight: Tensor, turns: Tensor | None, rate: Tensor
) -> tuple[Tensor, Tensor]:
    """What x and the weight learn."""
    given = (gradient, x, *_even_and_odd(weight), rate)
    by_x, *by_weight = _heads_back(*given) if turns is None else _turned_heads_back(*given, *turns.unbind(-1))
    return by_x.flatten(2).view(x.dtype), torch.stack(by_weight, dim=-1).flatten()


def _flat(*tensors: Tensor) -> list[Tensor]:
    return [each.flatten(0, 1) for each in tensors]


def _even_and_odd(weight: Tensor) -> tuple[Tensor, Tensor]:
    return weight[::2], weight[1::2]


def _norm_formula(
    x: Tensor, shift: Tensor, scale: Tensor, eps: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    x = x.float()
    mean = x.mean(-1, keepdim=True)
    rate = torch.rsqrt((x - mean).square().mean(-1, keepdim=True) + eps)
    return ((x - mean) * rate * (1 + scale) + shift).to(dtype), mean, rate


def _norm_back_formula(
    gradient: Tensor, x: Tensor, scale: Tensor, mean: Tensor, rate: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    given, normed = gradient.float(), (x - mean) * rate
    by_normed = given * (1 + scale)
    level, along = by_normed.mean(-1, keepdim=True), (by_normed * normed).mean(-1, keepdim=True)
    by_x = (rate * (by_normed - level - normed * along)).to(x.dtype)
    return by_x, given.sum(1, keepdim=True), (given * normed).sum(1, keepdim=True)


def _gated_formula(x: Tensor, h: Tensor, gate: Tensor) -> Tensor:
    return x + h * gate


def _gated_back_formula(gradient: Tensor, h: Tensor, gate: Tensor) -> tuple[Tensor, Tensor]:
    return (gradient * gate).to(h.dtype), (gradient * h).sum(1, keepdim=True)


def _gelu_formula(x: Tensor) -> tuple[Tensor, Tensor]:
    y = x.float()
    factor = A + B * y * y
    share = 1 / (1 + torch.exp(-factor * y))
    made = y * share
    return made.to(x.dtype), (share + (y - made) * share * (3 * factor - 2 * A)).to(x.dtype)


def _heads_formula(x: Tensor, even: Tensor, odd: Tensor, eps: Tensor, heads: int) -> tuple[Tensor, Tensor]:
    first, second, rate = _normed_pairs(x, even, odd, eps)
    return _by_heads(_joined(first, second), heads), rate


def _turned_heads_formula(
    x: Tensor, even: Tensor, odd: Tensor, cos: Tensor, sin: Tensor, eps: Tensor, heads: int
) -> tuple[Tensor, Tensor]:
    first, second, rate = _normed_pairs(x, even, odd, eps)
    a, b = (each.unflatten(-1, (heads, -1)) for each in (first, second))
    cos, sin = cos[:, :, None], sin[:, :, None]
    return _joined(a * cos - b * sin, a * sin + b * cos).transpose(1, 2).contiguous(), rate


def _heads_back_formula(
    gradient: Tensor, x: Tensor, even: Tensor, odd: Tensor, rate: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    first, second = (each.transpose(1, 2) for each in _halves(gradient))
    return _pairs_back(first, second, x, even, odd, rate)


def _turned_heads_back_formula(
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


_norm = Loop(_norm_formula, "rs.", "r..", "r..", "")
_norm_back = Loop(_norm_back_formula, "rs.", "rs.", "r..", "rs.", "rs.")
_gated = Loop(_gated_formula, "rs.", "rs.", "r..")
_gated_back = Loop(_gated_back_formula, "rs.", "rs.", "r..")
_gelu = Loop(_gelu_formula, "r.")
_heads = Loop(_heads_formula, "rs.", ".", ".", "")
_heads_back = Loop(_heads_back_formula, "r.s.", "rs.", ".", ".", "rs.")
_turned_heads = Loop(_turned_heads_formula, "rs.", ".", ".", "rs.", "rs.", "")
_turned_heads_back = Loop(_turned_heads_back_formula, "r.s.", "rs.", ".", ".", "rs.", "rs.", "rs.")
