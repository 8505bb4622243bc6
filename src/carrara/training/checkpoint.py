"""Checkpoints: everything a run needs to go on bit for bit, on any number of processes.

A checkpoint is one safetensors file, or where weights are sharded a folder with one from each process (`stored.py`).
Tensors are named `model/...` (parameters and buffers), `average/...` and `optimizer/<parameter>/<key>`; the scalars
(step, decay, seconds, configuration) and a checksum per tensor are JSON in the file's header. It appears under its name
only when it is whole and on the disk, and the last two are kept. Random states need no place: every step draws from a
generator seeded by (seed, step).
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from carrara.core.config import nearest
from carrara.training.optim import Average, Optimizers
from carrara.training.parallel import Team
from carrara.training.schedule import Decay
from carrara.training.sharding import Held, Rows, local
from carrara.training.stored import PARTIAL, Stored, part_name, sync, write_part

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
    found = (folder / "checkpoints").glob("step-*")
    return sorted((path for path in found if path.suffix != PARTIAL), key=lambda path: path.name.partition(".")[0])


def save_checkpoint(
    folder: Path,
    held: Held,
    average: Average,
    optimizers: Optimizers,
    state: TrainState,
    settings: Mapping[str, Any],
) -> Path:
    """Write `checkpoints/step-<n>`, then remove all but the last two. Every process of the team must call it.

    Raises OSError, after removing what was written, where the disk is full or the folder is not the same for all.
    """
    team, name = held.team, f"step-{state.step:08d}"
    tensors, rows = _tensors(held, average, optimizers)
    header = {"state": json.dumps(asdict(state)), "settings": json.dumps(settings)}
    whole = folder / "checkpoints" / (name if rows else f"{name}.safetensors")
    partial = whole.with_name(name + PARTIAL)  # a folder, for libraries leave files of names of their own behind
    if team.first:
        _remove(partial)
        partial.mkdir(parents=True)
    team.wait()
    target = partial / (part_name(team.rank, team.size) if rows else whole.name)
    failed: OSError | None = None
    try:
        if rows or team.first:
            write_part(target, tensors, rows, header)
    except OSError as error:
        failed = error
    try:
        if team.any(failed is not None):
            raise failed or OSError(f"{whole}: another process could not write its part of it; see its error")
        if team.first:
            if rows:
                _check_complete(partial, team)
            _remove(whole)  # of the same step, by a run on another number of processes
            (partial if rows else target).replace(whole)
            sync(whole.parent)
    finally:
        if team.first:
            _remove(partial)
    team.wait()
    if team.first:
        for old in checkpoints(folder)[:-KEPT]:
            _remove(old)
    return whole


def remove_partial(folder: Path) -> None:
    """Remove what a killed run has left half-written; it may have filled the disk."""
    for path in (folder / "checkpoints").glob(f"*{PARTIAL}"):
        _remove(path)


def read_state(path: Path) -> tuple[TrainState, dict[str, Any]]:
    """The scalars and the settings of a checkpoint, without its tensors."""
    with Stored(path) as stored:
        header = stored.header
    try:
        state, settings = TrainState(**json.loads(header["state"])), json.loads(header["settings"])
        state.decay = Decay(**state.decay) if isinstance(state.decay, dict) else None
    except (KeyError, TypeError, json.JSONDecodeError):
        raise ValueError(f"{path}: not a training checkpoint of this program; give its training folder") from None
    return state, settings


def load_checkpoint(path: Path, held: Held, average: Average, optimizers: Optimizers) -> None:
    """Fill the module, its average and the optimizers in place. Raises ValueError that names the file and tensor."""
    with Stored(path) as stored:
        _fill(stored, "model/", _weights(held.module), held.rows)
        _fill(stored, "average/", average.values, held.rows)
        states = {}
        for name in stored.under("optimizer/"):
            parameter = name.rpartition("/")[0]
            if parameter not in optimizers.parameters:
                raise ValueError(f"{path}: optimizer state {name!r} belongs to no trained parameter; use a new folder")
            rows = held.rows.get(parameter)
            sharded = rows is not None and stored.shape(f"optimizer/{name}")[:1] == (rows.whole,)
            states[name] = stored.read(f"optimizer/{name}", rows if sharded else None)
    optimizers.load_state(states)


def load_ema(folder: Path, module: nn.Module) -> None:
    """Fill a module with the averaged weights of a training folder's last checkpoint (or of one checkpoint).

    What was not trained (buffers, frozen parameters) comes from the checkpoint too. Raises ValueError that names the
    file and the tensor where they do not fit.
    """
    path = folder
    if folder.is_dir() and not folder.name.startswith("step-"):
        found = checkpoints(folder)
        if not found:
            raise ValueError(f"{folder}: no checkpoint here; give a folder in which a training run has saved one")
        path = found[-1]
    with Stored(path) as stored:
        targets = _weights(module)
        _fill(stored, "model/", targets, {})
        trained = set(stored.under("average/"))
        _fill(stored, "average/", {name: value for name, value in targets.items() if name in trained}, {})


def _weights(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers by name, a shared tensor once; of a sharded one this process's rows."""
    kept = module.state_dict()
    named = [*module.named_parameters(), *module.named_buffers()]
    return {name: local(value) for name, value in named if name in kept}


