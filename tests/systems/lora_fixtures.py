"""Adapters with every value drawn, for small models."""

from __future__ import annotations

import torch

from carrara.nn.lora import LowRank
from carrara.systems.latent import LatentVideo
from carrara.systems.lora import fresh_terms


def drawn_terms(
    system: LatentVideo, targets: tuple[str, ...] = ("self_attention.*", "mlp.*"), rank: int = 2, alpha: float = 3.0
) -> dict[str, dict[str, LowRank]]:
    """Terms that change what a model makes, as training would leave them."""
    generator = torch.Generator().manual_seed(5)
    terms = fresh_terms(system, rank, alpha, targets, generator)
    for own in terms.values():
        for term in own.values():
            term.up.data = 0.2 * torch.randn(term.up.shape, generator=generator)
            term.requires_grad_(False)
    return terms
