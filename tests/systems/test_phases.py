"""The trainable phases: one number to minimise, the same validation every time, pictures, and a folder that runs."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from carrara.autoencoders.losses import AutoencoderLossConfig
from carrara.core.types import VideoShape
from carrara.diffusion.fields import KEYFRAME, REGION, FieldMix, TimeDraw
from carrara.systems.latent import LatentVideo, Sampling
from carrara.systems.phases import (
    VALIDATION_LEVELS,
    AutoencoderPhase,
    CaptionedLatents,
    DenoiserPhase,
    PixelBatch,
    to_bytes,
    to_unit,
)

SHAPE = VideoShape(5, 64, 64)
PROMPTS = ["a red ball bounces on the grass", "a green frog jumps over the pond"]


def pixels(seed: int) -> PixelBatch:
    generator = torch.Generator().manual_seed(seed)
    video = torch.randint(0, 256, (2, 5, 64, 64, 3), generator=generator, dtype=torch.uint8)
    actors = torch.zeros(2, 5, 64, 64, dtype=torch.uint8)
    actors[:, :, 20:40, 20:40] = 1
    return PixelBatch(video, actors)


def captioned(step: int) -> CaptionedLatents:
    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(2, 8, *shape, generator=torch.Generator().manual_seed(step))

    return CaptionedLatents(draw(2, 4, 4), PROMPTS, draw(2, 4, 4), torch.tensor([[0.5, 1.0], [0.25, 1.0]]))


@pytest.fixture
def autoencoder_phase(small_system):
    autoencoder = copy.deepcopy(small_system.autoencoder).requires_grad_(True)
    return AutoencoderPhase(autoencoder, pixels, pixels(99), AutoencoderLossConfig())


@pytest.fixture
def denoiser_phase(small_system):
    system = copy.copy(small_system)
    system.denoiser = copy.deepcopy(system.denoiser).requires_grad_(True)
    system.text_encoder = copy.deepcopy(system.text_encoder).requires_grad_(True)
    sampling = Sampling(steps=2, guidance=2.0)
    return DenoiserPhase(system, captioned, captioned(99), FieldMix(), sampling, PROMPTS, SHAPE)


def test_the_draw_of_times_reaches_the_loss(denoiser_phase):
    def loss(times: TimeDraw | None) -> float:
        denoiser_phase.times = times
        with torch.no_grad():
            return float(denoiser_phase.loss(captioned(0), 0, torch.Generator().manual_seed(1))["loss"])

    assert loss(None) == loss(TimeDraw())
    assert loss(TimeDraw(uniform=0, mean=-8)) != loss(TimeDraw(uniform=0, mean=8))


def test_single_frames_have_a_draw_of_their_own(denoiser_phase):
    clips = captioned(0)
    frames = replace(clips, latents=clips.latents[:, :, :1])

    def loss(batch, times: TimeDraw | None, image_times: TimeDraw | None) -> float:
        denoiser_phase.times, denoiser_phase.image_times = times, image_times
        with torch.no_grad():
            return float(denoiser_phase.loss(batch, 0, torch.Generator().manual_seed(1))["loss"])

    low, high = TimeDraw(uniform=0, mean=-8), TimeDraw(uniform=0, mean=8)
    assert loss(clips, low, high) == loss(clips, low, None) != loss(clips, high, None)
    assert loss(frames, low, high) == loss(frames, high, None) != loss(frames, low, None)


@pytest.mark.parametrize("name", ["autoencoder_phase", "denoiser_phase"])
def test_the_loss_is_a_function_of_its_generator_and_reaches_the_weights(name, request):
    phase = request.getfixturevalue(name)
    first, again, other = (
        phase.loss(phase.batch(0), 0, torch.Generator().manual_seed(seed))["loss"] for seed in (1, 1, 2)
    )
    assert first.equal(again)
    assert not first.equal(other)
    first.backward()
    grown = [parameter.grad is not None and bool(parameter.grad.any()) for parameter in phase.module.parameters()]
    assert sum(grown) > 0.9 * len(grown)


@pytest.mark.parametrize("name", ["autoencoder_phase", "denoiser_phase"])
def test_validation_and_pictures_repeat_whatever_was_drawn_before(name, request):
    phase = request.getfixturevalue(name)
    found, picture = phase.validate(), phase.picture()
    torch.rand(7)
    assert phase.validate() == found
    assert phase.picture().equal(picture)
    assert (picture.dtype, picture.ndim, picture.shape[-1]) == (torch.uint8, 3, 3)


def test_the_denoiser_is_validated_per_noise_level(denoiser_phase):
    found = denoiser_phase.validate()
    per_level = [found[f"loss_at_{level:g}"] for level in VALIDATION_LEVELS]
    assert found["loss_mean"] == pytest.approx(sum(per_level) / len(per_level))
    assert len(set(per_level)) == len(VALIDATION_LEVELS)


def test_the_autoencoder_is_exported_with_latents_that_are_normal(autoencoder_phase, tmp_path):
    from carrara.systems.folder import read_autoencoder

    autoencoder_phase.export(tmp_path)
    latents = read_autoencoder(tmp_path).encode(to_unit(autoencoder_phase.validation.video))
    by_channel = latents.transpose(0, 1).flatten(1)
    torch.testing.assert_close(by_channel.mean(1), torch.zeros(8), atol=1e-3, rtol=0)
    torch.testing.assert_close(by_channel.std(1), torch.ones(8), atol=2e-2, rtol=0)


def test_the_denoiser_is_exported_as_a_model_folder_with_its_own_defaults(denoiser_phase, tmp_path):
    denoiser_phase.export(tmp_path / "model")
    system = LatentVideo.load(tmp_path / "model")
    assert (system.defaults.frames, system.defaults.height, system.defaults.sampling.steps) == (5, 64, 2)


def test_bytes_survive_the_unit_range():
    video = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16, 1).expand(1, 1, 16, 16, 3)
    assert to_bytes(to_unit(video)).equal(video)


def test_a_known_region_is_clean_told_so_and_not_learned(denoiser_phase):
    denoiser_phase.mix = replace(FieldMix().only(REGION), noisy_known=0.0)
    seen: list[tuple] = []
    hook = denoiser_phase.system.denoiser.register_forward_pre_hook(lambda module, args: seen.append(args))
    batch = captioned(0)
    loss = denoiser_phase.loss(batch, 0, torch.Generator().manual_seed(1))["loss"]
    hook.remove()
    (x, told, _, keyframes), latents = seen[0], batch.latents
    assert keyframes is None
    levels = told.unflatten(1, (2, 2, 2))  # 4 x 4 latents in patches of 2 x 2
    known = levels.repeat_interleave(2, 2).repeat_interleave(2, 3) == 0
    assert known.any()
    assert not known.all()
    same = (x == latents).all(dim=1)
    assert same[known].all()
    assert not same[~known].any()
    assert loss.isfinite()


def test_keyframes_are_those_of_the_batch_at_their_times(denoiser_phase):
    denoiser_phase.mix = replace(FieldMix().only(KEYFRAME), noisy_known=0.0)
    batch, counts = captioned(0), set()
    for seed in range(8):
        seen: list[tuple] = []
        hook = denoiser_phase.system.denoiser.register_forward_pre_hook(
            lambda module, args, seen=seen: seen.append(args)
        )
        denoiser_phase.loss(batch, 0, torch.Generator().manual_seed(seed))
        hook.remove()
        keyframes = seen[0][3]
        counts.add(keyframes.times.shape[1])
        for row in range(2):
            for k, time in enumerate(keyframes.times[row]):
                stored = (batch.keyframe_times[row] == time).nonzero().item()
                assert keyframes.latents[row, :, k].equal(batch.keyframes[row, :, stored])
    assert counts == {1, 2}


def test_a_network_that_says_what_its_teacher_says_has_nothing_to_learn(denoiser_phase):
    system = denoiser_phase.system
    teacher = copy.deepcopy(system.denoiser)
    sampling = Sampling(steps=2)
    phase = DenoiserPhase(
        system, captioned, captioned(99), FieldMix(), sampling, PROMPTS, SHAPE, teacher=teacher, train_text=False
    )
    taught = phase.loss(captioned(0), 0, torch.Generator().manual_seed(0))["loss"]
    assert taught.item() < 1e-9
    assert [name for name, _ in phase.module.named_children()] == ["denoiser"]
    assert not any(part.requires_grad for part in (*teacher.parameters(), *system.text_encoder.parameters()))
    before = phase.validate()
    with torch.no_grad():
        for weight in teacher.parameters():
            weight.add_(0.1)
    assert phase.loss(captioned(0), 0, torch.Generator().manual_seed(0))["loss"].item() > 1e-3
    assert phase.validate() == before, "clips are what it is measured against"
