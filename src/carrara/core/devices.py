"""Where networks compute."""

from __future__ import annotations

import torch


def chosen_device(name: str) -> str:
    """The device of this name, "auto" being a GPU where torch sees one. Raises ValueError for one that is not there."""
    if name not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device={name!r}: must be auto, cpu or cuda")
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("device='cuda': torch sees no GPU here; use --device cpu")
    return name
