"""Weights on disk: safetensors only, whole or sharded, checked by name and shape; and tables that rename them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from carrara.core.config import nearest
from carrara.core.files import replace_file
from carrara.core.shards import Shard, outline, shard_files

_PIECE = 8 << 20  # bytes of a mapped file that may be converted before it is opened anew
_SMALL = 64 << 10  # bytes that the kernel maps around a page that is touched: a smaller tensor is cheaper as a copy

Names = Callable[[str], bool]
"""Some names of tensors, told from all others."""
Reader = Callable[[Path], Mapping[str, Tensor]]
"""A file of weights as a mapping that reads a tensor when it is asked for."""

# Length of a row's source, how it begins before the first number, the whole as a pattern, and its target in parts.
_Row = tuple[int, str, re.Pattern[str], list[str]]


@dataclass(frozen=True)
class NameTable:
    """A bijection between two naming schemes, written as rows of (ours, theirs); `{}` stands for a block's number.

    A row names a whole tensor or a prefix that ends at a dot boundary; of several that match, the longest wins.
    """

    rows: Sequence[tuple[str, str]]

    def to_theirs(self, name: str) -> str:
        return _rename(name, self._from_ours)

    def to_ours(self, name: str) -> str:
        return _rename(name, self._from_theirs)

    @cached_property
    def _from_ours(self) -> list[_Row]:
        return [_row(ours, theirs) for ours, theirs in self.rows]

    @cached_property
    def _from_theirs(self) -> list[_Row]:
        return [_row(theirs, ours) for ours, theirs in self.rows]


def _row(source: str, target: str) -> _Row:
    pattern = re.escape(source).replace(r"\{\}", r"(\d+)")
    return len(source), source.partition("{")[0], re.compile(rf"{pattern}(?=\.|$)"), target.split("{}")


def _rename(name: str, rows: Iterable[_Row]) -> str:
    best: tuple[int, str] | None = None
    for length, start, pattern, parts in rows:
        if (best is not None and length <= best[0]) or not name.startswith(start):
            continue
        if match := pattern.match(name):
            numbers = match.groups()
            renamed = parts[0] + "".join(number + part for number, part in zip(numbers, parts[1:]))
            best = (length, renamed + name[match.end() :])
    return best[1] if best else name


def load_weights(
    module: nn.Module,
    folder: Path,
    stem: str,
    table: NameTable | None = None,
    dtype: torch.dtype | None = None,
    keep: Names | None = None,
    skip: Names | None = None,
) -> None:
    """Fill a module from a folder's safetensors and leave nothing unfilled; see `fill`."""
    fill(module, shard_files(folder, stem), Shard, table, dtype, keep, skip)


def fill(
    module: nn.Module,
    files: Sequence[Path],
    read: Reader,
    table: NameTable | None = None,
    dtype: torch.dtype | None = None,
    keep: Names | None = None,
    skip: Names | None = None,
) -> None:
    """Fill a module from files, each read as a mapping of names to tensors, and leave nothing unfilled.

    A module on the meta device gets storage as it is filled: the mapped file itself where the type stays and a tensor
    is not small, so that memory holds each weight once. keep: our names that are never narrowed (islands of precision);
    skip: their names that are passed over. Raises ValueError before anything is filled, as `check` does.
    """
    check(module, files, read, table, skip)
    for path in files:
        # What stays mapped has a mapping of its own: the one that is converted from can then be given up, and with it
        # the pages that were read of it.
        lasting, passing, converted = read(path), read(path), 0
        for theirs in list(lasting):
            if skip is not None and skip(theirs):
                continue
            ours = table.to_ours(theirs) if table else theirs
            value = lasting[theirs]
            kind = kept_type(value.dtype, dtype, keep is not None and keep(ours))
            if kind != value.dtype or value.nbytes < _SMALL:
                if converted and converted + value.nbytes > _PIECE:
                    passing, converted = read(path), 0
                converted += value.nbytes
                value = passing[theirs].to(kind, copy=True)
            _assign(module, ours, value)
            del value


def check(
    module: nn.Module,
    files: Sequence[Path],
    read: Reader,
    table: NameTable | None = None,
    skip: Names | None = None,
) -> None:
    """Whether files hold exactly the tensors of a module, by name and shape; nothing is read but their headers.

    Raises ValueError that names the first tensor that is missing, unknown, or of another shape.
    """
    wanted = module.state_dict()
    missing = set(wanted)
    for path in files:
        for theirs, value in outline(read(path)).items():
            if skip is not None and skip(theirs):
                continue
            ours = table.to_ours(theirs) if table else theirs
            if ours not in wanted:
                known = [table.to_theirs(name) for name in wanted] if table else wanted
                raise ValueError(f"{path}: unknown tensor {theirs!r}; {nearest(theirs, known)}")
            if value.shape != wanted[ours].shape:
                raise ValueError(
                    f"{path}: tensor {theirs!r} has shape {tuple(value.shape)}, "
                    f"the configuration wants {tuple(wanted[ours].shape)}"
                )
            missing.discard(ours)
    if missing:
        first = min(missing)
        name = table.to_theirs(first) if table else first
        where = files[0].parent if files else "no files"
        raise ValueError(f"{where}: tensor {name!r} is missing ({len(missing)} in all); is the download complete?")


def kept_type(stored: torch.dtype, wanted: torch.dtype | None, whole: bool) -> torch.dtype:
    """The type in memory of a tensor stored so; an island of precision is widened where asked, and never narrowed."""
    if wanted is None or not stored.is_floating_point:
        return stored
    return torch.promote_types(stored, wanted) if whole else wanted


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

    def save(place: Path) -> None:
        save_file(renamed, place, metadata={"format": "pt"})
        place.chmod(0o644)  # safetensors makes files that only their owner may read

    replace_file(path, save)


def same_weights(one: nn.Module, other: nn.Module, dtype: torch.dtype | None = None) -> bool:
    """Whether two networks have the same weights by name, to the bit; dtype: rounded to that first, as in files."""
    ours, theirs = one.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(
        torch.equal(value.to(dtype or value.dtype), theirs[name].to(dtype or theirs[name].dtype))
        for name, value in ours.items()
    )


def fingerprint(paths: Iterable[Path]) -> str:
    """SHA-256 over files' contents in the order given, as hex."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def sampled_fingerprint(paths: Iterable[Path], block: int = 1 << 16, blocks: int = 64) -> str:
    """SHA-256 over files' sizes and over blocks of each, first, last and evenly between, as hex.

    For files of many gigabytes: another model is told apart, a few flipped bits between the blocks are not.
    """
    digest = hashlib.sha256()
    for path in paths:
        size = path.stat().st_size
        digest.update(size.to_bytes(8, "little"))
        with path.open("rb") as file:
            for i in range(blocks):
                file.seek((size - block) * i // (blocks - 1) if size > block else 0)
                digest.update(file.read(block))
    return digest.hexdigest()
