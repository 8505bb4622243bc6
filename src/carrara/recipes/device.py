"""Which device a recipe runs on."""

from __future__ import annotations

import torch

from carrara.training.parallel import use_own_gpu


def chosen_device(name: str) -> str:
    """The device of this name, "auto" being a GPU where torch sees one; of several processes each has its own GPU.

    Raises ValueError for one that is not there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name not in ("cpu", "cuda"):
        raise ValueError(f"device={name!r}: must be auto, cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("device='cuda': torch sees no GPU here; use --device cpu")
    if name == "cuda":
        use_own_gpu()
    return name