def _tensors(held: Held, average: Average, optimizers: Optimizers) -> tuple[dict[str, Tensor], dict[str, Rows]]:
    """What this process writes, and which of it are rows of a larger tensor. What all hold, the first one writes."""
    groups = {"model": _weights(held.module), "average": average.values, "optimizer": optimizers.state()}
    tensors: dict[str, Tensor] = {}
    rows: dict[str, Rows] = {}
    for group, values in groups.items():
        for name, value in values.items():
            parameter = name.rpartition("/")[0] if group == "optimizer" else name
            its, full = held.rows.get(parameter), f"{group}/{name}"
            if its is not None and value.ndim:
                rows[full] = its
            elif not held.team.first:
                continue
            tensors[full] = value.detach().cpu().contiguous()
    return tensors, rows


def _fill(stored: Stored, prefix: str, targets: Mapping[str, Tensor], rows: Mapping[str, Rows]) -> None:
    given = stored.under(prefix)
    shapes = {}
    for name, target in targets.items():
        if name not in given:
            raise ValueError(f"{stored.path}: tensor {prefix + name!r} is missing; {nearest(name, given)}")
        shapes[name] = (rows[name].whole, *target.shape[1:]) if name in rows else tuple(target.shape)
        if stored.shape(prefix + name) != shapes[name]:
            raise ValueError(
                f"{stored.path}: tensor {prefix + name!r} has shape {stored.shape(prefix + name)}, "
                f"the model has {shapes[name]}; use the configuration it was trained with"
            )
    for name in given:
        if name not in targets:
            raise ValueError(f"{stored.path}: unknown tensor {prefix + name!r}; {nearest(name, targets)}")
    with torch.no_grad():
        for name, target in targets.items():
            target.copy_(stored.read(prefix + name, rows.get(name)))


def _check_complete(partial: Path, team: Team) -> None:
    """Refuse to call a checkpoint whole of which the first process does not see every part."""
    missing = [rank for rank in range(team.size) if not (partial / part_name(rank, team.size)).is_file()]
    if missing:
        raise OSError(
            f"{partial}: the parts of processes {missing} are not there; train in a folder that all machines share"
        )
    sync(partial)


def _remove(path: Path) -> None:
    if path.is_dir():
        # A folder that is being removed must not look whole: it loses its name first.
        gone = path.with_name(f".{path.name}{PARTIAL}")
        shutil.rmtree(gone, ignore_errors=True)
        os.replace(path, gone)
        shutil.rmtree(gone)
    else:
        path.unlink(missing_ok=True)
