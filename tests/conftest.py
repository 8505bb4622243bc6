"""Shared fixtures: a tiny model with random weights, in memory and as a folder."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def tiny_system():
    """A latent video system of a few thousand parameters: 9 frames of 32 x 16, stride 4 x 8 x 8, patch 1 x 2 x 2."""
    import torch

    from carrara.autoencoders.video import VideoAutoencoder
    from carrara.autoencoders.video_config import VideoAutoencoderConfig
    from carrara.denoisers.dit import DiT, DiTConfig
    from carrara.systems.latent import Defaults, LatentVideo, Sampling
    from carrara.text.encoder import TextEncoder, TextEncoderConfig
    from carrara.text.tokenizer import train_tokenizer

    tokenizer = train_tokenizer(["a red ball bounces on the grass", "a green frog jumps over the pond"])
    autoencoder = VideoAutoencoder(VideoAutoencoderConfig(base_dim=4, latent_channels=4, num_res_blocks=1))
    denoiser = DiT(DiTConfig(2, 12, 2, 32, in_channels=4, out_channels=4, text_dim=16, frequencies=16))
    encoder = TextEncoder(TextEncoderConfig(tokenizer.vocab_size, d_model=16, d_kv=8, d_ff=16, num_heads=2))
    generator = torch.Generator().manual_seed(0)
    for module in (autoencoder, denoiser, encoder):
        module.eval().requires_grad_(False)
        for parameter in module.parameters():
            fan_in = max(1, parameter[0].numel()) if parameter.ndim > 1 else 16
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / fan_in**0.5)
    defaults = Defaults(9, 16, 32, 8.0, Sampling(steps=2, guidance=2.0), max_prompt_tokens=32)
    return LatentVideo(autoencoder, denoiser, encoder, tokenizer, defaults)


@pytest.fixture(scope="session")
def tiny_folder(tiny_system, tmp_path_factory) -> Path:
    """The tiny system as a model folder."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny_system.save(folder)
    return folder
