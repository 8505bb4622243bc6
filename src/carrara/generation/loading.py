"""Before a model is loaded: whether its weights fit into memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from carrara.core.config import read_json
from carrara.generation.memory import available_memory
from carrara.systems.find import find_model
from carrara.systems.folder import recognise
from carrara.systems.parts import ModelFolder
from carrara.systems.registry import READERS

__all__ = ["check_room", "find_model", "is_latent"]

_SHARE = 0.9  # of the free memory that weights may take


def check_room(
    folder: Path,
    dtype: torch.dtype | None = None,
    available: int | None = None,
    offload: bool = False,
    device: str = "cpu",
) -> None:
    """Refuse a model whose weights would not fit into memory, before any is read. What stays mapped takes no room on
    the CPU; a GPU holds all of it.

    offload: of the transformers three blocks count.
    """
    if not is_latent(folder):
        return
    found = recognise(folder)
    need = _room(found, dtype, offload, device)
    free = available_memory(device) if available is None else available
    if need > _SHARE * free:
        advice = "free some, or run a smaller model"
        if not offload and _room(found, dtype, True, device) <= _SHARE * free:
            advice = "with --offload it runs, its blocks one at a time"
        raise ValueError(
            f"{folder}: its weights take {need / 2**30:.1f} GiB of memory in the precision that they run in, "
            f"{free / 2**30:.1f} GiB are free; {advice}"
        )


def _room(found: ModelFolder, dtype: torch.dtype | None, offload: bool, device: str) -> int:
    """Bytes of weights at the worst moment, on the CPU beside mapped files."""
    taken = {
        part: (network.converted if device == "cpu" else network.kept)(found.dtype(part, dtype))
        for part, network in found.networks.items()
    }
    if offload:
        for part in taken.keys() & {"transformer", "transformer_2"}:
            denoiser: Any = found.networks[part].empty()[0]
            taken[part] = min(
                taken[part], 3 * found.networks[part].kept(found.dtype(part, dtype)) // denoiser.config.layers
            )
    return sum(taken.values())


def is_latent(folder: Path) -> bool:
    """Whether a folder is for `LatentVideo`, which says of every other what it is."""
    index = folder / "model_index.json"
    return not index.is_file() or read_json(index).get("_class_name") not in READERS
