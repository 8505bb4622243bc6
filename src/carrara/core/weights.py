"""Weights on disk: safetensors only, whole or sharded, checked by name and shape; and tables that rename them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from carrara.core.config import nearest, read_json


@dataclass(frozen=True)
class NameTable:
    """A bijection between two naming schemes, written as rows of (ours, theirs); `{}` stands for a block's number.

    A row names a whole tensor or a prefix that ends at a dot boundary; of several that match, the longest wins.
    """

    rows: Sequence[tuple[str, str]]

    def to_theirs(self, name: str) -> str:
        return _rename(name, [(ours, theirs) for ours, theirs in self.rows])

    def to_ours(self, name: str) -> str:
        return _rename(name, [(theirs, ours) for ours, theirs in self.rows])


def _rename(name: str, rows: Iterable[tuple[str, str]]) -> str:
    best: tuple[int, str] | None = None
    for source, target in rows:
        pattern = re.escape(source).replace(r"\{\}", r"(\d+)")
        match = re.match(rf"{pattern}(?=\.|$)", name)
        if match and (best is None or len(source) > best[0]):
            numbers = match.groups()
            parts = target.split("{}")
            renamed = parts[0] + "".join(number + part for number, part in zip(numbers, parts[1:]))
            best = (len(source), renamed + name[match.end() :])
    return best[1] if best else name


def shard_files(folder: Path, stem: str) -> list[Path]:
    """The safetensors files that hold a component's weights, in order. Raises ValueError if there are none."""
    whole = folder / f"{stem}.safetensors"
    if whole.is_file():
        return [whole]
    index = folder / f"{stem}.safetensors.index.json"
    if not index.is_file():
        raise ValueError(f"{folder}: no weights here; expected {whole.name} or {index.name}")
    names = sorted(set(read_json(index).get("weight_map", {}).values()))
    for name in names:
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise ValueError(f"{index}: shard name {name!r} is not a plain .safetensors file name")
        if not (folder / name).is_file():
            raise ValueError(f"{folder}: shard {name} is missing; download the folder again")
    return [folder / name for name in names]


def load_weights(
    module: nn.Module, folder: Path, stem: str, table: NameTable | None = None, dtype: torch.dtype | None = None
) -> None:
    """Fill a module from a folder's safetensors, tensor by tensor (memory-mapped), and leave nothing unfilled.

    A module on the meta device gets storage as it is filled. Raises ValueError that names the first tensor that is
    missing, unknown, or of another shape.
    """
    wanted = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    persistent = set(module.state_dict())
    filled: set[str] = set()
    for path in shard_files(folder, stem):
        try:
            with safe_open(path, framework="pt") as shard:
                for theirs in shard.keys():  # noqa: SIM118 (not a dict)
                    ours = table.to_ours(theirs) if table else theirs
                    if ours not in persistent:
                        known = [table.to_theirs(name) for name in persistent] if table else persistent
                        raise ValueError(f"{path}: unknown tensor {theirs!r}; {nearest(theirs, known)}")
                    value = shard.get_tensor(theirs)
                    if value.shape != wanted[ours].shape:
                        raise ValueError(
                            f"{path}: tensor {theirs!r} has shape {tuple(value.shape)}, "
                            f"the configuration wants {tuple(wanted[ours].shape)}"
                        )
                    _assign(module, ours, value.to(dtype or value.dtype))
                    filled.add(ours)
        except SafetensorError as error:
            raise ValueError(f"{path}: damaged or not a safetensors file ({error}); copy it again") from None
    missing = sorted(persistent - filled)
    if missing:
        name = table.to_theirs(missing[0]) if table else missing[0]
        raise ValueError(f"{folder}: tensor {name!r} is missing ({len(missing)} in all); is the file whole?")


def _assign(module: nn.Module, name: str, value: Tensor) -> None:
    *path, leaf = name.split(".")
    owner = module.get_submodule(".".join(path))
    if leaf in owner._parameters:
        owner._parameters[leaf] = nn.Parameter(value, requires_grad=value.is_floating_point())
    else:
        owner._buffers[leaf] = value


def save_weights(
    tensors: Mapping[str, Tensor], path: Path, table: NameTable | None = None, dtype: torch.dtype | None = None
) -> None:
    """Write one safetensors file through a temporary name, so that a half-written one never has the real name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    renamed = {}
    for name, value in tensors.items():
        keep = value.detach().to("cpu", dtype if dtype and value.is_floating_point() else value.dtype)
        renamed[table.to_theirs(name) if table else name] = keep.contiguous()
    partial = path.with_name(f".{path.name}.partial")
    try:
        save_file(renamed, partial, metadata={"format": "pt"})
        partial.chmod(0o644)  # safetensors makes files that only their owner may read
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def fingerprint(paths: Iterable[Path]) -> str:
    """SHA-256 over files' contents in the order given, as hex."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
