"""Weights in the pickles of `torch.save`: mapped, and read as plain tensors or not at all.

A pickle is a program. Only torch's restricted reader runs here (`weights_only`), which knows tensors and containers and
refuses everything else; nothing of ours is ever written this way.
"""

from __future__ import annotations

import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from carrara.core.files import check_file
from carrara.core.shards import refuse_pointer

_STARTS = (b"PK\x03\x04", b"\x80")  # an archive, and the pickles of before 2020


def read_pickle(path: Path) -> Mapping[str, Tensor]:
    """A `.pth` of names and tensors, whose tensors are views of the mapped file.

    Raises ValueError for a file that is missing or damaged, and for a pickle of anything but plain weights.
    """
    refuse_pointer(check_file(path))
    with path.open("rb") as file:
        if not file.read(4).startswith(_STARTS):
            raise ValueError(f"{path}: damaged or not a file of torch.save; copy it again")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of unusual protocols: what cannot be read is an error, said once
            content = _load(path)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f"it asks for {found[1]}" if found else "it holds more than tensors, or is damaged"
        raise ValueError(
            f"{path}: refused, for it is not plain weights ({what}); a pickle can run any program: get the published "
            "file again, or the same model as safetensors"
        ) from None
    except (RuntimeError, EOFError, OSError, AttributeError, KeyError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: damaged or not a file of torch.save ({_first(error)}); copy it again") from None
    if not isinstance(content, Mapping):
        raise ValueError(f"{path}: holds a {type(content).__name__}, not tensors by name; is it the published file?")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise ValueError(
                f"{path}: {name!r} is a {type(value).__name__}, not a tensor; expected the published file, which holds "
                "nothing but tensors by name"
            )
    return content


def _load(path: Path) -> object:
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except RuntimeError as error:
        if "mmap can only be used" not in str(error):
            raise
        return torch.load(path, map_location="cpu", weights_only=True)  # the format of before 2020 cannot be mapped


def _first(error: BaseException) -> str:
    """The first sentence of an error, which may go on for many."""
    return re.split(r"\.\s|\n", str(error).strip())[0].rstrip(".") or type(error).__name__
