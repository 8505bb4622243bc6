"""Where networks compute."""

from __future__ import annotations

import torch

DEVICES = ("auto", "cpu", "cuda")


def check_device(name: str) -> None:
    """Raise ValueError for a name that is none of `DEVICES`."""
    if name not in DEVICES:
        raise ValueError(f"device={name!r}: must be auto, cpu or cuda")


def chosen_device(name: str) -> str:
    """The device of this name, "auto" being a GPU where torch sees one. Raises ValueError for one that is not there."""
    check_device(name)
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("device='cuda': torch sees no GPU here; use --device cpu")
    return name
