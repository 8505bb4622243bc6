"""What lies between the transformer's matrix products, each chain of elementwise passes as one step of autograd.

Not standard: every chain works in place on one wide copy (float32; float64 for float64 inputs), keeps its inputs
rather than what lies between, and has its derivative written out. On a CPU such passes are bound by memory, and took
half of a training step. The plain formulas run elsewhere, when compiled, and without gradients, where there is little
to keep and a Function's own cost counts.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from carrara.nn.positions import rotate

CHUNK = 1 << 17
"""So many numbers of a wide layer are worked on at a time: several float32 copies of them fit in a core's cache."""

MANY = 128
"""From so many keys on, torch's softmax of bfloat16 scores gives the bits that it gives of their float32 copy, rounded:
it sums in float32 inside. Without the copies attention is 1.1 (512 keys) to 3 times (144, six heads) as fast."""

# gelu(x) = x sigmoid(x (A + B x^2)) is the tanh form (arXiv:1606.08415) without tanh, which costs three times as much.
A = math.sqrt(8 / math.pi)
B = 0.044715 * A


def wide(dtype: torch.dtype) -> torch.dtype:
    """What elementwise passes are computed in."""
    return torch.promote_types(dtype, torch.float32)


def linear(x: Tensor, weight: Tensor, bias: Tensor, dtype: torch.dtype) -> Tensor:
    """`... i` -> `... o` in `dtype`. Where it can, oneDNN adds the bias within its product: 15% faster."""
    if by_hand(x) and dtype == torch.bfloat16 and _has_onednn():
        return _Linear.apply(x.to(dtype), weight.to(dtype), bias.to(dtype))
    return F.linear(x, weight, bias)  # autocast casts, and remembers what it has cast


def gelu(x: Tensor) -> Tensor:
    """GELU in its tanh form."""
    return _Gelu.apply(x) if by_hand(x) else F.gelu(x, approximate="tanh")


