"""Checkpoints: one safetensors file that holds everything a run needs to go on bit for bit.

Tensors are named `model/...` (parameters and buffers), `average/...` and `optimizer/<parameter>/<key>`; the scalars
(step, decay, seconds, configuration) and a checksum per tensor are JSON in the file's header. The file appears under
its name only when it is whole, and the last two are kept. Random states need no place: every step draws from a
generator seeded by (seed, step).
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from carrara.core.config import nearest
from carrara.training.optim import Average, Optimizers
from carrara.training.schedule import Decay

KEPT = 2


@dataclass
class TrainState:
    """The scalars of a run: steps done, how many of them were skipped (and in a row), seconds spent, the decay."""

    step: int = 0
    skipped: int = 0
    skipped_in_row: int = 0
    seconds: float = 0.0
    decay: Decay | None = None


def checkpoints(folder: Path) -> list[Path]:
    """The whole checkpoints of a training folder, oldest first; half-written ones have another name."""
    return sorted((folder / "checkpoints").glob("step-*.safetensors"))


def save_checkpoint(
    folder: Path,
    module: nn.Module,
    average: Average,
    optimizers: Optimizers,
    state: TrainState,
    settings: Mapping[str, Any],
) -> Path:
    """Write `checkpoints/step-<n>.safetensors`, then remove all but the last two."""
    tensors = {f"model/{name}": value for name, value in _weights(module).items()}
    tensors |= {f"average/{name}": value for name, value in average.values.items()}
    tensors |= {f"optimizer/{name}": value for name, value in optimizers.state().items()}
    tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    header = {
        "state": json.dumps(asdict(state)),
        "settings": json.dumps(settings),
        "checksums": json.dumps({name: _checksum(value) for name, value in tensors.items()}),
    }
    path = folder / "checkpoints" / f"step-{state.step:08d}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    try:
        save_file(tensors, partial, metadata=header)
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    for old in checkpoints(folder)[:-KEPT]:
        old.unlink()
    return path


def read_state(path: Path) -> tuple[TrainState, dict[str, Any]]:
    """The scalars and the settings of a checkpoint, without its tensors."""
    with _opened(path) as file:
        header = file.metadata() or {}
    try:
        state, settings = TrainState(**json.loads(header["state"])), json.loads(header["settings"])
        state.decay = Decay(**state.decay) if isinstance(state.decay, dict) else None
    except (KeyError, TypeError, json.JSONDecodeError):
        raise ValueError(f"{path}: not a training checkpoint of this program; give its training folder") from None
    return state, settings


def load_checkpoint(path: Path, module: nn.Module, average: Average, optimizers: Optimizers) -> None:
    """Fill the module, its average and the optimizers in place. Raises ValueError that names the file and tensor."""
    tensors = _read(path, ("model/", "average/", "optimizer/"))
    _fill(path, "model/", tensors, _weights(module))
    _fill(path, "average/", tensors, average.values)
    states = {name.removeprefix("optimizer/"): v for name, v in tensors.items() if name.startswith("optimizer/")}
    for name in states:
        if name.rpartition("/")[0] not in optimizers.parameters:
            raise ValueError(f"{path}: optimizer state {name!r} belongs to no trained parameter; use a new folder")
    optimizers.load_state(states)


def load_ema(folder: Path, module: nn.Module) -> None:
    """Fill a module with the averaged weights of a training folder's last checkpoint (or of one checkpoint file).

    What was not trained (buffers, frozen parameters) comes from the checkpoint too. Raises ValueError that names the
    file and the tensor where they do not fit.
    """
    path = folder
    if folder.is_dir():
        found = checkpoints(folder)
        if not found:
            raise ValueError(f"{folder}: no checkpoint here; give a folder in which a training run has saved one")
        path = found[-1]
    tensors = _read(path, ("model/", "average/"))
    tensors |= {"model/" + n.removeprefix("average/"): v for n, v in tensors.items() if n.startswith("average/")}
    _fill(path, "model/", tensors, _weights(module))


def _weights(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers by name, a shared tensor once."""
    kept = module.state_dict()
    named = [*module.named_parameters(), *module.named_buffers()]
    return {name: value.data for name, value in named if name in kept}


def _read(path: Path, prefixes: tuple[str, ...]) -> dict[str, Tensor]:
    tensors = {}
    with _opened(path) as file:
        checksums = json.loads((file.metadata() or {}).get("checksums", "{}"))
        for name in file.keys():  # noqa: SIM118 (not a dict)
            if name.startswith(prefixes):
                tensors[name] = file.get_tensor(name)
                if _checksum(tensors[name]) != checksums.get(name):
                    raise ValueError(f"{path}: tensor {name!r} is damaged; {_remedy(path)}")
    return tensors


def _fill(path: Path, prefix: str, tensors: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> None:
    given = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    for name, target in targets.items():
        if name not in given:
            raise ValueError(f"{path}: tensor {prefix + name!r} is missing; {nearest(name, given)}")
        if given[name].shape != target.shape:
            raise ValueError(
                f"{path}: tensor {prefix + name!r} has shape {tuple(given[name].shape)}, "
                f"the model has {tuple(target.shape)}; use the configuration it was trained with"
            )
    for name in given:
        if name not in targets:
            raise ValueError(f"{path}: unknown tensor {prefix + name!r}; {nearest(name, targets)}")
    with torch.no_grad():
        for name, value in given.items():
            targets[name].copy_(value)


def _opened(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: damaged or not a checkpoint ({error}); {_remedy(path)}") from None


def _remedy(path: Path) -> str:
    earlier = [other for other in sorted(path.parent.glob("step-*.safetensors")) if other.name < path.name]
    return f"delete it to go on from {earlier[-1].name}" if earlier else "delete it to start afresh, or copy it again"


def _checksum(value: Tensor) -> int:
    return zlib.crc32(value.contiguous().flatten().view(torch.uint8).numpy().data)
