"""Optimizers and averaged weights.

Not standard: under "muon" the matrices inside transformer blocks are updated by Muon (orthogonalised momentum, Jordan
2024; scaled to AdamW's root mean square after Liu et al., arXiv 2502.16982) and everything else by AdamW. A convolution
is to Muon the matrix of its filters. Vectors (norms, biases) are never decayed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Muon, Optimizer

from carrara.training.config import TrainConfig

IsMatrix = Callable[[str, nn.Parameter], bool]
MakeMuon = Callable[..., list[Optimizer]]


def whole_muon(matrices: dict[str, nn.Parameter], **settings: Any) -> list[Optimizer]:
    """Muon for matrices that this process holds whole."""
    return [Muon(list(matrices.values()), **settings)]


def block_matrices(module: nn.Module) -> IsMatrix:
    """The default choice for Muon: two-dimensional weights inside numbered blocks or layers, embeddings excepted."""
    tables = {id(p) for part in module.modules() if isinstance(part, nn.Embedding) for p in part.parameters()}

    def is_matrix(name: str, parameter: nn.Parameter) -> bool:
        inside = re.search(r"(^|\.)(blocks?|layers?)\.\d+\.", name) is not None
        return inside and parameter.ndim == 2 and min(parameter.shape) > 1 and id(parameter) not in tables

    return is_matrix


def trainable(module: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that are optimised, by name, a shared one once. Raises ValueError unless they are float32."""
    found = {name: p for name, p in module.named_parameters() if p.requires_grad}
    if not found:
        raise ValueError(f"{type(module).__name__}: nothing to train; no parameter requires a gradient")
    for name, parameter in found.items():
        if parameter.dtype != torch.float32:
            raise ValueError(
                f"parameter {name!r} is {parameter.dtype}: train in float32, compute in precision='bfloat16'"
            )
    return found


class Optimizers:
    """One or two optimizers over a module's parameters, stepped together at a common share of their learning rates."""

    def __init__(
        self,
        parameters: dict[str, nn.Parameter],
        is_matrix: IsMatrix,
        config: TrainConfig,
        make_muon: MakeMuon | None = None,
    ) -> None:
        """make_muon: of matrices by name and Muon's settings; for those of which this process holds some rows."""
        self.parameters = parameters
        matrices = {n: p for n, p in parameters.items() if config.optimizer == "muon" and is_matrix(n, p)}
        others = {n: p for n, p in parameters.items() if n not in matrices}
        if config.optimizer == "muon" and not matrices:
            raise ValueError("optimizer='muon': no parameter is a block matrix; use 'adamw' or define phase.is_matrix")
        groups = [
            {"params": [p for p in others.values() if p.ndim > 1], "weight_decay": config.weight_decay},
            {"params": [p for p in others.values() if p.ndim < 2], "weight_decay": 0.0},
        ]
        groups = [group for group in groups if group["params"]]
        self.parts: list[Optimizer] = []
        if groups:
            self.parts.append(AdamW(groups, lr=config.learning_rate, betas=config.betas, fused=True))
        # Muon takes matrices only, so a convolution's filters are seen as rows; the storage is the parameter's own.
        self.rows = {
            n: nn.Parameter(p.data.view(len(p), math.prod(p.shape[1:]))) for n, p in matrices.items() if p.ndim > 2
        }
        if matrices:
            self.parts += (make_muon or whole_muon)(
                {name: self.rows.get(name, parameter) for name, parameter in matrices.items()},
                lr=config.matrix_learning_rate,
                weight_decay=config.weight_decay,
                adjust_lr_fn="match_rms_adamw",
            )
        self.full_rates = [[group["lr"] for group in part.param_groups] for part in self.parts]

    def step(self, share: float) -> None:
        """Update the weights at this share of the full learning rates."""
        for name, rows in self.rows.items():
            gradient = self.parameters[name].grad
            rows.grad = None if gradient is None else gradient.reshape(rows.shape)
        for part, rates in zip(self.parts, self.full_rates):
            for group, full in zip(part.param_groups, rates):
                group["lr"] = full * share
            part.step()

    def state(self) -> dict[str, Tensor]:
        """Every state tensor, named `<parameter>/<key>`."""
        names: dict[Tensor, str] = {p: name for name, p in (*self.parameters.items(), *self.rows.items())}
        return {
            f"{names[parameter]}/{key}": value
            for part in self.parts
            for parameter, values in part.state.items()
            for key, value in values.items()
        }

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Take up the state that `state` gave; a parameter that had none starts afresh."""
        owner = {p: part for part in self.parts for group in part.param_groups for p in group["params"]}
        for name, value in tensors.items():
            parameter = self.rows.get(name.rpartition("/")[0], self.parameters[name.rpartition("/")[0]])
            owner[parameter].state[parameter][name.rpartition("/")[2]] = value.to(parameter.device, copy=True)


def ema_decay(updates: int, ceiling: float) -> float:
    """The decay of the average at the update after `updates` others: short memory at first, then the ceiling."""
    return min(ceiling, (1 + updates) / (10 + updates))


class Average:
    """An exponential moving average of parameters, in float32.

    in_place: the storages of the parameters are known elsewhere (rows of sharded weights), so contents change places.
    """

    def __init__(self, parameters: dict[str, nn.Parameter], in_place: bool = False) -> None:
        self.parameters, self.in_place = parameters, in_place
        self.values = {name: p.detach().clone() for name, p in parameters.items()}

    @torch.no_grad()
    def update(self, decay: float) -> None:
        """average <- decay * average + (1 - decay) * weights."""
        torch._foreach_lerp_(list(self.values.values()), [p.detach() for p in self.parameters.values()], 1 - decay)

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """Inside, the module's weights are the averaged ones; storages change places, and nothing is copied."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for name, parameter in self.parameters.items():
            if self.in_place:
                held = parameter.detach().clone()
                parameter.data.copy_(self.values[name])
                self.values[name].copy_(held)
            else:
                parameter.data, self.values[name] = self.values[name], parameter.data
