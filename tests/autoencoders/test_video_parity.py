"""The autoencoder agrees with the public implementation, through the weight table, in both directions."""

from __future__ import annotations

import json

import pytest
import torch
from diffusers import AutoencoderKLWan

from carrara.autoencoders.video import VideoAutoencoder
from carrara.autoencoders.video_config import (
    WAN_2_1,
    WAN_2_2,
    VideoAutoencoderConfig,
    small_64,
    small_128,
)
from carrara.autoencoders.video_weights import diffusers_names

FIRST = VideoAutoencoderConfig(base_dim=8, latent_channels=4, dim_mult=(1, 2, 2, 4), num_res_blocks=2)
SECOND = VideoAutoencoderConfig(
    base_dim=8, decoder_base_dim=12, latent_channels=6, num_res_blocks=1, residual=True, patch=2
)
CONFIGS = {"2.1": FIRST, "2.2": SECOND}
ALL = {"2.1": WAN_2_1, "2.2": WAN_2_2, "128": small_128(), "64": small_64()}


def theirs(config: VideoAutoencoderConfig) -> AutoencoderKLWan:
    """A public autoencoder with random weights, none of them zero."""
    torch.manual_seed(0)
    model = AutoencoderKLWan.from_config(config.to_diffusers()).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.03 * torch.randn_like(parameter))
    return model


def assert_close(ours: torch.Tensor, expected: torch.Tensor) -> None:
    assert ours.shape == expected.shape
    assert float((ours - expected).norm() / expected.norm()) < 1e-5
    assert float((ours - expected).abs().max() / expected.abs().max()) < 1e-5


@pytest.mark.parametrize("direction", ["into ours", "into theirs"])
@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_agrees_with_the_public_implementation(name: str, direction: str) -> None:
    config = CONFIGS[name]
    public, table = theirs(config), diffusers_names(config)
    ours = VideoAutoencoder(config).eval()
    if direction == "into ours":
        ours.load_state_dict({table.to_ours(key): value for key, value in public.state_dict().items()})
    else:
        public.load_state_dict({table.to_theirs(key): value for key, value in ours.state_dict().items()})
    generator = torch.Generator().manual_seed(1)
    for frames in (1, 5, 17):
        video = torch.rand(1, 3, frames, 16 * config.patch, 24 * config.patch, generator=generator) * 2 - 1
        expected = public.encode(video).latent_dist
        posterior = ours.posterior(video)
        assert_close(posterior.mean, expected.mean)
        assert_close(posterior.logvar, expected.logvar)
        assert_close(ours.encode(video), expected.mean)
        latents = torch.randn(expected.mean.shape, generator=generator)
        assert_close(ours.decode(latents), public.decode(latents).sample)


@pytest.mark.parametrize("config", ALL.values(), ids=ALL)
def test_the_table_is_a_bijection_of_names_and_shapes(config: VideoAutoencoderConfig) -> None:
    table = diffusers_names(config)
    with torch.device("meta"):
        ours = {name: tuple(value.shape) for name, value in VideoAutoencoder(config).state_dict().items()}
        public = AutoencoderKLWan.from_config(config.to_diffusers()).state_dict()
    assert {table.to_theirs(name): shape for name, shape in ours.items()} == {
        k: tuple(v.shape) for k, v in public.items()
    }
    assert all(table.to_ours(table.to_theirs(name)) == name for name in ours)


def test_the_true_models_have_their_published_sizes_and_settings() -> None:
    with torch.device("meta"):
        public = AutoencoderKLWan.from_config({})  # its defaults are Wan 2.1
    assert VideoAutoencoderConfig.from_diffusers(dict(public.config)) == WAN_2_1
    assert (WAN_2_1.stride.time, WAN_2_1.stride.space) == (4, 8)
    assert (WAN_2_2.stride.time, WAN_2_2.stride.space) == (4, 16)
    with torch.device("meta"):
        sizes = [sum(p.numel() for p in VideoAutoencoder(config).parameters()) for config in (WAN_2_1, WAN_2_2)]
    assert [round(size / 1e6) for size in sizes] == [127, 705]


@pytest.mark.parametrize("config", [FIRST, SECOND, *ALL.values()])
def test_the_configuration_goes_round(config: VideoAutoencoderConfig) -> None:
    assert VideoAutoencoderConfig.from_diffusers(json.loads(json.dumps(config.to_diffusers()))) == config


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("zdim", 16, "z_dim"),
        ("attn_scales", [1.0], "attn_scales"),
        ("in_channels", 4, "in_channels"),
        ("dropout", 0.1, "dropout"),
    ],
)
def test_a_configuration_that_cannot_be_is_refused(key: str, value: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VideoAutoencoderConfig.from_diffusers({**FIRST.to_diffusers(), key: value})


def test_widths_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match="residual shortcut"):
        VideoAutoencoderConfig(dim_mult=(1, 2, 4, 8), residual=True)
