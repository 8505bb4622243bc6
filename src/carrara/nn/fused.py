"""What lies between the transformer's matrix products, each chain of elementwise passes as one step of autograd.

Not standard: every chain works in place on one wide copy (float32; float64 for float64 inputs), keeps its inputs
rather than what lies between, and has its derivative written out. On a CPU such passes are bound by memory, and took
half of a training step. Heads and attention go by pieces that stay in a core's cache, and without gradients norms do;
then nothing is kept. The plain formulas run elsewhere and when compiled.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from carrara.nn import chains
from carrara.nn.loops import looped
from carrara.nn.positions import rotate

ROWS = 1 << 18
"""So many numbers of a norm's rows: what a core's cache of 2 MB holds of them, wide and rounded."""

SCORES = 1 << 21
"""So many scores of attention are worked on at a time in training: 64 samples of four heads over 144 or 208 keys go 1.6
times as fast as all at once on a core with AMX."""

MANY = 128
"""From so many keys on, torch's softmax of bfloat16 scores gives the bits that it gives of their float32 copy, rounded:
it sums in float32 inside. Without the copies attention is 1.1 (512 keys) to 3 times (144, six heads) as fast."""


def wide(dtype: torch.dtype) -> torch.dtype:
    """What elementwise passes are computed in."""
    return torch.promote_types(dtype, torch.float32)


def modulated_norm(x: Tensor, shift: Tensor, scale: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    """LayerNorm without weights, then (1 + scale) and shift, which broadcast (adaptive LayerNorm, arXiv:2212.09748).

    The result is rounded to `dtype` at the end.
    """
    if by_hand(x):
        return _ModulatedNorm.apply(x, shift, scale, eps, dtype)
    if in_cache(x):
        made, factor = torch.empty(x.shape, dtype=dtype), 1 + scale
        ones, zeros = x.new_ones(x.shape[-1]), x.new_zeros(x.shape[-1])  # as in `_ModulatedNorm`
        each = max(1, ROWS * x.shape[-2] // max(1, x.numel()))
        for piece, room in zip(x.split(each, dim=-2), made.split(each, dim=-2)):
            room.copy_(F.layer_norm(piece, x.shape[-1:], ones, zeros, eps).mul_(factor).add_(shift))
        return made
    return torch.addcmul(shift, F.layer_norm(x, x.shape[-1:], eps=eps), 1 + scale).to(dtype)


def layer_norm(norm: nn.LayerNorm, x: Tensor, dtype: torch.dtype) -> Tensor:
    """LayerNorm with weights, in float32 whatever type those and x are kept in; the result is rounded to `dtype`."""
    if by_hand(x) and looped(x, norm.weight, norm.bias):
        shift, scale = (each.view(1, 1, 1, -1) for each in (norm.bias, norm.weight - 1))
        return modulated_norm(x.reshape(1, 1, -1, x.shape[-1]), shift, scale, norm.eps, dtype).view(x.shape)
    return F.layer_norm(x.float(), x.shape[-1:], norm.weight.float(), norm.bias.float(), norm.eps).to(dtype)


def gated_sum(x: Tensor, h: Tensor, gate: Tensor | None = None) -> Tensor:
    """x + gate h in the type of x; the gate broadcasts, and is 1 if None."""
    if by_hand(x):
        return _GatedSum.apply(x, h, gate)
    return x + h if gate is None else torch.addcmul(x, h.to(x.dtype), gate)


def normed_heads(x: Tensor, weight: Tensor, turns: Tensor | None, heads: int, eps: float, dtype: torch.dtype) -> Tensor:
    """`b n (h c)` to `b h n c`: RMS norm over all heads together, rotary turns `(b or 1, n, c / 2, 2)`, split."""
    if by_hand(x):
        return _NormedHeads.apply(x, weight, turns, heads, eps, dtype)
    if in_cache(x):
        return _heads(x, weight, turns, heads, eps, dtype)[0]
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


def in_cache(x: Tensor) -> bool:
    """Whether to go by rows: on a CPU, where nothing is to be learned."""
    return x.is_cpu and not torch.is_grad_enabled() and not torch.compiler.is_compiling()


def pieces(count: int, each: int, most: int) -> list[slice]:
    """Slices of a row of `count` things of `each` numbers, of as many as have at most `most` together; at least one."""
    step = max(1, most // max(1, each))
    return [slice(start, start + step) for start in range(0, count, step)]


def _heads(
    x: Tensor, weight: Tensor, turns: Tensor | None, heads: int, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """`normed_heads` by rows, and the rate `b n 1` that each was multiplied by."""
    (b, n, d), kind = x.shape, wide(x.dtype)
    made, rates = x.new_empty(b, heads, n, d // heads, dtype=dtype), x.new_empty(b, n, 1, dtype=kind)
    turned = None if turns is None else torch.view_as_complex(turns.to(kind))[..., None, :]
    for rows in pieces(n, b * d, ROWS):
        normed, rate = x[:, rows].to(kind, copy=True), rates[:, rows]
        rate.copy_((torch.linalg.vector_norm(normed, dim=-1, keepdim=True).square_() / d).add_(eps).rsqrt_())
        split = normed.mul_(rate).mul_(weight).unflatten(-1, (heads, -1))
        if turned is not None:
            _pairs(split).mul_(turned[:, rows])
        made[:, :, rows].copy_(split.transpose(1, 2))
    return made, rates


class _ModulatedNorm(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, shift: Tensor, scale: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
        if looped(x, shift, scale) and chains.by_groups(x, shift, scale):
            made, mean, rate = chains.norm(x, shift, scale, eps, dtype)
            ctx.save_for_backward(x, shift, scale, mean, rate)
            return made
        width = x.shape[-1]
        ones, zeros = x.new_ones(width), x.new_zeros(width)  # with them the kernel is twice as fast as without weights
        normed, mean, rate = torch.native_layer_norm(x, (width,), ones, zeros, eps)
        ctx.save_for_backward(x, shift, scale, mean, rate)
        return torch.addcmul(shift, normed, 1 + scale, out=normed).to(dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, shift, scale, mean, rate = ctx.saved_tensors
        if looped(gradient, x) and mean.ndim == 3:
            return *chains.norm_back(gradient, x, scale, mean, rate), None, None
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
        if gate is not None and looped(x, h, gate) and chains.by_groups(x, gate):
            return chains.gated(x, h, gate)
        made = h.to(x.dtype, copy=True)
        return (made if gate is None else made.mul_(gate)).add_(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        h, gate = ctx.saved_tensors
        if gate is None:
            return gradient, gradient.to(h.dtype), None
        if looped(gradient, h, gate) and chains.by_groups(h, gate):
            return gradient, *chains.gated_back(gradient, h, gate)
        by_gate = None
        if ctx.needs_input_grad[2]:
            by_gate = h.to(gradient.dtype, copy=True).mul_(gradient).sum_to_size(gate.shape)
        return gradient, (gradient * gate).to(h.dtype), by_gate


class _NormedHeads(Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, turns: Tensor | None, heads: int, eps: float, dtype: torch.dtype
    ) -> Tensor:
        if x.dtype == dtype == torch.bfloat16 and looped(x, weight, turns) and x.shape[-1] % (2 * heads) == 0:
            made, rate = chains.heads(x, weight, turns, heads, eps)
        else:
            made, rate = _heads(x, weight, turns, heads, eps, dtype)
        ctx.save_for_backward(x, weight, None if turns is None else turns.to(rate.dtype), rate)
        return made

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, turns, rate = ctx.saved_tensors
        (b, n, d), kind = x.shape, rate.dtype
        if x.dtype == gradient.dtype == torch.bfloat16 and looped(x, weight, turns):
            return *chains.heads_back(gradient, x, weight, turns, rate), None, None, None, None
        turned = None if turns is None else torch.view_as_complex(turns).conj().resolve_conj()[..., None, :]
        by_x, by_weight = torch.empty_like(x, memory_format=torch.contiguous_format), weight.new_zeros(d)
        for rows in pieces(n, b * d, ROWS):
            given = gradient[:, :, rows].transpose(1, 2).to(kind, copy=True, memory_format=torch.contiguous_format)
            if turned is not None:
                _pairs(given).mul_(turned[:, rows])
            given, normed = given.flatten(2), x[:, rows].to(kind, copy=True).mul_(rate[:, rows])
            product = given * normed
            if ctx.needs_input_grad[1]:
                by_weight += product.sum((0, 1))
            along = product.mul_(weight).mean(-1, keepdim=True)
            by_x[:, rows].copy_(given.mul_(weight).addcmul_(normed, along, value=-1).mul_(rate[:, rows]))
        return by_x, by_weight if ctx.needs_input_grad[1] else None, None, None, None, None


class _Attend(Function):
    """Clips a few at a time, so that their scores stay in cache from the one product to the other."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
        (b, h, n, _), m = q.shape, k.shape[-2]
        q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
        biases = None if bias is None else bias.expand(b, -1, -1, -1)
        p, made = q.new_empty(b, h, n, m), q.new_empty(b, h, n, v.shape[-1])
        for part in pieces(len(q), p.shape[1:].numel(), SCORES):
            p[part] = shares(q[part], k[part], None if biases is None else biases[part])
            torch.matmul(p[part], v[part], out=made[part])
        ctx.save_for_backward(q, k, v, p)
        return made

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, p = ctx.saved_tensors
        gradient = gradient.contiguous()
        by_q, by_k, by_v = (torch.empty_like(each) for each in (q, k, v))
        for part in pieces(len(q), p.shape[1:].numel(), SCORES):
            shown, given = p[part], gradient[part]
            by_p = given @ v[part].transpose(-1, -2)
            by_scores = torch._softmax_backward_data(by_p, shown, -1, p.dtype)  # sums in float32 inside
            torch.matmul(by_scores, k[part], out=by_q[part])
            torch.matmul(by_scores.transpose(-1, -2), q[part], out=by_k[part])
            torch.matmul(shown.transpose(-1, -2), given, out=by_v[part])
        return by_q, by_k, by_v, None


def _pairs(x: Tensor) -> Tensor:
    """`... c` as `... c / 2` complex numbers in the same memory."""
    return torch.view_as_complex(x.unflatten(-1, (-1, 2)))
