"""Laws of the autoencoder's losses."""

from __future__ import annotations

import math

import pytest
import torch

from carrara.autoencoders.losses import (
    AutoencoderLossConfig,
    autoencoder_loss,
    kl_divergence,
    outlier_penalty,
    place_weights,
    psnr,
)
from carrara.autoencoders.video import Posterior

GENERATOR = torch.Generator().manual_seed(0)
UNIT = Posterior(torch.zeros(2, 4, 2, 2, 2), torch.zeros(2, 4, 2, 2, 2))


def video() -> torch.Tensor:
    return torch.rand(2, 3, 5, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_all_terms_are_zero_at_identity() -> None:
    terms = autoencoder_loss(video(), video(), UNIT, torch.rand(2, 5, 8, 8, generator=GENERATOR))
    assert {name: float(value) for name, value in terms.items()} == {"loss": 0, "l1": 0, "gradient": 0, "kl": 0}


def test_the_loss_is_the_weighted_sum_of_its_terms() -> None:
    config = AutoencoderLossConfig(gradient=0.5, kl=0.1, outlier=0.2)
    posterior = Posterior(torch.randn(2, 4, 2, 8, 8, generator=GENERATOR), torch.zeros(2, 4, 2, 8, 8))
    terms = autoencoder_loss(video(), video() * 0.5, posterior, None, config)
    expected = terms["l1"] + 0.5 * terms["gradient"] + 0.1 * terms["kl"] + 0.2 * terms["outlier"]
    torch.testing.assert_close(terms["loss"], expected)


def test_weights_average_one_and_hold_the_ratio() -> None:
    mask = torch.zeros(2, 5, 8, 8)
    mask[:, :, :2, :2] = 1
    weights = place_weights(mask, 5.0)
    assert weights.shape == (2, 1, 5, 8, 8)
    assert float(weights.mean()) == pytest.approx(1)
    assert float(weights.max() / weights.min()) == pytest.approx(5)


def test_an_error_on_an_actor_counts_more_by_the_given_factor() -> None:
    mask = torch.zeros(1, 1, 1, 8, 8)
    mask[..., 2:4, 2:4] = 1
    truth = torch.zeros(1, 3, 1, 8, 8)
    losses = []
    for place in (3, 6):
        made = truth.clone()
        made[..., place, place] = 0.5
        losses.append(float(autoencoder_loss(truth, made, UNIT, mask)["l1"]))
    assert losses[0] / losses[1] == pytest.approx(5)


def test_equal_weights_are_no_weights() -> None:
    made = video() * 0.7
    plain = autoencoder_loss(video(), made, UNIT)
    for mask in (torch.zeros(2, 5, 8, 8), torch.ones(2, 5, 8, 8, dtype=torch.bool)):
        for name, value in autoencoder_loss(video(), made, UNIT, mask).items():
            torch.testing.assert_close(value, plain[name])


@pytest.mark.parametrize("axis", [2, 3, 4])
def test_the_gradient_term_sees_edges_and_not_a_constant_shift(axis: int) -> None:
    truth = torch.zeros(1, 3, 5, 8, 8)
    shifted = autoencoder_loss(truth, truth + 0.5, UNIT)
    assert float(shifted["gradient"]) == 0
    step = truth.clone()
    n = truth.shape[axis]
    step.narrow(axis, 2, n - 2).add_(0.5)  # one edge along the axis: one pair of n - 1 differs, on one axis of three
    assert float(autoencoder_loss(truth, step, UNIT)["gradient"]) == pytest.approx(0.5 / (n - 1) / 3)


def test_the_weighted_gradient_of_the_loss_is_the_true_one() -> None:
    mask = torch.rand(1, 3, 4, 4, generator=GENERATOR, dtype=torch.float64)
    truth = torch.rand(1, 2, 3, 4, 4, generator=GENERATOR, dtype=torch.float64)
    made = torch.rand(1, 2, 3, 4, 4, generator=GENERATOR, dtype=torch.float64, requires_grad=True)
    for actors in (None, mask):
        assert torch.autograd.gradcheck(lambda made: autoencoder_loss(truth, made, UNIT, actors)["loss"], made)  # noqa: B023


def test_an_image_has_no_differences_in_time() -> None:
    truth = video()[:, :, :1]
    assert torch.isfinite(autoencoder_loss(truth, truth * 0.5, UNIT)["loss"])


def test_kl_matches_the_closed_form_of_torch() -> None:
    posterior = Posterior(torch.randn(2, 3, generator=GENERATOR), torch.randn(2, 3, generator=GENERATOR))
    wide = torch.distributions.Normal(posterior.mean, (0.5 * posterior.logvar).exp())
    unit = torch.distributions.Normal(torch.zeros(2, 3), torch.ones(2, 3))
    torch.testing.assert_close(kl_divergence(posterior), torch.distributions.kl_divergence(wide, unit).mean())


def test_the_outlier_penalty_punishes_hot_spots_only() -> None:
    calm = torch.randn(1, 4, 1, 16, 16, generator=GENERATOR).clamp(-1, 1)
    hot = calm.clone()
    hot[..., 3, 3] = 50
    assert float(outlier_penalty(calm)) == 0
    assert float(outlier_penalty(hot)) > 0.05


def test_psnr_is_the_definition_and_a_mask_chooses_places() -> None:
    a, b = torch.zeros(2, 3, 1, 4, 4), torch.full((2, 3, 1, 4, 4), 0.2)
    assert float(psnr(a, b)[0]) == pytest.approx(20 * math.log10(2 / 0.2), abs=1e-4)
    b[:, :, :, 2:] = 0
    mask = torch.zeros(2, 1, 4, 4)
    mask[:, :, :2] = 1
    assert float(psnr(a, b, mask)[1]) == pytest.approx(20, abs=1e-4)
    assert torch.isinf(psnr(a, a)).all()
    assert torch.isnan(psnr(a, b, torch.zeros_like(mask))).all()


def test_clips_that_differ_in_size_are_refused() -> None:
    with pytest.raises(ValueError, match="must be alike"):
        autoencoder_loss(video(), video()[:, :, :1], UNIT)
