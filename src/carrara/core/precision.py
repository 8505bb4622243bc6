"""What networks compute in, by name; the empty one is a model's own: float32, or what a foreign one came in."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

from carrara.core.config import choose

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def dtype_of(precision: str) -> torch.dtype | None:
    """The type of that name, None for the empty one. Raises ValueError for another."""
    return choose("precision", precision, PRECISIONS) if precision else None


def computing_in(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """Within, float32 networks compute in `precision` as they do in training, by autocast; float32 and "" change
    nothing, so that an autocast around it stays."""
    dtype = dtype_of(precision)
    if dtype in (None, torch.float32):
        return nullcontext()
    return torch.autocast(device.type, dtype)
