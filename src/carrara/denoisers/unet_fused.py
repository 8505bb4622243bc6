"""What lies between the convolutions and products of a space-time U-Net, each chain as one step of autograd.

Not standard: on a CPU these chains took most of a training step. Their derivatives are written out as few passes over
memory, and attention reads queries, keys and values where one product left them, instead of rearranging them all. The
plain formulas run elsewhere and when compiled.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from carrara.nn.fused import MANY, SCORES, pieces, wide

FEW = 1024
"""Frames of fewer places are normalised by another kernel of torch's."""


def norm_silu(x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, added: Tensor | None = None) -> Tensor:
    """SiLU of the group norm of each frame of `n h w c`, to each of which a row of `added`, `n c`, is added first."""
    if by_hand(x):
        return _NormSiLU.apply(x, weight, bias, groups, eps, added)
    if added is not None:
        x = x + added[:, None, None].to(x.dtype)
    return F.silu(F.group_norm(x.permute(0, 3, 1, 2), groups, weight, bias, eps)).permute(0, 2, 3, 1)


def attend_space(qkv: Tensor, heads: int) -> Tensor:
    """The positions of each frame attend to each other: `n p (3 k c)` to `n p (k c)`, softmax(q k' / sqrt(c)) v."""
    if by_hand(qkv):
        return _AttendSpace.apply(qkv, heads)
    q, k, v = rearrange(qkv, "n p (three k c) -> three n k p c", three=3, k=heads).unbind(0)
    return rearrange(F.scaled_dot_product_attention(q, k, v), "n k p c -> n p (k c)")


def attend_time(qkv: Tensor, bias: Tensor) -> Tensor:
    """Each place attends along its clip: `b f p (3 k c)` to `b f p (k c)`, with a bias `k f f` of the scores."""
    if by_hand(qkv):
        return _AttendTime.apply(qkv, bias)
    q, k, v = rearrange(qkv, "b f p (three k c) -> three b p k f c", three=3, k=len(bias)).unbind(0)
    scores = (q @ k.transpose(-1, -2)).to(wide(q.dtype)) * q.shape[-1] ** -0.5 + bias
    return rearrange(scores.softmax(-1).to(v.dtype) @ v, "b p k f c -> b f p (k c)")


def by_hand(x: Tensor) -> bool:
    """Whether the chains of this file are worth their while, with gradients or without."""
    return x.is_cpu and not torch.compiler.is_compiling()


