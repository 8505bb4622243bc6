"""Names of the autoencoder's tensors: bijections with diffusers and with the published files, both generations."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from diffusers import AutoencoderKLWan

from carrara.autoencoders.video import VideoAutoencoder
from carrara.autoencoders.video_config import WAN_2_1, WAN_2_2, VideoAutoencoderConfig
from carrara.autoencoders.video_weights import diffusers_names, published_config, published_names

RELEASED = {"2.1": (WAN_2_1, 126.9), "2.2": (WAN_2_2, 704.7)}


def shapes(module: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in module.state_dict().items()}


def ours(config: VideoAutoencoderConfig) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        return shapes(VideoAutoencoder(config))


@pytest.mark.parametrize("name", RELEASED)
def test_names_and_shapes_are_a_bijection_with_diffusers(name):
    config, millions = RELEASED[name]
    with torch.device("meta"):
        theirs = shapes(AutoencoderKLWan.from_config(config.to_diffusers()))
    table = diffusers_names(config)
    assert {table.to_theirs(key): shape for key, shape in ours(config).items()} == theirs
    assert {table.to_ours(key): shape for key, shape in theirs.items()} == ours(config)
    count = sum(torch.Size(shape).numel() for shape in theirs.values())
    assert count / 1e6 == pytest.approx(millions, abs=0.05)


def block(place: str, widens: bool) -> set[str]:
    names = {f"{place}.residual.{i}.gamma" for i in (0, 3)}
    convolutions = [f"{place}.residual.{i}" for i in (2, 6)] + [f"{place}.shortcut"] * widens
    return names | {f"{name}.{part}" for name in convolutions for part in ("weight", "bias")}


def step(place: str, temporal: bool) -> set[str]:
    layers = [f"{place}.resample.1"] + [f"{place}.time_conv"] * temporal
    return {f"{layer}.{part}" for layer in layers for part in ("weight", "bias")}


def published(generation: str) -> set[str]:
    """Every tensor of Wan2.1_VAE.pth and of Wan2.2_VAE.pth, written out from their description."""
    names = {f"{layer}.{part}" for layer in ("conv1", "conv2") for part in ("weight", "bias")}
    for side in ("encoder", "decoder"):
        layers = [f"{side}.conv1", f"{side}.head.2", f"{side}.middle.1.to_qkv", f"{side}.middle.1.proj"]
        names |= {f"{layer}.{part}" for layer in layers for part in ("weight", "bias")}
        names |= {f"{side}.head.0.gamma", f"{side}.middle.1.norm.gamma"}
        names |= block(f"{side}.middle.0", False) | block(f"{side}.middle.2", False)
    if generation == "2.1":
        down = {3: True, 6: True}  # the first block of a level that is wider than the one before
        for at in (0, 1, 3, 4, 6, 7, 9, 10):
            names |= block(f"encoder.downsamples.{at}", down.get(at, False))
        for at, temporal in ((2, False), (5, True), (8, True)):
            names |= step(f"encoder.downsamples.{at}", temporal)
        for at in (0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14):
            names |= block(
                f"decoder.upsamples.{at}", at == 4
            )  # the steps halve the channels, so one level alone widens
        for at, temporal in ((3, True), (7, True), (11, False)):
            names |= step(f"decoder.upsamples.{at}", temporal)
        return names
    for level, (temporal, widens) in enumerate(((False, False), (True, True), (True, True), (None, False))):
        place = f"encoder.downsamples.{level}.downsamples"
        names |= block(f"{place}.0", widens) | block(f"{place}.1", False)
        names |= set() if temporal is None else step(f"{place}.2", temporal)
    for level, (temporal, narrows) in enumerate(((True, False), (True, False), (False, True), (None, True))):
        place = f"decoder.upsamples.{level}.upsamples"
        names |= block(f"{place}.0", narrows) | block(f"{place}.1", False) | block(f"{place}.2", False)
        names |= set() if temporal is None else step(f"{place}.3", temporal)
    return names


@pytest.mark.parametrize("name", RELEASED)
def test_names_are_a_bijection_with_the_published_ones(name):
    config, _ = RELEASED[name]
    table = published_names(config)
    assert {table.to_theirs(key) for key in ours(config)} == published(name)
    assert {table.to_ours(key) for key in published(name)} == set(ours(config))


@pytest.mark.parametrize(
    "config", [WAN_2_1, WAN_2_2, replace(WAN_2_1, base_dim=4), replace(WAN_2_2, base_dim=4, decoder_base_dim=8)]
)
def test_a_published_file_tells_its_configuration_by_its_shapes(config):
    table = published_names(config)
    assert published_config({table.to_theirs(key): shape for key, shape in ours(config).items()}) == config


def test_files_of_something_else_are_refused():
    with pytest.raises(ValueError, match="not a video autoencoder of Wan"):
        published_config({"token_embedding.weight": (3, 4)})
    table = published_names(WAN_2_1)
    other = {table.to_theirs(key): shape for key, shape in ours(replace(WAN_2_1, **_of(8))).items()}
    with pytest.raises(ValueError, match="8 latent channels, whose statistics nobody published"):
        published_config(other)


def _of(channels: int) -> dict:
    return {"latent_channels": channels, "latents_mean": (), "latents_std": ()}
