"""Long clips on several devices: each has some of the tokens, and for attention some of the heads.

DeepSpeed-Ulysses (Jacobs et al., arXiv:2309.14509): everything but attention works token by token, so a device of S
keeps n / S tokens throughout; around attention an all-to-all hands over all n tokens of h / S heads, and a second one
hands the answers back. Not standard: tokens need not divide by S, since each device's number of them is known to all;
tokens are taken from every noise level's group alike, so that modulation stays one row per group.

Gradients: every device computes the same loss of the joined output, and what it adds to a weight's gradient is S times
its tokens' part. So the mean over all devices is the gradient, for weights inside and outside the split alike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from carrara.nn.layers import Levels


@dataclass(frozen=True)
class SequenceGroup:
    """The `size` processes that share clips, and which of them this one is."""

    group: dist.ProcessGroup
    rank: int
    size: int

    def split(self, groups: int, each: int) -> Parts:
        """How tokens `b groups each d` are spread: along `each`, or along groups where those are too small.

        Raises ValueError for fewer tokens than processes.
        """
        axis, length = (2, each) if each >= self.size else (1, groups)
        if length < self.size:
            raise ValueError(
                f"{groups * each} tokens for {self.size} processes: too short a clip to split; lower parallel.sequence"
            )
        sizes = tuple(length * (r + 1) // self.size - length * r // self.size for r in range(self.size))
        return Parts(self, axis, sizes, groups * each // length)


@dataclass(frozen=True)
class Parts:
    """How the tokens `b g s d` of one pass are spread over a group: `sizes` by process along `axis`; `across` is the
    length of the other of g and s."""

    team: SequenceGroup
    axis: int
    sizes: tuple[int, ...]
    across: int

    @property
    def tokens(self) -> tuple[int, ...]:
        """How many tokens each process has."""
        return tuple(size * self.across for size in self.sizes)

    def own(self, x: Tensor) -> Tensor:
        """This process's part of `b g s ...`."""
        start = sum(self.sizes[: self.team.rank])
        return x.narrow(self.axis, start, self.sizes[self.team.rank])

    def own_flat(self, x: Tensor) -> Tensor:
        """This process's part of `b (g s) ...`."""
        length = sum(self.sizes)
        shape = (self.across, length) if self.axis == 2 else (length, self.across)
        return self.own(x.unflatten(1, shape)).flatten(1, 2)

    def own_levels(self, levels: Levels) -> Levels:
        """The noise levels of the groups that this process has tokens of."""
        b, g = levels.groups
        if self.axis == 2 or g == 1:
            return levels
        which = levels.which
        if which is None:
            which = torch.arange(b * g, device=levels.values.device).view(b, g)
        which = self.own(which)
        return replace(levels, which=which, groups=(b, which.shape[1]))

    def join(self, x: Tensor) -> Tensor:
        """All tokens `b g s d` from every process's part, in their order."""
        return _Join.apply(x, self)

    def exchange(self, attend: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """`attend(q, k, v)` of `b h n c` with this process's n tokens, over the tokens of all of them."""
        q, k, v = _ToHeads.apply(torch.cat((q, k, v)), self).chunk(3)
        return _ToTokens.apply(attend(q, k, v), self)


def check_heads(heads: int, size: int) -> None:
    """Refuse heads that cannot be shared out evenly."""
    if heads % size:
        fitting = [n for n in range(1, heads + 1) if heads % n == 0]
        raise ValueError(
            f"parallel.sequence={size}: this network has {heads} heads, which must divide by it; "
            f"use one of {', '.join(map(str, fitting))}"
        )


class _ToHeads(Function):
    """All heads of own tokens `b h n_r c` to own heads of all tokens `b (h / S) n c`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, parts: Parts) -> Tensor:
        ctx.parts = parts
        return _to_heads(x, parts)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _to_tokens(gradient, ctx.parts), None


class _ToTokens(Function):
    """The inverse, and so each is the other's derivative."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, parts: Parts) -> Tensor:
        ctx.parts = parts
        return _to_tokens(x, parts)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _to_heads(gradient, ctx.parts), None


def _to_heads(x: Tensor, parts: Parts) -> Tensor:
    b, h, _, c = x.shape
    size, heads = parts.team.size, h // parts.team.size
    sent = x.unflatten(1, (size, heads)).transpose(0, 1)  # S b h/S n_r c: a chunk for every process
    shapes = [(b, heads, tokens, c) for tokens in parts.tokens]
    return torch.cat(_all_to_all(list(sent.unbind()), shapes, parts.team), dim=2)


def _to_tokens(x: Tensor, parts: Parts) -> Tensor:
    b, heads, _, c = x.shape
    shape = (b, heads, parts.tokens[parts.team.rank], c)
    return torch.cat(_all_to_all(list(x.split(parts.tokens, dim=2)), [shape] * parts.team.size, parts.team), dim=1)


def _all_to_all(sent: list[Tensor], shapes: Sequence[tuple[int, ...]], team: SequenceGroup) -> list[Tensor]:
    """What every process has sent to this one, in these shapes, for what this one sends to each."""
    flat = torch.cat([part.reshape(-1) for part in sent])
    counts = [prod(shape) for shape in shapes]
    got = flat.new_empty(sum(counts))
    dist.all_to_all_single(got, flat, counts, [part.numel() for part in sent], group=team.group)
    return [part.view(shape) for part, shape in zip(got.split(counts), shapes)]


class _Join(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, parts: Parts) -> Tensor:
        ctx.parts = parts
        most = max(parts.sizes)  # a gather wants equal parts
        filled = x.new_zeros(*x.shape[: parts.axis], most, *x.shape[parts.axis + 1 :])
        filled.narrow(parts.axis, 0, x.shape[parts.axis]).copy_(x)
        got = [torch.empty_like(filled) for _ in parts.sizes]
        dist.all_gather(got, filled, group=parts.team.group)
        return torch.cat([part.narrow(parts.axis, 0, n) for part, n in zip(got, parts.sizes)], dim=parts.axis)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """Every process has the gradient of the whole; the sum of all of theirs, for the own part."""
        return ctx.parts.own(gradient) * ctx.parts.team.size, None
