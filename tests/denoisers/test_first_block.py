"""Laws of the first-block cache: off is exact, everything is reused at most as far as asked, errors grow with it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from carrara.core.types import TextStates
from carrara.denoisers.dit import DiT, DiTConfig
from carrara.denoisers.first_block import FirstBlock
from carrara.diffusion.grids import flow_grid
from carrara.diffusion.predictions import to_denoised
from carrara.diffusion.samplers import euler

CONFIG = DiTConfig(2, 12, 4, 48, in_channels=4, out_channels=4, text_dim=16, frequencies=32)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def dit() -> DiT:
    model = DiT(CONFIG).eval().requires_grad_(False)
    model.init_weights(0)
    for index, parameter in enumerate(model.parameters()):
        parameter.add_(draw(*parameter.shape, seed=index), alpha=0.05)
    return model


TEXT = TextStates(draw(1, 5, 16, seed=7), torch.tensor([5]), padded_length=40)


def sample(network, steps: int = 20) -> Tensor:
    keys = network.read_text(TEXT)

    def denoise(x: Tensor, point) -> Tensor:
        flow = network(x, torch.tensor([point.told], dtype=torch.float64), keys)
        return to_denoised("flow", flow, x, point.alpha, point.sigma)

    return euler(denoise, draw(1, 4, 3, 4, 4, seed=5), flow_grid(steps, 3.0))


def test_off_is_exact(dit):
    cached = FirstBlock(dit, 0.0)
    assert torch.equal(sample(cached), sample(dit))
    assert (cached.asked, cached.reused) == (20, 0)


def test_more_is_reused_at_higher_thresholds_at_an_error_that_is_bounded(dit):
    """The error is reported, not hidden: relative to the exact latents it rises with the share that is skipped."""
    exact, found = sample(dit, 40), []
    for threshold in (0.3, 0.4, 0.6):
        cached = FirstBlock(dit, threshold)
        error = ((sample(cached, 40) - exact).norm() / exact.norm()).item()
        found.append((cached.reused, error))
    reused, errors = zip(*found)
    assert 0 < reused[0] < reused[1] < reused[2] < 40
    assert 0 < errors[0] < errors[1] < errors[2] < 0.02


def test_what_is_like_the_last_full_evaluation_is_reused_exactly(dit):
    cached, x, t = FirstBlock(dit, 0.05), draw(1, 4, 3, 4, 4), torch.tensor([0.7])
    first = cached(x, t, TEXT)
    assert torch.equal(first, dit(x, t, TEXT))
    assert torch.allclose(cached(x, t, TEXT), first, atol=1e-6)
    assert cached.reused == 1
    other = draw(1, 4, 3, 4, 6, seed=2)
    assert torch.equal(cached(other, t, TEXT), dit(other, t, TEXT))  # another shape: nothing to reuse


@pytest.mark.parametrize("threshold", [-0.1, 1.0, float("nan")])
def test_thresholds_are_shares(dit, threshold):
    with pytest.raises(ValueError, match="expected 0"):
        FirstBlock(dit, threshold)
