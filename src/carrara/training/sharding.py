"""What a process holds of the weights: all of them, or its rows of those that are sharded (FSDP2).

Optimizers, averages and checkpoints see plain tensors, a sharded weight's own rows: what they do is elementwise, so
rows are updated as the whole would be, to the bit. A module that can be sharded says so by a method `units()`, from
the inside out: submodules, each with the methods besides `forward` that use its weights. Everything else is held by
every process, and its gradients are averaged after the backward pass.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from carrara.training.config import TrainConfig
from carrara.training.optim import trainable
from carrara.training.parallel import Team


@dataclass(frozen=True)
class Rows:
    """Which rows of a tensor of `whole` rows a process holds: `count` from `start` on."""

    start: int
    count: int
    whole: int

    @classmethod
    def of(cls, whole: int, rank: int, size: int) -> Rows:
        """How FSDP2 deals out rows: equal parts, rounded up, until there are none left (as `torch.chunk`)."""
        each = -(-whole // size)
        start = min(rank * each, whole)
        return cls(start, min(each, whole - start), whole)


class Held:
    """The trained weights of a module as this process holds them.

    parameters: the module's own, by name; local: the same, or where one is sharded its rows, in the same storage;
    rows: which those are, by name (only sharded ones, trained or not).
    """

    def __init__(self, module: nn.Module, team: Team) -> None:
        self.module, self.team = module, team
        self.parameters = trainable(module)
        self.rows = {
            name: Rows.of(p.shape[0], team.rank, team.size) for name, p in module.named_parameters() if is_sharded(p)
        }
        self.local: dict[str, nn.Parameter] = {
            name: nn.Parameter(local(p)) if name in self.rows else p for name, p in self.parameters.items()
        }

    def take_gradients(self) -> None:
        """After the backward pass: give the local weights their gradients, those of copies averaged."""
        if self.team.alone:
            return
        for name in self.local.keys() & self.rows.keys():
            gradient = self.parameters[name].grad
            self.local[name].grad = None if gradient is None else local(gradient)
        self._average([p for name, p in self.local.items() if name not in self.rows])

    def zero_gradients(self) -> None:
        for parameter in (*self.parameters.values(), *self.local.values()):
            parameter.grad = None

    def norm(self) -> Tensor:
        """The norm of all gradients together, a scalar that is the same on every process."""
        if not self.rows:
            return nn.utils.get_total_norm([p.grad for p in self.local.values() if p.grad is not None])
        shared = _square_sum(p.grad for name, p in self.local.items() if name in self.rows)
        copied = _square_sum(p.grad for name, p in self.local.items() if name not in self.rows)
        device = next(iter(self.local.values())).device
        return (self.team.sum(shared.to(device)) + copied.to(device)).sqrt()

    def _average(self, copies: list[nn.Parameter]) -> None:
        """Gradients of weights that every process holds, averaged in one go; without any where no process has one."""
        if not copies:
            return
        there = torch.tensor([p.grad is not None for p in copies], dtype=torch.float32, device=copies[0].device)
        flat = torch.cat(
            [there, *(torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in copies)]
        )
        dist.all_reduce(flat)
        found, *means = flat.split([len(copies), *(p.numel() for p in copies)])
        for parameter, mean, has in zip(copies, means, found.tolist()):
            # In the parameter's own layout, which optimizers rely on.
            mean = mean.div_(self.team.size).view(parameter.shape)
            parameter.grad = torch.empty_like(parameter).copy_(mean) if has else None


def is_sharded(tensor: Tensor) -> bool:
    """Whether this is a `DTensor`, whose import takes two seconds that a single process need not wait."""
    return hasattr(tensor, "to_local")


def local(tensor: Tensor) -> Tensor:
    """This process's rows of a sharded tensor, in the same storage; any other tensor as it is."""
    return tensor.detach().to_local() if is_sharded(tensor) else tensor.detach()  # type: ignore[attr-defined]


def _square_sum(gradients: Iterable[Tensor | None]) -> Tensor:
    found = [g for g in gradients if g is not None and g.numel()]
    return torch.stack(torch._foreach_norm(found)).square().sum() if found else torch.zeros(())


def spread(module: nn.Module, team: Team, config: TrainConfig) -> Held:
    """Prepare a module for its team: shard what can be, copy the first process's weights of the rest to all, and split
    sequences. Raises ValueError for what the module cannot do."""
    parallel = config.parallel
    if parallel.recompute:
        parts = [part for part in module.modules() if hasattr(part, "checkpointing")]
        if not parts:
            raise ValueError("parallel.recompute: nothing in this phase can be recomputed; leave it out")
        for part in parts:
            part.checkpointing = True  # type: ignore[assignment]
    if (group := team.sequence_group()) is not None:
        splits = [part.split_sequence for part in module.modules() if hasattr(part, "split_sequence")]
        if not splits:
            raise ValueError(
                f"parallel.sequence={parallel.sequence}: nothing in this phase is a sequence that can be split; use 1"
            )
        for split in splits:
            split(group)  # type: ignore[operator]
    if not team.alone:
        with torch.no_grad():
            for tensor in (*module.parameters(), *module.buffers()):
                team.copy_first(tensor.data)
        if parallel.shard:
            _shard(module, config)
    return Held(module, team)


def _shard(module: nn.Module, config: TrainConfig) -> None:
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

    # Weights travel in the type that matrices run in; what a module outside its units holds stays float32, as norms of
    # noise levels and their embedding want it. Gradients are summed in float32.
    compute = torch.bfloat16 if config.precision == "bfloat16" else None
    inner = MixedPrecisionPolicy(param_dtype=compute, reduce_dtype=torch.float32, cast_forward_inputs=False)
    outer = MixedPrecisionPolicy(reduce_dtype=torch.float32, cast_forward_inputs=False)
    # What is read of a text leaves a unit as a view. Nothing writes to it.
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor")
    for part in list(module.modules()):
        if not hasattr(part, "units"):
            continue
        for unit, methods in part.units():  # type: ignore[operator]
            # Without the second, what validation has gathered would outlive a change of the weights.
            fully_shard(unit, mp_policy=outer if unit is part else inner, reshard_after_forward=True)
            for method in methods:
                register_fsdp_forward_method(unit, method)


def whole(tensor: Tensor) -> Tensor:
    """All rows of a sharded tensor, on every process; any other tensor as it is. Everyone must ask."""
    return tensor.detach().full_tensor() if is_sharded(tensor) else tensor.detach()  # type: ignore[attr-defined]


class Gathered:
    """Inside, the first process's module has whole, plain weights on the CPU, to be written; the others take part."""

    def __init__(self, held: Held) -> None:
        self.held = held
        self.kept: list[tuple[nn.Module, str, nn.Parameter]] = []

    def __enter__(self) -> None:
        for name in self.held.rows:
            owner, _, attribute = name.rpartition(".")
            module = self.held.module.get_submodule(owner)
            parameter = module._parameters[attribute]
            assert parameter is not None
            found = whole(parameter)
            if self.held.team.first:
                self.kept.append((module, attribute, parameter))
                module._parameters[attribute] = nn.Parameter(found.cpu(), requires_grad=False)
            del found

    def __exit__(self, *_: object) -> None:
        for module, attribute, parameter in self.kept:
            module._parameters[attribute] = parameter
        self.kept.clear()
