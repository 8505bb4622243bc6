"""Laws of the draws that training makes: shares, stratification, what counts in the loss."""

from __future__ import annotations

import pytest
import torch

from carrara.diffusion.fields import (
    EQUAL,
    INDEPENDENT,
    KEYFRAME,
    PREFIX,
    REGION,
    FieldMix,
    TimeDraw,
    draw_count,
    draw_field,
    draw_step,
    draw_times,
)


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
    counts = torch.bincount(field.kinds, minlength=5).tolist()
    for count, share in zip(counts, FieldMix().shares):
        assert abs(count - 50 * share) <= 1
    assert len(counts) == 5


def test_fields_are_what_their_kind_says():
    frames, field = 5, draw_field(4000, 5, generator())
    levels, weights, kinds = field.levels, field.weights, field.kinds
    assert levels.shape == weights.shape == (4000, frames)
    assert levels.dtype == weights.dtype == field.known_levels.dtype == torch.float32

    for kind in (EQUAL, REGION):
        assert (levels[kinds == kind] == levels[kinds == kind][:, :1]).all()
    for kind in (EQUAL, REGION, INDEPENDENT):
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


def test_keyframes_are_different_ones_of_those_stored():
    for count in (1, 2, 4):
        field = draw_field(4000, 5, generator(count), stored=4, count=count)
        given = field.kinds == KEYFRAME
        assert field.keyframes.shape == (4000, count)
        assert (field.keyframes[~given] == -1).all()
        chosen = field.keyframes[given]
        assert set(chosen.flatten().tolist()) == {0, 1, 2, 3}
        assert all(len(set(row)) == count for row in chosen.tolist())
        last = (chosen == 3).any(dim=1).float().mean().item()
        assert last == pytest.approx(0.5 + 0.5 * count / 4, abs=0.08)
        assert field.known_levels[given].max() <= 0.05
        assert (field.known_levels[given] == 0).float().mean().item() == pytest.approx(0.5, abs=0.08)
    assert (field.known_levels[(field.kinds == EQUAL) | (field.kinds == INDEPENDENT)] == 0).all()


def test_half_of_the_fields_with_keyframes_have_a_beginning_too():
    field = draw_field(4000, 5, generator(1), FieldMix().only(KEYFRAME))
    begun = (field.weights == 0).any(dim=1)
    assert begun.float().mean().item() == pytest.approx(0.5, abs=0.03)
    assert (field.levels[begun][:, 0] == field.known_levels[begun]).all()


def test_regions_are_rectangles_or_what_is_outside_and_never_everything():
    field = draw_field(2000, 5, generator(2), FieldMix().only(REGION), tokens=(4, 6))
    assert field.region is not None
    assert field.region.shape == (2000, 4, 6)
    known = field.region.flatten(1).float().mean(dim=1)
    assert known.min() > 0
    assert known.max() < 1
    for region in (field.region, ~field.region):
        rows, columns = region.any(dim=2), region.any(dim=1)
        filled = rows.sum(1) * columns.sum(1) == region.flatten(1).sum(1)
        assert filled.float().mean().item() > 0.45  # one of the two is a rectangle
    assert draw_field(8, 5, generator(), FieldMix().without(REGION)).region is None


def test_a_step_has_one_length_of_sequence_and_one_kind_of_levels():
    mix, draws = FieldMix(), generator(3)
    steps = [draw_step(mix, draws) for _ in range(4000)]
    assert sum(step.keyframe == 1 for step in steps) / 4000 == pytest.approx(mix.keyframe, abs=0.02)
    assert sum(step.region == 1 for step in steps) / 4000 == pytest.approx(mix.region, abs=0.02)
    rest = [step for step in steps if step.keyframe != 1 and step.region != 1]
    assert all(step.keyframe == step.region == 0 for step in rest)
    assert rest[0].prefix / rest[0].equal == pytest.approx(mix.prefix / mix.equal)
    counts = [draw_count(4, draws) for _ in range(2000)]
    assert {count: counts.count(count) / 2000 for count in (1, 2, 4)} == pytest.approx(
        {1: 0.5, 2: 0.25, 4: 0.25}, abs=0.04
    )
    assert {draw_count(1, draws) for _ in range(20)} == {1}
    assert FieldMix().only(REGION).without(REGION).equal == 1


def test_what_is_in_the_mix_is_what_a_model_is_taught():
    assert FieldMix().taught == ("levels", "keyframes")
    assert FieldMix().only(PREFIX).taught == ("levels",)
    assert FieldMix().without(KEYFRAME).taught == ("levels",)
    assert FieldMix().only(EQUAL).taught == ()


def test_a_single_image_has_no_known_part():
    field = draw_field(200, 1, generator())
    assert set(field.kinds.tolist()) == {EQUAL, INDEPENDENT}
    assert (field.weights == 1).all()
    assert (field.levels > 0).all()
    assert (field.keyframes == -1).all()


def test_fields_follow_the_generator():
    first, again, other = (draw_field(16, 5, generator(seed)) for seed in (7, 7, 8))
    for name in ("levels", "weights", "kinds", "keyframes", "known_levels", "region"):
        assert getattr(first, name).equal(getattr(again, name))
    assert not first.levels.equal(other.levels)


def test_bad_shares_are_refused():
    with pytest.raises(ValueError, match=r"add up to 1\.34"):
        FieldMix(equal=1.0)
    with pytest.raises(ValueError, match=r"prefix=-0\.1"):
        FieldMix(equal=0.88, prefix=-0.1)
    with pytest.raises(ValueError, match=r"uniform=1\.5"):
        TimeDraw(1.5)
    with pytest.raises(ValueError, match="std"):
        TimeDraw(std=0)
