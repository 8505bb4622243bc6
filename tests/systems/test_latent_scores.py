"""A model behind the protocols of evaluation: what is known is kept, and errors are the model's, whatever the batch."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from carrara.core.types import VideoShape
from carrara.data.phyworld import render_balls, sample_balls
from carrara.systems.latent_scores import LatentContinues, LatentScores
from carrara.systems.phases import to_bytes, to_unit

LEVELS = (0.2, 0.5, 0.9)


@pytest.fixture(scope="module")
def clips():
    return render_balls([sample_balls(seed, "uniform") for seed in range(3)], VideoShape(9, 32, 32)).video


def test_a_continued_clip_begins_as_the_autoencoder_gives_the_known_frames_back(small_system, clips):
    go_on = LatentContinues(small_system, replace(small_system.defaults.sampling, steps=2))
    made = go_on(clips[0, :5], 9, "a red ball")
    assert (made.shape, made.dtype) == ((9, 32, 32, 3), torch.uint8)
    with torch.inference_mode():
        alone = to_bytes(small_system.autoencoder.decode(small_system.autoencoder.encode(to_unit(clips[:1, :5]))))[0]
    assert (made[:5].int() - alone.int()).abs().max() <= 1
    assert torch.equal(made, go_on(clips[0, :5], 9, "a red ball"))
    for other in (go_on(clips[0, :5], 9, "a red ball", seed=1), go_on(clips[0, :5], 9, "a green frog")):
        assert torch.equal(other[:5], made[:5])
        assert not torch.equal(other[5:], made[5:])
    assert not torch.equal(go_on(clips[1, :5], 9, "a red ball")[5:], made[5:])


def test_errors_are_those_of_the_flow_and_do_not_depend_on_the_batch(small_system, clips):
    score = LatentScores(small_system, batch=2)
    found = score(clips, "a red ball", LEVELS, 7)
    assert (found.shape, found.dtype) == ((3, 3), torch.float64)
    assert torch.equal(found, score(clips, "a red ball", LEVELS, 7))
    alone = torch.cat([score(clip[None], "a red ball", LEVELS, 7) for clip in clips])
    torch.testing.assert_close(found, alone, rtol=1e-4, atol=0)
    assert not torch.allclose(found, score(clips, "a red ball", LEVELS, 8))
    with torch.inference_mode():
        latents = small_system.autoencoder.encode(to_unit(clips[:1]))
        noise = torch.randn(3, *latents.shape[1:], generator=torch.Generator().manual_seed(7))[1:2]
        flow = small_system.denoiser((latents + noise) / 2, torch.tensor([0.5]), small_system.read(["a red ball"]))
        by_hand = (flow - noise + latents).square().mean()
    assert float(found[0, 1]) == pytest.approx(float(by_hand), rel=1e-4)


def test_below_the_boundary_the_second_expert_is_scored(tiny_system, clips):
    two, clips = copy.copy(tiny_system), clips[:, :, :16]
    two.low_denoiser, two.boundary = copy.deepcopy(tiny_system.denoiser), 0.6
    with torch.no_grad():
        for parameter in two.low_denoiser.parameters():
            parameter.mul_(0.5)
    low = copy.copy(tiny_system)
    low.denoiser = two.low_denoiser
    found, high, other = (LatentScores(s)(clips, "a red ball", LEVELS, 3) for s in (two, tiny_system, low))
    torch.testing.assert_close(found[:, :2], other[:, :2])
    torch.testing.assert_close(found[:, 2:], high[:, 2:])
    assert (found - high)[:, :2].abs().max() > 1e-4


def test_known_frames_are_given_and_not_scored(small_system, clips):
    changed = clips.clone()
    changed[:, 5:] = 255 - changed[:, 5:]
    whole, rest = LatentScores(small_system), LatentScores(small_system, known=5)
    assert not torch.allclose(whole(clips, "", LEVELS, 0), rest(clips, "", LEVELS, 0))
    assert not torch.allclose(rest(changed, "", LEVELS, 0), rest(clips, "", LEVELS, 0))


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda system, clips: LatentContinues(system)(clips[0, :4], 9), "frames=4"),
        (lambda system, clips: LatentContinues(system)(clips[0, :5], 8), "frames=8"),
        (lambda system, clips: LatentContinues(system)(clips[0, :5], 5), "nothing is left"),
        (lambda system, clips: LatentContinues(system)(clips[0, :5].float(), 9), "float32"),
        (lambda system, clips: LatentScores(system)(clips, "", (0.5, 1.0), 0), "levels="),
        (lambda system, clips: LatentScores(system)(clips, "", (), 0), "levels="),
        (lambda system, clips: LatentScores(system)(clips[0], "", LEVELS, 0), "expected uint8"),
        (lambda system, clips: LatentScores(system, known=4), "frames=4"),
        (lambda system, clips: LatentScores(system, known=9)(clips, "", LEVELS, 0), "nothing is left"),
        (lambda system, clips: LatentScores(system, batch=0), "batch=0"),
    ],
)
def test_what_cannot_be_asked_is_refused(small_system, clips, call, says):
    with pytest.raises(ValueError, match=says):
        call(small_system, clips)
