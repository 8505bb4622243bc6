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
