"""A small random model, made once: every part real, nothing trained."""

from pathlib import Path

import pytest
import torch

from carrara.autoencoders.video import LatentStatistics, VideoAutoencoder
from carrara.autoencoders.video_config import VideoAutoencoderConfig
from carrara.denoisers.dit import DiT, DiTConfig
from carrara.systems.latent import Defaults, LatentVideo, Sampling
from carrara.text.encoder import TextEncoder, TextEncoderConfig
from carrara.text.tokenizer import train_tokenizer

CHANNELS = 8


def random_system(seed: int = 0, sampling: Sampling | None = None) -> LatentVideo:
    """A system whose every weight is drawn, so that no part is the identity."""
    tokenizer = train_tokenizer(["a red ball bounces on the grass", "a green frog jumps over the pond"])
    torch.manual_seed(seed)
    autoencoder = VideoAutoencoder(VideoAutoencoderConfig(8, 8, CHANNELS, (1, 2, 2, 2), 1, residual=True, patch=2))
    denoiser = DiT(DiTConfig(2, 16, 2, 64, CHANNELS, CHANNELS, text_dim=32))
    text = TextEncoder(TextEncoderConfig(tokenizer.vocab_size, 32, 16, 64, 1, 2))
    generator = torch.Generator().manual_seed(seed)
    autoencoder.normalise_by(LatentStatistics((0.1,) * CHANNELS, (0.7,) * CHANNELS))
    with torch.no_grad():
        for parameter in (*autoencoder.parameters(), *denoiser.parameters()):
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    for module in (autoencoder, denoiser, text):
        module.eval().requires_grad_(False)
    defaults = Defaults(5, 64, 64, 8.0, sampling or Sampling(steps=4, guidance=3.0, shift=2.0))
    return LatentVideo(autoencoder, denoiser, text, tokenizer, defaults)


@pytest.fixture(scope="session")
def small_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder with the small random system in it."""
    folder = tmp_path_factory.mktemp("models") / "small"
    random_system().save(folder)
    return folder


@pytest.fixture(scope="session")
def small_system(small_folder: Path) -> LatentVideo:
    return LatentVideo.load(small_folder)


@pytest.fixture(scope="session")
def tiny_system() -> LatentVideo:
    """The other generation of the autoencoder and few parameters: 9 frames of 32 x 16, stride 4 x 8 x 8."""
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
def tiny_folder(tiny_system: LatentVideo, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny system as a model folder."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny_system.save(folder)
    return folder
