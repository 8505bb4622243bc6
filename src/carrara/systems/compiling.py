"""A system whose transformers run through `torch.compile`: opt-in, the same to rounding."""

from __future__ import annotations

from typing import Any

from carrara.nn.compiling import check_compiler, has_compiler
from carrara.systems.latent import LatentVideo

__all__ = ["check_compiler", "compile_networks", "has_compiler"]


def compile_networks(system: Any) -> None:
    """Let a system's transformers run compiled.

    Raises ValueError where there is no compiler, for a system without transformers, and for offloaded ones.
    """
    if not isinstance(system, LatentVideo):
        raise ValueError("compile: models of this kind are not compiled; leave out compile")
    for network in (system.denoiser, system.low_denoiser):
        if network is not None:
            network.compile_blocks()
