"""Muon for matrices of which every process holds some rows.

Momentum is elementwise and stays with the rows. Orthogonalising (Jordan 2024) needs the whole matrix, so matrices are
dealt out: each process collects one in bfloat16, in which `torch.optim.Muon` works as well, orthogonalises it, and
sends everyone's rows back. Every number is the one that `torch.optim.Muon` makes of whole matrices.
torch's own Muon, given such rows as DTensors, would multiply each matrix across processes at every iteration; given
plain rows, it would orthogonalise the rows of each process by themselves, which is another optimizer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Muon, Optimizer
from torch.optim._muon import _adjust_lr, _zeropower_via_newtonschulz

from carrara.training.optim import MakeMuon, whole_muon
from carrara.training.sharding import Held, Rows


def muon_of(held: Held) -> MakeMuon:
    """What makes Muon for the matrices of a module, some of which may be sharded."""

    def make(matrices: dict[str, nn.Parameter], **settings: Any) -> list[Optimizer]:
        copies = {name: matrix for name, matrix in matrices.items() if name not in held.rows}
        sharded = {name: matrix for name, matrix in matrices.items() if name in held.rows}
        parts = whole_muon(copies, **settings) if copies else []
        if sharded:
            rows = [held.rows[name] for name in sharded]
            parts.append(ShardedMuon(list(sharded.values()), rows, held.team.rank, held.team.size, **settings))
        return parts

    return make


class ShardedMuon(Muon):
    """`torch.optim.Muon` over this process's rows of matrices. All processes must hold the same matrices in the same
    order, and step together.

    rows: which rows of each matrix the parameters are, in their order; settings: those of `torch.optim.Muon`.
    """

    def __init__(
        self, parameters: Sequence[Tensor], rows: Sequence[Rows], rank: int, size: int, **settings: Any
    ) -> None:
        super().__init__(parameters, **settings)
        self.rows = dict(zip(parameters, rows, strict=True))
        self.rank, self.size = rank, size

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        assert closure is None
        for group in self.param_groups:
            for matrices in _dealt([p for p in group["params"] if p.grad is not None], self.size):
                updates = [self._momentum(p, group) for p in matrices]
                made = self._orthogonalised(matrices, updates, group)
                for parameter, update in zip(matrices, made):
                    shape = (self.rows[parameter].whole, *parameter.shape[1:])
                    rate = _adjust_lr(group["lr"], group["adjust_lr_fn"], torch.Size(shape))
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    parameter.add_(update, alpha=-rate)

    def _momentum(self, parameter: Tensor, group: dict[str, Any]) -> Tensor:
        state, gradient = self.state[parameter], parameter.grad
        assert gradient is not None
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        buffer = state["momentum_buffer"].lerp_(gradient, 1 - group["momentum"])
        return (gradient.lerp(buffer, group["momentum"]) if group["nesterov"] else buffer).bfloat16()

    def _orthogonalised(
        self, matrices: Sequence[Tensor], rows: Sequence[Tensor], group: dict[str, Any]
    ) -> list[Tensor]:
        """Own rows of the orthogonalised matrices; process i makes number i, and those beyond their number none."""
        widths = [matrix.shape[1] for matrix in matrices]
        own = [self.rows[matrix].count * width for matrix, width in zip(matrices, widths)]
        whole, made = [0] * self.size, rows[0].new_empty(0)
        if mine := self.rank < len(matrices):
            total, width = self.rows[matrices[self.rank]].whole, widths[self.rank]
            whole = [Rows.of(total, rank, self.size).count * width for rank in range(self.size)]
        idle = [0] * (self.size - len(matrices))
        got = self._exchange(torch.cat([part.flatten() for part in rows]), [*own, *idle], whole)
        if mine:
            settings = group["ns_coefficients"], group["ns_steps"], group["eps"]
            made = _zeropower_via_newtonschulz(got.view(total, width), *settings).contiguous().flatten()
        back = self._exchange(made, whole, [*own, *idle])
        return [part.view(-1, width) for part, width in zip(back.split([*own, *idle]), widths)]

    def _exchange(self, sent: Tensor, counts: list[int], coming: list[int]) -> Tensor:
        """Consecutive stretches of `counts` numbers go to the processes in order; theirs come in, of `coming`."""
        got = sent.new_empty(sum(coming))
        dist.all_to_all_single(got, sent, coming, counts)
        return got


def _dealt(parameters: Sequence[Tensor], size: int) -> Iterator[Sequence[Tensor]]:
    """As many at a time as there are processes."""
    for start in range(0, len(parameters), size):
        yield parameters[start : start + size]
