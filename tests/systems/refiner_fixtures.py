"""Refiners for tests: fresh ones change nothing, drawn ones change everything."""

from __future__ import annotations

import torch

from carrara.systems.latent import LatentVideo
from carrara.systems.refiner import Refiner, RefinerConfig, unet_of


def refiner_of(text_dim: int, seed: int | None = 0) -> Refiner:
    """A small refiner whose every weight is drawn; seed None: as it begins."""
    refiner = Refiner(RefinerConfig(unet_of(text_dim, dim=8, multipliers=(1, 2))))
    refiner.init_weights(0)
    if seed is not None:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in refiner.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return refiner.eval().requires_grad_(False)


def with_refiner(system: LatentVideo, seed: int | None = 0) -> LatentVideo:
    """The system's parts, with a refiner."""
    refiner = refiner_of(system.text_encoder.config.d_model, seed)
    return LatentVideo(
        system.autoencoder,
        system.denoiser,
        system.text_encoder,
        system.tokenizer,
        system.defaults,
        refiner=refiner,
    )
