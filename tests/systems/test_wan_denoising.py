"""Laws of what stands between a network and a sampler: experts, both sides of guidance in one batch, what is given."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from carrara.core.types import Keyframes, TextStates
from carrara.denoisers.dit import DiT, DiTConfig
from carrara.diffusion.grids import GridPoint
from carrara.diffusion.guidance import Guidance
from carrara.systems.denoising import Given, ImageContext, guided
from carrara.systems.experts import Experts

CONFIG = DiTConfig(2, 12, 2, 32, in_channels=4, out_channels=4, text_dim=16, frequencies=32)
READER = replace(CONFIG, in_channels=7, image_dim=20)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def network(config: DiTConfig, seed: int) -> DiT:
    model = DiT(config).eval().requires_grad_(False)
    model.init_weights(seed)
    for index, parameter in enumerate(model.parameters()):
        parameter.add_(draw(*parameter.shape, seed=100 * seed + index), alpha=0.1)
    return model


HIGH, LOW = network(CONFIG, 1), network(replace(CONFIG, layers=1), 2)
PROMPTS = TextStates(draw(2, 5, 16, seed=7), torch.tensor([3, 5]), padded_length=40)
NULL = TextStates(draw(2, 1, 16, seed=8), torch.tensor([1, 1]), padded_length=40)
X = draw(2, 4, 3, 4, 4, seed=5)
GUIDANCE = Guidance(3.0)


def at(told: float) -> GridPoint:
    return GridPoint(1 - told, told, told, 0)


def null() -> TextStates:
    return NULL


def test_the_level_alone_chooses_the_expert():
    experts = Experts(HIGH, LOW, 0.875)
    for told, expert in ((1.0, HIGH), (0.875, HIGH), (0.874, LOW), (0.0, LOW)):
        t = torch.full((2,), told, dtype=torch.float64)
        assert torch.equal(experts(X, t, PROMPTS), expert(X, t, PROMPTS))
        assert torch.equal(experts(X, t, experts.read_text(PROMPTS)), expert(X, t, PROMPTS))


def test_a_field_is_as_noisy_as_its_noisiest_position():
    experts = Experts(HIGH, LOW, 0.5)
    field = torch.tensor([[0.0, 0.6, 0.6], [0.0, 0.4, 0.4]])
    both = experts(X, field, PROMPTS)
    assert torch.equal(both[:1], HIGH(X, field, PROMPTS)[:1])
    assert torch.equal(both[1:], LOW(X, field, PROMPTS)[1:])


def test_experts_that_do_not_belong_together_are_refused():
    with pytest.raises(ValueError, match=r"boundary=1.0: expected a noise level between 0 and 1"):
        Experts(HIGH, LOW, 1.0)
    with pytest.raises(ValueError, match="high noise has in_channels=4, that of low noise 7"):
        Experts(HIGH, network(READER, 3), 0.9)


GIVENS = {
    "nothing": (HIGH, Given()),
    "experts": (Experts(HIGH, LOW, 0.5), Given()),
    "held": (HIGH, Given(torch.arange(3)[None, :, None, None].expand(2, 3, 4, 4) < 1)),
    "held alike": (HIGH, Given(torch.arange(3)[None, :, None, None].expand(1, 3, 4, 4) < 1)),
    "keyframes": (HIGH, Given(keyframes=Keyframes(draw(2, 4, 1, 4, 4), torch.full((2, 1), 2.5), torch.zeros(2, 1)))),
    "image": (network(READER, 3), Given(image=ImageContext(draw(1, 3, 3, 4, 4), draw(1, 9, 20)))),
}


@pytest.mark.parametrize("told", [0.9, 0.2])
@pytest.mark.parametrize("case", GIVENS)
def test_both_sides_of_guidance_in_one_batch_are_the_same(case, told):
    asked, given = GIVENS[case]
    apart, together, chosen = (
        guided(asked, PROMPTS, null, GUIDANCE, 2.0, given, together=each)(X, at(told)) for each in (False, True, None)
    )
    torch.testing.assert_close(together, apart, rtol=1e-4, atol=1e-5)
    assert torch.equal(chosen, together)  # so few tokens go together


def test_one_batch_is_one_evaluation_of_the_network():
    calls: list[int] = []
    hook = HIGH.register_forward_pre_hook(lambda _, given: calls.append(len(given[0])))
    for together in (False, True):
        guided(HIGH, PROMPTS, null, GUIDANCE, together=together)(X, at(0.5))
    guided(HIGH, PROMPTS, null, replace(GUIDANCE, interval=(0.8, 1.0)), together=True)(X, at(0.5))
    hook.remove()
    assert calls == [2, 2, 4, 2]


def test_each_expert_has_its_own_scale_and_off_is_never_read():
    def unread() -> TextStates:
        raise AssertionError("the null caption was read")

    experts = Experts(HIGH, LOW, 0.5)
    one = Guidance(1.0)
    denoise = guided(experts, PROMPTS, unread, one, 1.0)
    assert denoise(X, at(0.9)).isfinite().all()
    assert guided(HIGH, PROMPTS, unread, one, 5.0)(X, at(0.2)).isfinite().all()  # no second expert: its scale is idle
    mixed = guided(experts, PROMPTS, null, one, 3.0)
    assert torch.equal(mixed(X, at(0.9)), guided(HIGH, PROMPTS, null, one)(X, at(0.9)))
    assert torch.equal(mixed(X, at(0.2)), guided(LOW, PROMPTS, null, Guidance(3.0))(X, at(0.2)))


def test_reuse_remembers_each_trajectory_by_itself():
    asked = Experts(HIGH, LOW, 0.5)
    first, second = (guided(asked, PROMPTS, null, GUIDANCE, reuse=0.3) for _ in range(2))
    exact = guided(asked, PROMPTS, null, GUIDANCE)
    start = first(X, at(0.9))
    torch.testing.assert_close(start, exact(X, at(0.9)))
    moved = X + 0.01 * draw(*X.shape, seed=6)
    reused = first(moved, at(0.9))
    assert not torch.equal(reused, second(moved, at(0.9)))  # which has nothing to reuse yet
    torch.testing.assert_close(second(moved, at(0.9)), exact(moved, at(0.9)))
    torch.testing.assert_close(first(moved, at(0.2)), exact(moved, at(0.2)))  # the other expert's first evaluation


def test_an_image_is_asked_for_and_refused_before_anything_is_computed():
    reader = network(READER, 3)
    with pytest.raises(ValueError, match=r"give one \(its 3 channels"):
        guided(reader, PROMPTS, null, GUIDANCE)
    with pytest.raises(ValueError, match="the image has 3 channels: this model takes 0"):
        guided(HIGH, PROMPTS, null, GUIDANCE, given=Given(image=ImageContext(draw(1, 3, 3, 4, 4))))
    with pytest.raises(ValueError, match="image tower"):
        guided(reader, PROMPTS, null, GUIDANCE, given=Given(image=ImageContext(draw(1, 3, 3, 4, 4))))
