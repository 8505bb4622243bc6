"""Watching changes nothing, and what is seen is what happened."""

from __future__ import annotations

import pytest
import torch

from carrara.diffusion.samplers import evaluations
from carrara.generation.request import Request
from carrara.generation.run import load
from carrara.generation.watching import attention_weights, sample_watched
from carrara.nn import attention

PROMPT = "a red ball bounces on the grass"


@pytest.fixture(scope="module")
def model(tiny_folder):
    return load(tiny_folder)


@pytest.fixture(scope="module")
def plan(model):
    return model.plan(Request(PROMPT, seed=5, steps=4, model=model.name))


@pytest.fixture(scope="module")
def seen(model, plan):
    return sample_watched(model, plan, False)[1]


@pytest.mark.parametrize("sampler", ["unipc", "heun", "euler"])
def test_a_watched_clip_is_the_same_clip_and_every_evaluation_is_seen(model, sampler):
    plan = model.plan(Request(PROMPT, seed=5, steps=4, sampler=sampler))
    latents, seen = sample_watched(model, plan, False)
    assert torch.equal(latents, model.sample(plan, False))
    assert len(seen) == evaluations(sampler, 4)
    assert torch.equal(seen[-1].denoised, latents)  # samplers end with the last estimate itself
    assert [e.point.sigma for e in seen] == sorted((e.point.sigma for e in seen), reverse=True)
    assert not torch.equal(seen[0].x, seen[-1].x)


@pytest.mark.parametrize("short", [attention.SHORT, 0])
def test_weights_times_values_are_what_attention_gives(model, plan, seen, monkeypatch, short):
    """In the real network, in every block, whether the scores are formed or streamed."""
    monkeypatch.setattr(attention, "SHORT", short)
    denoiser, real, values = model.system.denoiser, [], []

    def keep(layer, inputs, output):
        real.append(output[0])
        values.append(layer.read(*inputs[:2])[1][0])

    hooks = [block.self_attention.register_forward_hook(keep) for block in denoiser.blocks]
    tokens = torch.arange(3 * 1 * 2)
    weights = attention_weights(model.system, plan.prompt, seen[1], tokens)
    for hook in hooks:
        hook.remove()
    assert weights.shape == (2, 2, 6, 6)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 2, 6))
    for block, weight, value, output in zip(denoiser.blocks, weights, values, real):
        made = block.self_attention.o((weight @ value).transpose(0, 1).flatten(1))
        torch.testing.assert_close(made, output, rtol=1e-4, atol=1e-5)
        uniform = block.self_attention.o(value.mean(1).flatten().expand_as(output))
        assert not torch.allclose(uniform, output, rtol=1e-3, atol=1e-3), "the law must be able to fail"


def test_some_rows_are_those_of_all(model, plan, seen):
    everything = attention_weights(model.system, plan.prompt, seen[0], torch.arange(6))
    some = attention_weights(model.system, plan.prompt, seen[0], torch.tensor([4, 1]))
    torch.testing.assert_close(some, everything[:, :, [4, 1]])


def test_no_hook_stays_even_after_a_failure(model, plan, seen):
    attention_weights(model.system, plan.prompt, seen[0], torch.tensor([0]))
    with pytest.raises(IndexError):
        attention_weights(model.system, plan.prompt, seen[0], torch.tensor([10**6]))
    assert all(not block.self_attention._forward_pre_hooks for block in model.system.denoiser.blocks)
