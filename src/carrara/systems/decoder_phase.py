"""A better decoder for latents that stay as they are: the encoder is frozen, so caches and denoisers remain valid."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from carrara.autoencoders.losses import AutoencoderLossConfig
from carrara.autoencoders.video import VideoAutoencoder
from carrara.systems.folder import write_autoencoder
from carrara.systems.latent import LatentVideo
from carrara.systems.phases import AutoencoderPhase, PixelBatch


class DecoderPhase(AutoencoderPhase):
    """Train the decoder alone, on draws of the posterior of a frozen encoder.

    system: the model whose autoencoder this is, to be written as a whole with the new decoder; None: the autoencoder is
    written alone.
    """

    def __init__(
        self,
        autoencoder: VideoAutoencoder,
        batch: Callable[[int], PixelBatch],
        validation: PixelBatch,
        config: AutoencoderLossConfig,
        system: LatentVideo | None = None,
    ) -> None:
        super().__init__(autoencoder, batch, validation, config)
        autoencoder.requires_grad_(True)
        for part in (autoencoder.encoder, autoencoder.to_moments):
            part.requires_grad_(False)
        self.system = system

    def export(self, folder: Path) -> None:
        """Write the part's folder, or the whole model's; the statistics of the latents stay too."""
        if self.system is None:
            write_autoencoder(self.autoencoder, Path(folder), torch.float32)
        else:
            self.system.save(Path(folder))
