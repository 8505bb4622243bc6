"""Laws of the causal autoencoder: causality, chunks, checkpointing, sizes, statistics."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from carrara.autoencoders.causal import CausalConv
from carrara.autoencoders.video import LatentStatistics, Posterior, VideoAutoencoder, latent_statistics
from carrara.autoencoders.video_blocks import Down, ResidualBlock, Up
from carrara.autoencoders.video_config import VideoAutoencoderConfig, small_128
from carrara.core.types import Decoder, Encoder

FIRST = VideoAutoencoderConfig(base_dim=8, latent_channels=4, dim_mult=(1, 2, 2), temporal_downsample=(True, True))
SECOND = VideoAutoencoderConfig(
    base_dim=8,
    decoder_base_dim=12,
    latent_channels=6,
    dim_mult=(1, 2, 2),
    temporal_downsample=(True, True),
    num_res_blocks=1,
    residual=True,
    patch=2,
)
Step = Callable[..., tuple[torch.Tensor, Any]]
CONFIGS = pytest.mark.parametrize("config", [FIRST, SECOND], ids=["2.1", "2.2"])


def build(config: VideoAutoencoderConfig) -> VideoAutoencoder:
    """With random weights everywhere, zero-initialised branches included."""
    generator = torch.Generator().manual_seed(0)
    model = VideoAutoencoder(config).initialise(generator)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.03 * torch.randn(parameter.shape, generator=generator))
    model.normalise_by(LatentStatistics((0.3,) * config.latent_channels, (1.7,) * config.latent_channels))
    return model


def clip(config: VideoAutoencoderConfig, frames: int, batch: int = 1) -> torch.Tensor:
    side = 2 * config.stride.space
    return torch.rand(batch, 3, frames, side, side, generator=torch.Generator().manual_seed(frames)) * 2 - 1


def close(a: torch.Tensor, b: torch.Tensor, tolerance: float = 2e-5) -> None:
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@CONFIGS
def test_it_is_an_encoder_and_a_decoder(config: VideoAutoencoderConfig) -> None:
    model = VideoAutoencoder(config)
    assert isinstance(model, Encoder)
    assert isinstance(model, Decoder)


@CONFIGS
@torch.no_grad()
def test_a_prefix_encodes_and_decodes_to_the_prefix(config: VideoAutoencoderConfig) -> None:
    model, video = build(config), clip(config, 17)
    latents, decoded = model.encode(video), model.decode(model.encode(video))
    for frames in (1, 5, 13):
        kept = (frames - 1) // 4 + 1
        close(model.encode(video[:, :, :frames]), latents[:, :, :kept])
        close(model.decode(latents[:, :, :kept]), decoded[:, :, :frames])


@CONFIGS
@pytest.mark.parametrize("chunks", [(1, 4, 4, 4), (1, 12), (5, 8), (9, 4), (13,)])
@torch.no_grad()
def test_encoding_in_chunks_equals_encoding_whole(config: VideoAutoencoderConfig, chunks: tuple[int, ...]) -> None:
    model, video = build(config), clip(config, 13)
    state, parts = None, []
    for chunk in video.split(chunks, dim=2):
        part, state = model.encode_chunk(chunk, state)
        parts.append(part)
    close(torch.cat(parts, 2), model.encode(video))


@CONFIGS
@torch.no_grad()
def test_an_image_costs_no_products_with_a_past_that_it_lacks(config: VideoAutoencoderConfig) -> None:
    """Of three taps in time one is used: encoding it costs well below half of what the first frame of a clip does."""
    model, image, costs = build(config), clip(config, 1), []
    for encode in (model.encode, model.encode_chunk):
        with FlopCounterMode(display=False) as counter, torch.autocast("cpu", torch.bfloat16):
            encode(image)
        costs.append(counter.get_total_flops())
    assert costs[0] < 0.5 * costs[1]


@CONFIGS
@pytest.mark.parametrize("chunks", [(1, 1, 1, 1), (1, 3), (2, 2), (3, 1), (4,)])
@torch.no_grad()
def test_decoding_in_chunks_equals_decoding_whole(config: VideoAutoencoderConfig, chunks: tuple[int, ...]) -> None:
    model = build(config)
    latents = torch.randn(2, config.latent_channels, 4, 2, 3, generator=torch.Generator().manual_seed(1))
    state, parts = None, []
    for chunk in latents.split(chunks, dim=2):
        part, state = model.decode_chunk(chunk, state)
        parts.append(part)
    whole = model.decode(latents)
    close(torch.cat(parts, 2), whole)
    close(torch.cat(list(model.decode_chunks(latents)), 2), whole)


@CONFIGS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_every_block_finds_channels_last(config: VideoAutoencoderConfig, dtype: torch.dtype) -> None:
    """One layer of another layout spreads it to all that follow: the same values, in half as much time again."""
    model, lost = build(config).to(dtype), []

    def look(name: str, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        lost.extend(name for x in (inputs[0], output) if not x.is_contiguous(memory_format=torch.channels_last_3d))

    for name, part in model.named_modules():
        if isinstance(part, ResidualBlock | CausalConv | Up | Down):
            part.register_forward_hook(lambda _part, inputs, output, name=name: look(name, inputs, output))
    latents = model.encode(clip(config, 1 + 2 * config.stride.time).to(dtype)).to(dtype)
    model.decode(latents)
    list(model.decode_chunks(latents))
    assert not lost


@CONFIGS
@torch.no_grad()
def test_a_state_is_a_value_that_can_be_used_twice(config: VideoAutoencoderConfig) -> None:
    model, video = build(config), clip(config, 9)
    _, state = model.encode_chunk(video[:, :, :5])
    copies = [value.clone() for value in state]
    first, _ = model.encode_chunk(video[:, :, 5:], state)
    second, later = model.encode_chunk(video[:, :, 5:], state)
    assert torch.equal(first, second)
    assert all(torch.equal(a, b) for a, b in zip(copies, state))
    assert [value.shape for value in later] == [value.shape for value in state], "memory must not grow with the clip"


@CONFIGS
@torch.no_grad()
def test_a_state_that_is_spent_is_written_over_and_gives_the_same_bits(config: VideoAutoencoderConfig) -> None:
    model, video = build(config), clip(config, 13)
    latents = model.encode(video)

    def walk(step: Step, whole: torch.Tensor, sizes: tuple[int, ...]) -> tuple[list[torch.Tensor], list[set[int]]]:
        state, parts, places = None, [], []
        for chunk in whole.split(sizes, dim=2):
            part, state = step(chunk, state)
            parts.append(part)
            places.append({value.data_ptr() for value in state})
        return parts, places

    for step, whole, sizes in (
        (model.encode_chunk, video, (5, 4, 4)),
        (model.decode_chunk, latents, (2, 1, 1)),
    ):
        kept, _ = walk(step, whole, sizes)
        spent, places = walk(partial(step, spend=True), whole, sizes)
        assert all(torch.equal(a, b) for a, b in zip(kept, spent, strict=True))
        assert places[0] == places[1] == places[2], "one state, however long the clip is"


@CONFIGS
def test_checkpointing_gives_the_same_gradients_and_stores_less(config: VideoAutoencoderConfig) -> None:
    model, video = build(config), clip(config, 9)
    stored, gradients = [], []
    for on in (False, True):
        model.checkpointing = on
        model.zero_grad()
        saved = 0

        def pack(value: torch.Tensor) -> torch.Tensor:
            nonlocal saved
            saved += value.numel()
            return value

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
            reconstruction, posterior = model.reconstruct(video, torch.Generator().manual_seed(0))
        (reconstruction.square().mean() + posterior.logvar.mean()).backward()
        stored.append(saved)
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys() == dict(model.named_parameters()).keys()
    for name, expected in gradients[0].items():
        assert torch.equal(gradients[1][name], expected), name
    assert stored[1] < stored[0] / 3


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 3, 4, 16, 16), "nearest 1 or 5"),
        ((1, 3, 5, 20, 16), "height=20.*nearest 16 or 24"),
        ((1, 3, 5, 16, 30), "width=30.*nearest 24 or 32"),
        ((1, 4, 5, 16, 16), "video of shape"),
        ((3, 5, 16, 16), "video of shape"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(shape: tuple[int, ...], message: str) -> None:
    model = VideoAutoencoder(replace(FIRST, patch=2))
    with pytest.raises(ValueError, match=message):
        model.encode(torch.zeros(shape))


def test_a_later_chunk_must_hold_whole_groups_and_latents_the_right_channels() -> None:
    model = build(FIRST)
    _, state = model.encode_chunk(clip(FIRST, 1))
    with pytest.raises(ValueError, match="nearest 4 or 8"):
        model.encode_chunk(clip(FIRST, 5), state)
    with pytest.raises(ValueError, match="expected \\(batch, 4"):
        model.decode(torch.zeros(1, 5, 1, 2, 2))


@CONFIGS
@torch.no_grad()
def test_latents_are_normal_after_measuring_and_decode_as_before(config: VideoAutoencoderConfig) -> None:
    model = build(config)
    videos = [clip(config, frames, batch=2) for frames in (5, 9)]
    before = model.decode(model.encode(videos[0]))
    model.normalise_by(model.measure(videos))
    close(model.decode(model.encode(videos[0])), before, 1e-4)
    latents = torch.cat([model.encode(video).transpose(0, 1).flatten(1) for video in videos], 1)
    close(latents.mean(1), torch.zeros(config.latent_channels), 1e-4)
    close(latents.std(1, correction=0), torch.ones(config.latent_channels), 1e-4)
    assert VideoAutoencoderConfig.from_diffusers(model.config.to_diffusers()) == model.config
    assert not any(name.startswith("latents") for name in model.state_dict())


def test_there_is_nothing_to_measure_without_clips() -> None:
    with pytest.raises(ValueError, match="at least one clip"):
        latent_statistics([])


def test_a_posterior_draws_with_its_generator_alone() -> None:
    posterior = Posterior(torch.zeros(1, 2, 3, 4, 4), torch.zeros(1, 2, 3, 4, 4))
    draws = [posterior.sample(torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_training_starts_sane_and_learns_a_clip() -> None:
    generator = torch.Generator().manual_seed(0)
    config = replace(SECOND, base_dim=16, decoder_base_dim=16)
    model, video = VideoAutoencoder(config).initialise(generator), clip(config, 5)
    video = torch.nn.functional.avg_pool3d(video, (1, 9, 9), 1, (0, 4, 4)) * 4
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    losses = []
    for _ in range(25):
        with torch.autocast("cpu", torch.bfloat16):
            reconstruction, posterior = model.reconstruct(video, generator)
        assert reconstruction.dtype == posterior.mean.dtype == torch.float32
        loss = (reconstruction - video).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2


def test_the_start_has_sane_scales() -> None:
    model = VideoAutoencoder(small_128()).initialise(torch.Generator().manual_seed(0))
    with torch.no_grad():
        posterior = model.posterior(torch.rand(1, 3, 5, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1)
        decoded = model.decode(torch.randn(1, 32, 2, 2, 2, generator=torch.Generator().manual_seed(2)), clamp=False)
    assert 0.1 < float(posterior.mean.std()) < 3
    assert -5 < float(posterior.logvar.mean()) < -3
    assert 0.01 < float(decoded.std()) < 1


def test_packed_filters_make_the_same_and_can_be_trained() -> None:
    """Bit for bit, in every chunk, with names and values as they were."""
    autoencoder = VideoAutoencoder(VideoAutoencoderConfig(16, latent_channels=4, num_res_blocks=1))
    autoencoder = autoencoder.initialise(torch.Generator().manual_seed(0)).to(torch.bfloat16)
    video = torch.rand(1, 3, 9, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1
    before = {name: value.clone() for name, value in autoencoder.state_dict().items()}
    with torch.no_grad():
        latents = autoencoder.encode(video)
        frames = autoencoder.decode(latents)
    with torch.inference_mode():
        autoencoder.pack()
        assert torch.equal(autoencoder.encode(video), latents)
        assert torch.equal(autoencoder.decode(latents), frames)
    after = autoencoder.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    reconstruction, _ = autoencoder.reconstruct(video)
    reconstruction.square().mean().backward()
    assert autoencoder.encoder.conv_in.weight.grad is not None


def test_what_was_made_without_gradients_is_packed_too() -> None:
    with torch.inference_mode():
        autoencoder = VideoAutoencoder(VideoAutoencoderConfig(8, latent_channels=4, num_res_blocks=1)).bfloat16()
        video = torch.zeros(1, 3, 5, 16, 16)
        latents = autoencoder.encode(video)
        autoencoder.pack()
        assert torch.equal(autoencoder.encode(video), latents)