class _NormSiLU(Function):
    """With n = (x - mean) / std of a group and u = weight n + bias: y = silu(u), and from g = dy silu'(u),

    dx = (weight g - mean(weight g) - n mean(weight g n)) / std, the means being over the group. It is written as
    a g + b (x - mean) + c with a, b and c of a frame's channels, which follow from sums over places.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, added: Tensor | None
    ) -> Tensor:
        n, h, w, c = x.shape
        x = x if added is None else x + added[:, None, None].to(x.dtype)
        # torch's kernel for fewer places than FEW is made for float32: with the copies it is twice as fast
        given = x.to(wide(x.dtype)) if h * w < FEW else x
        channels_first = given.permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)
        gain, shift = weight.to(wide(x.dtype)), bias.to(wide(x.dtype))
        normed, mean, rate = torch.native_group_norm(channels_first, gain, shift, n, c, h * w, groups, eps)
        normed = normed.permute(0, 2, 3, 1).to(x.dtype)
        ctx.save_for_backward(x, normed, mean, rate, weight, added)
        return F.silu(normed)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, normed, mean, rate, weight, added = ctx.saved_tensors
        g = torch.ops.aten.silu_backward(gradient, normed).flatten(1, 2)
        dtype, (_, p, c), groups = wide(x.dtype), g.shape, mean.shape[1]
        mean, rate, gain = mean[..., None].to(dtype), rate[..., None].to(dtype), weight.view(groups, -1).to(dtype)
        near = mean.to(x.dtype)  # rounded as x is; what that leaves, `off`, is made up for in the sums
        off = near.to(dtype) - mean
        centred = x.flatten(1, 2) - _rows(near.expand(-1, -1, c // groups), x.dtype)
        sums, products = (s.sum(1).to(dtype).unflatten(1, (groups, -1)) for s in (g, g * centred))
        products = (products + off * sums) * rate  # now with n
        down, along = ((s * gain).sum(-1, keepdim=True) * (-groups / (p * c)) * rate for s in (sums, products))
        a, b = gain * rate, (along * rate).expand_as(sums)
        shift = (down + b * off).expand_as(sums)
        by_x = torch.addcmul(_rows(shift, g.dtype), centred, _rows(b, g.dtype)).addcmul_(g, _rows(a, g.dtype))
        return (
            by_x.view_as(x),
            products.sum(0).flatten().to(weight.dtype),
            sums.sum(0).flatten().to(weight.dtype),
            None,
            None,
            None if added is None else by_x.sum(1).to(added.dtype),
        )


class _AttendSpace(Function):
    @staticmethod
    def forward(ctx: Any, qkv: Tensor, heads: int) -> Tensor:
        n, p, width = qkv.shape
        split = qkv.contiguous().view(n, p, 3, heads, -1)
        made = qkv.new_empty(n, p, heads, width // 3 // heads)
        learns = ctx.needs_input_grad[0]
        shares = qkv.new_empty(n, heads, p, p) if learns else None
        for rows in pieces(n, heads * p * p, SCORES):
            q, k, v = _heads(split[rows])
            share = _softmax(q @ k.transpose(-1, -2), None if shares is None else shares[rows])
            made[rows] = (share @ v).transpose(1, 2)
        if shares is not None:
            ctx.save_for_backward(split, shares)
        return made.flatten(2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        split, shares = ctx.saved_tensors
        n, p, _, heads, c = split.shape
        outer, by_split = gradient.reshape(n, p, heads, c).transpose(1, 2), torch.empty_like(split)
        for rows in pieces(n, heads * p * p, SCORES):
            (q, k, v), share, g = _heads(split[rows]), shares[rows], outer[rows].contiguous()
            by_scores = torch._softmax_backward_data(g @ v.transpose(-1, -2), share, -1, share.dtype)
            by_q = (by_scores @ k).mul_(c**-0.5)
            for part, by_part in enumerate((by_q, by_scores.transpose(-1, -2) @ q, share.transpose(-1, -2) @ g)):
                by_split[rows, :, part] = by_part.transpose(1, 2)
        return by_split.view(n, p, -1), None


class _AttendTime(Function):
    @staticmethod
    def forward(ctx: Any, qkv: Tensor, bias: Tensor) -> Tensor:
        q, k, v = _by_place(qkv, 3 * len(bias)).chunk(3)
        scores = (q @ k.transpose(-1, -2)).to(wide(q.dtype)).mul_(q.shape[-1] ** -0.5).add_(bias[:, None])
        share = scores.softmax(-1)
        ctx.save_for_backward(q, k, v, share)
        return _by_frame(share.to(v.dtype) @ v, len(qkv))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, share = ctx.saved_tensors
        outer = _by_place(gradient, len(q))
        by_shares = (outer @ v.transpose(-1, -2)).to(share.dtype)
        by_scores = torch._softmax_backward_data(by_shares, share, -1, share.dtype)
        by_bias = by_scores.sum(1) if ctx.needs_input_grad[1] else None
        by_scores = by_scores.mul_(q.shape[-1] ** -0.5).to(q.dtype)
        by_qkv = q.new_empty(3, *q.shape)
        torch.matmul(by_scores, k, out=by_qkv[0])
        torch.matmul(by_scores.transpose(-1, -2), q, out=by_qkv[1])
        torch.matmul(share.to(v.dtype).transpose(-1, -2), outer, out=by_qkv[2])
        return _by_frame(by_qkv.flatten(0, 1), len(gradient)), by_bias


def _by_place(x: Tensor, heads: int) -> Tensor:
    """`b f p (k c)` to `k (b p) f c`: by two copies of long rows, which together take a fraction of one that jumps."""
    places = x.transpose(1, 2).contiguous()
    return rearrange(places, "b p f (k c) -> k (b p) f c", k=heads).contiguous()


def _by_frame(x: Tensor, batch: int) -> Tensor:
    """The inverse of `_by_place`."""
    places = rearrange(x, "k n f c -> n f k c").contiguous()
    return rearrange(places, "(b p) f k c -> b f p (k c)", b=batch).contiguous()


def _rows(x: Tensor, dtype: torch.dtype) -> Tensor:
    """`n g c` as `n 1 (g c)`, for all places of a frame."""
    return x.flatten(1)[:, None].to(dtype)


def _heads(split: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`n p 3 k c` as queries, which get their factor, keys and values, each `n k p c` in a row."""
    q, k, v = (split[:, :, part].transpose(1, 2) for part in range(3))
    return (q * split.shape[-1] ** -0.5).contiguous(), k.contiguous(), v.contiguous()


def _softmax(scores: Tensor, out: Tensor | None = None) -> Tensor:
    if scores.shape[-1] >= MANY:
        return torch.softmax(scores, -1, out=out)
    share = scores.to(wide(scores.dtype)).softmax(-1)
    return share.to(scores.dtype) if out is None else out.copy_(share)
