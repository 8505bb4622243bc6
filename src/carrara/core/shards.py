"""Safetensors files: which of them hold a component's weights, and each as a mapping that reads nothing too early."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from carrara.core.config import read_json

_LONGEST_HEADER = 100 << 20  # bytes, as in the format's own reader
_TYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


def shard_files(folder: Path, stem: str) -> list[Path]:
    """The safetensors files that hold a component's weights, in order. Raises ValueError if one or all are missing."""
    whole = folder / f"{stem}.safetensors"
    if whole.is_file():
        return [whole]
    index = folder / f"{stem}.safetensors.index.json"
    if index.is_file():
        names = sorted(set(read_json(index).get("weight_map", {}).values()))
        if not names:
            raise ValueError(f"{index}: names no shards; download the folder again")
    else:
        names = _numbered(folder, stem)
        if not names:
            raise ValueError(f"{folder}: no weights here; expected {whole.name} or {index.name}")
    for name in names:
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise ValueError(f"{index}: shard name {name!r} is not a plain .safetensors file name")
    absent = [name for name in names if not (folder / name).is_file()]
    if absent:
        others = f" ({len(absent)} of {len(names)} are)" if len(absent) > 1 else ""
        raise ValueError(f"{folder}: shard {absent[0]} is missing{others}; download the folder again")
    return [folder / name for name in names]


def _numbered(folder: Path, stem: str) -> list[str]:
    """Without an index: every shard of the number that the names of those that are there promise."""
    for path in sorted(folder.glob(f"{stem}-*-of-*.safetensors")):
        if match := re.fullmatch(rf"{re.escape(stem)}-\d+-of-(\d+)\.safetensors", path.name):
            count, digits = int(match[1]), len(match[1])
            return [f"{stem}-{i:0{digits}}-of-{match[1]}.safetensors" for i in range(1, count + 1)]
    return []


def refuse_pointer(path: Path) -> None:
    """Refuse the few lines that a Git clone leaves in the place of a large file."""
    with path.open("rb") as file:
        if file.read(24).startswith(b"version https://git-lfs"):
            raise ValueError(f"{path}: stands for the file only (a Git LFS pointer); fetch it with: git lfs pull")


class Shard(Mapping[str, Tensor]):
    """A safetensors file as a mapping, in the order on disk. Tensors are views of the mapped file: nothing is read
    before it is used, and nothing is mapped before a tensor is asked for. Raises ValueError for a damaged file."""

    def __init__(self, path: Path) -> None:
        refuse_pointer(path)
        self._path, self._header = path, _header(path)

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._header:
            raise KeyError(name)
        return self._file.get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._header)

    def __len__(self) -> int:
        return len(self._header)

    @cached_property
    def _file(self) -> Any:
        try:
            return safe_open(self._path, framework="pt")
        except (SafetensorError, OSError) as error:
            raise _damaged(self._path, error) from None
        except RuntimeError as error:
            if "unable to mmap" not in str(error):
                raise
            size = self._path.stat().st_size / 2**30
            raise ValueError(
                f"{self._path}: too little memory here to map its {size:.1f} GiB at once; take the same model in "
                "smaller shards, or a smaller one"
            ) from None

    def outline(self) -> dict[str, Tensor]:
        """Every tensor's shape and type, on the meta device."""
        return {
            name: torch.empty(part["shape"], dtype=_TYPES.get(part["dtype"], torch.uint8), device="meta")
            for name, part in self._header.items()
        }


def _header(path: Path) -> dict[str, dict[str, Any]]:
    """What a safetensors file says of its tensors, in their order; its size is checked against it."""
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            if not 0 < size <= min(_LONGEST_HEADER, path.stat().st_size - 8):
                raise ValueError("no header of a length that fits the file")
            header = json.loads(file.read(size))
        header.pop("__metadata__", None)
        ends = [part["data_offsets"][1] for part in header.values()]
        if (found := path.stat().st_size) != (wanted := 8 + size + max(ends, default=0)):
            raise ValueError(f"{found} bytes, {wanted} expected")
        return dict(sorted(header.items(), key=lambda item: item[1]["data_offsets"]))
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, OSError) as error:
        raise _damaged(path, error) from None


def _damaged(path: Path, error: BaseException) -> ValueError:
    return ValueError(f"{path}: damaged or not a safetensors file ({error}); copy it again")


def outline(source: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The shapes and types of a file's tensors, without more than its header where that is possible."""
    return source.outline() if isinstance(source, Shard) else source
