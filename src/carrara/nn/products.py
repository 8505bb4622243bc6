"""Matrix products of the transformer's layers, with what follows them: a bias, and GELU in its tanh form.

Not standard: in bfloat16 on a CPU oneDNN does both within its product, where torch's own product takes further passes.
With gradients GELU is a step of its own, whose derivative is formed with it (`nn/fused.py` says why).
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from carrara.nn import chains
from carrara.nn.chains import A, B
from carrara.nn.fused import by_hand, in_cache, wide
from carrara.nn.loops import looped

CHUNK = 1 << 17
"""So many numbers of a wide layer are worked on at a time: several float32 copies of them fit in a core's cache."""


def linear(x: Tensor, weight: Tensor, bias: Tensor, dtype: torch.dtype) -> Tensor:
    """`... i` -> `... o` in `dtype`. Where it can, oneDNN adds the bias within its product: 15 to 25% faster."""
    if dtype == torch.bfloat16 and by_hand(x) and _has_onednn():
        return _Linear.apply(x.to(dtype), weight.to(dtype), bias.to(dtype))
    if _in_product(x, weight, dtype):
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return F.linear(x, weight, bias)  # autocast casts, and remembers what it has cast


def linear_gelu(x: Tensor, weight: Tensor, bias: Tensor, dtype: torch.dtype) -> Tensor:
    """`gelu` of `linear`. Without gradients oneDNN applies it within its product, to what is not rounded yet; by itself
    it takes up to three times as long as the product."""
    if _in_product(x, weight, dtype):
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "gelu", [], "tanh")
    return gelu(linear(x, weight, bias, dtype))


def gelu(x: Tensor) -> Tensor:
    """GELU in its tanh form."""
    return _Gelu.apply(x) if by_hand(x) else F.gelu(x, approximate="tanh")


def _in_product(x: Tensor, weight: Tensor, dtype: torch.dtype) -> bool:
    """Whether what follows a product is done within it, without gradients and casts."""
    return in_cache(x) and x.dtype == weight.dtype == dtype == torch.bfloat16 and _has_onednn()


@cache
def _has_onednn() -> bool:
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


class _Linear(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        rows, inputs = gradient.reshape(-1, len(weight)), x.reshape(-1, x.shape[-1])
        by_x, by_weight, by_bias = ctx.needs_input_grad  # of a frozen layer's three products two are enough
        return (
            (rows @ weight).view_as(x) if by_x else None,
            rows.t() @ inputs if by_weight else None,
            rows.sum(0) if by_bias else None,
        )


class _Gelu(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """Also forms the derivative, for which everything is at hand."""
        x = x.contiguous()
        if looped(x) and ctx.needs_input_grad[0]:
            made, slope = chains.gelu(x)
            ctx.save_for_backward(slope)
            return made
        made, slope = torch.empty_like(x), torch.empty_like(x)
        a = torch.tensor(A, dtype=wide(x.dtype), device=x.device)
        for piece, result, derivative in zip(*(each.view(-1).split(CHUNK) for each in (x, made, slope))):
            y = piece.to(a.dtype, copy=True)
            factor = torch.addcmul(a, y, y, value=B)
            share = (factor * y).sigmoid_()
            result.copy_(y.mul_(share))
            if ctx.needs_input_grad[0]:  # share + y (1 - share) (A + 3 B x^2)
                y.addcmul_(y, share, value=-1)
                derivative.copy_(share.add_(y, alpha=-2 * A).addcmul_(y, factor, value=3))
        ctx.save_for_backward(slope)
        return made

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * ctx.saved_tensors[0]