def modulated_norm(x: Tensor, shift: Tensor, scale: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    """LayerNorm without weights, then (1 + scale) and shift, which broadcast (adaptive LayerNorm, arXiv:2212.09748).

    The result is rounded to `dtype` at the end.
    """
    if by_hand(x):
        return _ModulatedNorm.apply(x, shift, scale, eps, dtype)
    return torch.addcmul(shift, F.layer_norm(x, x.shape[-1:], eps=eps), 1 + scale).to(dtype)


def gated_sum(x: Tensor, h: Tensor, gate: Tensor | None = None) -> Tensor:
    """x + gate h in the type of x; the gate broadcasts, and is 1 if None."""
    if by_hand(x):
        return _GatedSum.apply(x, h, gate)
    return x + h if gate is None else torch.addcmul(x, h.to(x.dtype), gate)


def normed_heads(x: Tensor, weight: Tensor, turns: Tensor | None, heads: int, eps: float, dtype: torch.dtype) -> Tensor:
    """`b n (h c)` to `b h n c`: RMS norm over all heads together, rotary turns `(b or 1, n, c / 2, 2)`, split."""
    if by_hand(x):
        return _NormedHeads.apply(x, weight, turns, heads, eps, dtype)
    normed = F.rms_norm(x.to(weight.dtype), x.shape[-1:], weight, eps).unflatten(-1, (heads, -1))
    heads_first = rearrange(normed if turns is None else rotate(normed, turns), "b n h c -> b h n c")
    return heads_first.to(dtype, memory_format=torch.contiguous_format)  # or every product would copy its part


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """`shares` times the values `b h m c`."""
    if by_hand(q):
        return _Attend.apply(q, k, v, bias)
    if bias is None and q.dtype == torch.bfloat16 and k.shape[-2] >= MANY:
        return torch.softmax(q @ k.transpose(-1, -2), dim=-1) @ v
    return shares(q, k, bias).to(q.dtype) @ v


def shares(q: Tensor, k: Tensor, bias: Tensor | None = None) -> Tensor:
    """softmax(q k' + bias), `b h n m` in float32, for `b h n c` queries and `b h m c` keys.

    bias: `b 1 1 l`, of the last l keys; the others have none.
    """
    scores = (q @ k.transpose(-1, -2)).to(wide(q.dtype))
    if bias is not None:
        scores[..., scores.shape[-1] - bias.shape[-1] :].add_(bias)
    return torch.softmax(scores, dim=-1)


def by_hand(x: Tensor) -> bool:
    """Whether the written-out derivatives are worth their while."""
    return x.is_cpu and torch.is_grad_enabled() and not torch.compiler.is_compiling()


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


class _ModulatedNorm(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, shift: Tensor, scale: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
        width = x.shape[-1]
        ones, zeros = x.new_ones(width), x.new_zeros(width)  # with them the kernel is twice as fast as without weights
        normed, mean, rate = torch.native_layer_norm(x, (width,), ones, zeros, eps)
        ctx.save_for_backward(x, shift, scale, mean, rate)
        return torch.addcmul(shift, normed, 1 + scale, out=normed).to(dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, shift, scale, mean, rate = ctx.saved_tensors
        gradient = gradient.to(x.dtype)
        by_shift = by_scale = None
        if ctx.needs_input_grad[1]:
            by_shift = gradient.sum_to_size(shift.shape)  # the gradient itself, if nothing is summed
        if ctx.needs_input_grad[2]:
            by_scale = (x - mean).mul_(rate).mul_(gradient).sum_to_size(scale.shape)
        by_x = torch.ops.aten.native_layer_norm_backward(
            gradient * (1 + scale), x, x.shape[-1:], mean, rate, None, None, [True, False, False]
        )[0]
        return by_x, by_shift, by_scale, None, None


class _GatedSum(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, h: Tensor, gate: Tensor | None) -> Tensor:
        ctx.save_for_backward(h, gate)
        made = h.to(x.dtype, copy=True)
        return (made if gate is None else made.mul_(gate)).add_(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        h, gate = ctx.saved_tensors
        if gate is None:
            return gradient, gradient.to(h.dtype), None
        by_gate = None
        if ctx.needs_input_grad[2]:
            by_gate = h.to(gradient.dtype, copy=True).mul_(gradient).sum_to_size(gate.shape)
        return gradient, (gradient * gate).to(h.dtype), by_gate


class _NormedHeads(Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, turns: Tensor | None, heads: int, eps: float, dtype: torch.dtype
    ) -> Tensor:
        normed = x.to(wide(x.dtype), copy=True)
        rate = (torch.linalg.vector_norm(normed, dim=-1, keepdim=True).square() / x.shape[-1] + eps).rsqrt()
        split = normed.mul_(rate).mul_(weight).unflatten(-1, (heads, -1))
        if turns is not None:
            turns = turns.to(normed.dtype)
            _pairs(split).mul_(torch.view_as_complex(turns)[..., None, :])
        ctx.save_for_backward(x, weight, turns, rate)
        b, n, h, c = split.shape
        return torch.empty(b, h, n, c, dtype=dtype, device=x.device).copy_(split.transpose(1, 2))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, turns, rate = ctx.saved_tensors
        split = torch.empty_like(gradient.transpose(1, 2), dtype=rate.dtype, memory_format=torch.contiguous_format)
        split.copy_(gradient.transpose(1, 2))
        if turns is not None:
            _pairs(split).mul_(torch.view_as_complex(turns).conj().resolve_conj()[..., None, :])
        by_x, normed = split.flatten(2), x.to(rate.dtype) * rate
        product = by_x * normed
        by_weight = product.sum((0, 1)) if ctx.needs_input_grad[1] else None
        along = product.mul_(weight).mean(-1, keepdim=True)
        by_x.mul_(weight).addcmul_(normed, along, value=-1).mul_(rate)
        return by_x.to(x.dtype), by_weight, None, None, None, None


class _Attend(Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
        p, v = shares(q, k, bias).to(q.dtype), v.contiguous()
        ctx.save_for_backward(q, k, v, p)
        return p @ v

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, p = ctx.saved_tensors
        dtype, gradient = wide(q.dtype), gradient.contiguous()
        by_p = (gradient @ v.transpose(-1, -2)).to(dtype)
        by_scores = torch._softmax_backward_data(by_p, p.to(dtype), -1, dtype).to(q.dtype)
        return by_scores @ k, by_scores.transpose(-1, -2) @ q, p.transpose(-1, -2) @ gradient, None


def _pairs(x: Tensor) -> Tensor:
    """`... c` as `... c / 2` complex numbers in the same memory."""
    return torch.view_as_complex(x.unflatten(-1, (-1, 2)))
