"""Laws of the draws that training makes: shares, stratification, what counts in the loss."""

from __future__ import annotations

import pytest
import torch

from carrara.diffusion.fields import EQUAL, INDEPENDENT, KEYFRAME, PREFIX, FieldMix, TimeDraw, draw_field, draw_times


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("share", [0.0, 0.7, 1.0])
def test_times_are_stratified(share):
    """Through the mixture's distribution function every batch is an even comb, however small."""
    for n in (1, 10, 64):
        times = draw_times(n, generator(n), TimeDraw(1 - share)).double()
        assert ((times > 0) & (times < 1)).all()
        assert times.dtype == torch.float64
    # Sorted within its component, the i-th quantile lies in the i-th part.
    times = draw_times(1000, generator(), TimeDraw(1 - share)).double().sort().values
    normal = torch.special.ndtr(torch.logit(times))
    mixture = share * normal + (1 - share) * times
    even = (torch.arange(1000) + 0.5) / 1000
    assert (mixture - even).abs().max() < 0.004


def test_times_near_noise_are_not_starved():
    times = draw_times(10000, generator())
    assert (times > 0.95).float().mean().item() == pytest.approx(0.3 * 0.05 + 0.7 * 0.0016, abs=0.001)


def test_times_are_in_random_order_and_follow_the_generator():
    first = draw_times(64, generator(3))
    assert first.equal(draw_times(64, generator(3)))
    assert not first.equal(draw_times(64, generator(4)))
    assert not first.equal(first.sort().values)


def test_moments_of_the_logit_normal():
    logits = torch.logit(draw_times(20000, generator(), TimeDraw(0, mean=0.5, std=2.0)).double())
    assert logits.mean().item() == pytest.approx(0.5, abs=0.01)
    assert logits.std().item() == pytest.approx(2.0, abs=0.02)


def test_shares_hold_in_every_batch():
    field = draw_field(50, 5, generator())
    counts = torch.bincount(field.kinds, minlength=4).tolist()
    for count, share in zip(counts, FieldMix().shares):
        assert abs(count - 50 * share) <= 1
    assert len(counts) == 4


def test_fields_are_what_their_kind_says():
    frames, field = 5, draw_field(4000, 5, generator())
    levels, weights, kinds = field.levels, field.weights, field.kinds
    assert levels.shape == weights.shape == (4000, frames)
    assert levels.dtype == weights.dtype == field.keyframe_levels.dtype == torch.float32

    for kind in (EQUAL, KEYFRAME):
        assert (levels[kinds == kind] == levels[kinds == kind][:, :1]).all()
    for kind in (EQUAL, KEYFRAME, INDEPENDENT):
        assert (weights[kinds == kind] == 1).all()
    assert (levels[kinds == INDEPENDENT].std(dim=1) > 0).all()

    prefix, weight = levels[kinds == PREFIX], weights[kinds == PREFIX]
    known = weight == 0
    assert (known.long().diff(dim=1) <= 0).all()
    lengths = known.sum(dim=1)
    assert set(lengths.tolist()) == {1, 2, 3, 4}
    assert (prefix[known] <= 0.05).all()
    exactly = (prefix[:, 0] == 0).float().mean().item()
    assert exactly == pytest.approx(0.5, abs=0.1)
    rest = torch.where(known, prefix[:, -1:], prefix)
    assert (rest == prefix[:, -1:]).all()

    assert (weights[levels == 0] == 0).all()


def test_keyframes_name_pixel_frames():
    field = draw_field(4000, 5, generator(1))
    given = field.kinds == KEYFRAME
    assert (field.keyframes[~given] == -1).all()
    assert (field.keyframe_levels[~given] == 0).all()
    chosen = field.keyframes[given]
    assert set(chosen.tolist()) == set(range(1, 17))
    assert (chosen == 16).float().mean().item() == pytest.approx(0.5 + 0.5 / 16, abs=0.08)
    assert field.keyframe_levels[given].max() <= 0.05
    assert (field.keyframe_levels[given] == 0).float().mean().item() == pytest.approx(0.5, abs=0.08)


def test_a_single_image_has_no_known_part():
    field = draw_field(200, 1, generator())
    assert set(field.kinds.tolist()) == {EQUAL, INDEPENDENT}
    assert (field.weights == 1).all()
    assert (field.levels > 0).all()
    assert (field.keyframes == -1).all()


def test_fields_follow_the_generator():
    first, again, other = (draw_field(16, 5, generator(seed)) for seed in (7, 7, 8))
    for name in ("levels", "weights", "kinds", "keyframes", "keyframe_levels"):
        assert getattr(first, name).equal(getattr(again, name))
    assert not first.levels.equal(other.levels)


def test_bad_shares_are_refused():
    with pytest.raises(ValueError, match=r"add up to 1\.3"):
        FieldMix(equal=1.0)
    with pytest.raises(ValueError, match=r"prefix=-0\.1"):
        FieldMix(equal=0.92, prefix=-0.1)
    with pytest.raises(ValueError, match=r"uniform=1\.5"):
        TimeDraw(1.5)
    with pytest.raises(ValueError, match="std"):
        TimeDraw(std=0)
