"""What is allocated while clips are encoded and decoded: less than by diffusers, and no more for a longer clip."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLWan
from tests.allocations import peak

from carrara.autoencoders.causal import conv3d
from carrara.autoencoders.video import VideoAutoencoder
from carrara.autoencoders.video_config import VideoAutoencoderConfig

FIRST = VideoAutoencoderConfig(base_dim=16, latent_channels=4)
SECOND = VideoAutoencoderConfig(
    base_dim=16, decoder_base_dim=16, latent_channels=4, num_res_blocks=1, residual=True, patch=2
)
CONFIGS = pytest.mark.parametrize("config", [FIRST, SECOND], ids=["2.1", "2.2"])


def clip(config: VideoAutoencoderConfig, frames: int) -> torch.Tensor:
    """Large enough that every chunk is of one latent frame."""
    side = 24 * config.stride.space
    return torch.rand(1, 3, frames, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1


@CONFIGS
@torch.no_grad()
def test_no_more_is_allocated_than_by_the_public_implementation(config: VideoAutoencoderConfig, tmp_path: Path) -> None:
    torch.manual_seed(0)
    ours = VideoAutoencoder(config).bfloat16().eval()
    theirs: Any = AutoencoderKLWan.from_config(config.to_diffusers()).bfloat16().eval()
    video = clip(config, 9).bfloat16()
    latents = ours.encode(video).bfloat16()
    tasks = {
        "encode": (lambda: ours.encode(video), lambda: theirs.encode(video).latent_dist.mean),
        "decode": (lambda: list(ours.decode_chunks(latents)), lambda: theirs.decode(latents).sample),
    }
    for name, runs in tasks.items():
        mine, yours = (peak(run, tmp_path) for run in runs)
        print(f"{name}: {mine / 2**20:.1f} MiB, diffusers {yours / 2**20:.1f} MiB, {mine / yours:.2f}")
        assert mine <= yours, name


@torch.no_grad()
def test_a_small_convolution_is_not_unfolded(tmp_path: Path) -> None:
    """In float32 too, where torch's own choice copies every place 27 times."""
    x = torch.randn(1, 16, 5, 32, 32, generator=torch.Generator().manual_seed(0))
    weight = torch.randn(16, 16, 3, 3, 3, generator=torch.Generator().manual_seed(1))
    x = x.contiguous(memory_format=torch.channels_last_3d)
    assert peak(lambda: conv3d(x, weight, None, padding=(0, 1, 1)), tmp_path) < 3 * x.nbytes


@CONFIGS
@torch.no_grad()
def test_a_longer_clip_takes_no_more(config: VideoAutoencoderConfig, tmp_path: Path) -> None:
    small = replace(config, base_dim=8, decoder_base_dim=None)
    model, video = VideoAutoencoder(small).bfloat16().eval(), clip(config, 13)
    step = config.stride.time

    def encode(frames: int) -> None:
        model.encode_pieces(frames, step, lambda start, stop: video[:, :, start:stop])

    latents = torch.randn(1, config.latent_channels, 4, 24, 24, generator=torch.Generator().manual_seed(0))

    def decode(frames: int) -> None:
        for _ in model.decode_chunks(latents[:, :, : 1 + (frames - 1) // step]):
            pass

    for run in (encode, decode):
        short, long = (peak(partial(run, frames), tmp_path) for frames in (9, 13))
        assert abs(long - short) < 0.01 * short  # of encoding, what stays are the latents
