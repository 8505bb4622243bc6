"""What an evaluation has made already, so that one that was stopped goes on, to the same numbers.

Clips stay as they are, beside a record of what was asked and what the file was; answers of a model (a continued clip,
its losses) wait in a folder by what was asked. Both count only for the same weights, settings, code and machine: a
model whose weights are not named is measured anew. The code of the evaluation itself is left out, so a mended reader
reads the same clips again.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, ParamSpec
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from carrara.core.config import read_json, write_json
from carrara.core.files import replace_file, sha256

RECORD, ANSWERS = "made.json", "answers"
P = ParamSpec("P")


def digest(*values: Any) -> str:
    """Of JSON values and tensors: 32 hexadecimal digits."""
    found = hashlib.sha256()
    for value in values:
        if isinstance(value, Tensor):
            found.update(f"{value.dtype} {tuple(value.shape)}".encode())
            found.update(value.detach().cpu().contiguous().numpy().tobytes())
        else:
            found.update(json.dumps(value, sort_keys=True, default=str).encode())
        found.update(b"\0")
    return found.hexdigest()[:32]


@cache
def code() -> str:
    """Of all of Carrara's source but the evaluation's, of torch's version and of the processor's kind."""
    root = Path(__file__).parents[1]
    files = sorted(p for p in root.rglob("*.py") if p.relative_to(root).parts[0] != "evaluation")
    sources = [sha256(path) for path in files]
    return digest(sources, torch.__version__, platform.machine(), torch.backends.cpu.get_cpu_capability())


def identity(about: Mapping[str, Any], *settings: Any) -> str | None:
    """A name for what makes clips, from what the report says of it; None where that does not name the weights."""
    return digest(dict(about), settings, code()) if about.get("weights") else None


class Made:
    """The clips of one folder. by: what makes them (`identity`); None keeps nothing."""

    def __init__(self, home: Path, by: str | None) -> None:
        self.home, self.by = home, by
        self.clips: dict[str, Any] = {}
        try:
            record = read_json(home / RECORD)
        except (ValueError, OSError):  # none, or one that was being written
            return
        if by is not None and record.get("by") == by and isinstance(record.get("clips"), dict):
            self.clips = record["clips"]

    def has(self, path: Path, asked: str) -> bool:
        """Whether the file is as it was when it was made for what is asked, a `digest`."""
        return path.name in self.clips and path.is_file() and self.clips[path.name] == [asked, sha256(path)]

    def add(self, paths: Sequence[Path], asked: Sequence[str]) -> None:
        """Record files that were made, each for what was asked."""
        if self.by is not None:
            self.clips |= {path.name: [one, sha256(path)] for path, one in zip(paths, asked)}
            write_json(self.home / RECORD, {"by": self.by, "clips": self.clips})


def answering(function: Callable[P, Tensor], folder: Path, by: str | None) -> Callable[P, Tensor]:
    """The same function of tensors and JSON values, which looks into the folder first. by: what answers."""
    if by is None:
        return function

    def answer(*args: P.args, **kwargs: P.kwargs) -> Tensor:
        path = folder / f"{digest(by, *args, *sorted(kwargs), *(kwargs[name] for name in sorted(kwargs)))}.npz"
        try:
            with np.load(path, allow_pickle=False) as found:
                return torch.from_numpy(found["answer"])
        except (OSError, ValueError, KeyError, EOFError, BadZipFile):
            result = function(*args, **kwargs)
        folder.mkdir(parents=True, exist_ok=True)

        def save(place: Path) -> None:
            with place.open("wb") as file:  # by a name it would add an ending
                np.savez_compressed(file, answer=result.detach().cpu().numpy())

        replace_file(path, save)
        return result

    return answer
