"""The tensors of a checkpoint on disk: in one safetensors file, or as rows in several, one from each process.

A part is a safetensors file whose header says, beside what all parts say, which rows of which tensors it holds and a
checksum of each. Reading asks for any rows of a tensor and takes them from the parts that have them, so that a
checkpoint of n processes is read by any other number. Not standard: not the files of `torch.distributed.checkpoint`,
whose index is a pickle, which runs what is in it when it is read, and which carry no checksums.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from carrara.training.sharding import Rows

PARTIAL = ".partial"


@dataclass(frozen=True)
class _Piece:
    """Some rows of a tensor, or all of it (`start` 0 of its own length), in one of the files."""

    file: int
    start: int
    shape: tuple[int, ...]
    whole: int | None


class Stored:
    """An open checkpoint. Raises ValueError where it is damaged or incomplete, with what to do about it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._stack = ExitStack()
        self.header: dict[str, str] = {}
        self._files: list[Any] = []
        self._checksums: list[dict[str, int]] = []
        self._pieces: dict[str, list[_Piece]] = {}
        try:
            for number, part in enumerate(self._parts()):
                self._open(number, part)
        except BaseException:
            self._stack.close()
            raise
        for name, pieces in self._pieces.items():
            pieces.sort(key=lambda piece: piece.start)
            if pieces[0].whole is not None and sum(piece.shape[0] for piece in pieces) != pieces[0].whole:
                raise ValueError(f"{path}: rows of tensor {name!r} are missing; {remedy(path)}")

    def _parts(self) -> list[Path]:
        if not self.path.is_dir():
            return [self.path]
        found = sorted(self.path.glob("part-*.safetensors"))
        size = int(found[0].stem.rpartition("-")[2]) if found else 0
        if not found or [path.name for path in found] != [part_name(rank, size) for rank in range(size)]:
            raise ValueError(f"{self.path}: parts are missing; {remedy(self.path)}")
        return found

    def _open(self, number: int, part: Path) -> None:
        try:
            file = self._stack.enter_context(safe_open(part, framework="pt"))
            header = file.metadata() or {}
            checksums, rows = json.loads(header.get("checksums", "{}")), json.loads(header.get("rows", "{}"))
        except (SafetensorError, OSError, json.JSONDecodeError) as error:
            raise ValueError(f"{part}: damaged or not a checkpoint ({error}); {remedy(self.path)}") from None
        self._files.append(file)
        self._checksums.append(checksums)
        self.header = self.header or header
        for name in file.keys():  # noqa: SIM118 (not a dict)
            shape = tuple(file.get_slice(name).get_shape())
            start, whole = rows.get(name, (0, None))
            self._pieces.setdefault(name, []).append(_Piece(number, start, shape, whole))

    def under(self, prefix: str) -> list[str]:
        """The names of tensors that begin so, without it."""
        return [name.removeprefix(prefix) for name in self._pieces if name.startswith(prefix)]

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a whole tensor."""
        first = self._pieces[name][0]
        return first.shape if first.whole is None else (first.whole, *first.shape[1:])

    def read(self, name: str, rows: Rows | None = None) -> Tensor:
        """A tensor, or the given rows of it. What is read is held against its checksum."""
        pieces = self._pieces[name]
        if rows is None:
            parts = [self._checked(name, piece) for piece in pieces]
            return parts[0] if len(parts) == 1 else torch.cat(parts)
        parts, stop = [], rows.start + rows.count
        for piece in pieces:
            low, high = max(rows.start, piece.start), min(stop, piece.start + piece.shape[0])
            if low < high:
                parts.append(self._checked(name, piece)[low - piece.start : high - piece.start])
        if not parts:
            return self._checked(name, pieces[0])[:0]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _checked(self, name: str, piece: _Piece) -> Tensor:
        try:
            found: Tensor = self._files[piece.file].get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{self.path}: tensor {name!r} cannot be read ({error}); {remedy(self.path)}") from None
        if _checksum(found) != self._checksums[piece.file].get(name):
            raise ValueError(f"{self.path}: tensor {name!r} is damaged; {remedy(self.path)}")
        return found

    def __enter__(self) -> Stored:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()


def part_name(rank: int, size: int) -> str:
    return f"part-{rank:05d}-of-{size:05d}.safetensors"


def write_part(path: Path, tensors: Mapping[str, Tensor], rows: Mapping[str, Rows], header: Mapping[str, str]) -> None:
    """Write one file and see it onto the disk. Tensors on the CPU, contiguous; `rows` of those that are parts.

    Raises OSError where it cannot be written, and leaves nothing behind.
    """
    told = {
        **header,
        "checksums": json.dumps({name: _checksum(value) for name, value in tensors.items()}),
        "rows": json.dumps({name: (its.start, its.whole) for name, its in rows.items()}),
    }
    try:
        save_file(dict(tensors), path, metadata=told)
        sync(path)
    except (SafetensorError, OSError) as error:
        path.unlink(missing_ok=True)
        raise OSError(f"{path}: cannot be written ({error})") from None
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remedy(path: Path) -> str:
    """What to do about a checkpoint that cannot be read."""
    earlier = [other for other in sorted(path.parent.glob("step-*")) if other.name < path.name]
    earlier = [other for other in earlier if other.suffix != PARTIAL]
    return f"delete it to go on from {earlier[-1].name}" if earlier else "delete it to start afresh, or copy it again"


def _checksum(value: Tensor) -> int:
    return zlib.crc32(value.contiguous().flatten().view(torch.uint8).numpy().data)
