"""Twins: equal until one law is broken, and broken as their name says; preferences count them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage

from carrara.core.types import VideoShape
from carrara.evaluation.physics.continuation import held, read_balls
from carrara.evaluation.physics.preference import CHANCE, ROUGHNESS, Preference, Preferences, measure_preference
from carrara.evaluation.physics.twins import BALL_LAWS, CONTROL, EARLIEST, POND_LAWS, make_twins

BALLS, POND = VideoShape(33, 48, 48), VideoShape(17, 48, 48)
SEED = 2**40 + 5_000_000


def ball(law: str, seed: int):
    twins = make_twins("balls", law, seed, BALLS, 10.0)
    tracks = [read_balls(clip.numpy(), (0.7, 0.7)) for clip in (twins.valid, twins.invalid)]
    return twins, *tracks


@pytest.mark.parametrize("world", ["balls", "pond"])
def test_twins_are_functions_of_their_seed_and_equal_until_the_law_is_broken(world):
    shape, fps, laws = (BALLS, 10.0, BALL_LAWS) if world == "balls" else (POND, 8.0, POND_LAWS)
    for law in laws:
        twins = make_twins(world, law, SEED, shape, fps)
        again = make_twins(world, law, SEED, shape, fps)
        assert torch.equal(twins.valid, again.valid)
        assert torch.equal(twins.invalid, again.invalid)
        assert torch.equal(twins.valid[: twins.moment], twins.invalid[: twins.moment])
        assert not torch.equal(twins.valid[twins.moment], twins.invalid[twins.moment])
        if law not in (CONTROL, "falls upwards"):
            assert twins.moment >= EARLIEST
        assert twins.valid.shape == (shape.frames, shape.height, shape.width, 3)


@pytest.mark.parametrize("seed", range(SEED, SEED + 3))
def test_balls_break_the_law_that_is_named(seed):
    twins, valid, invalid = ball("teleports", seed)
    at = twins.moment
    assert abs((invalid[0] - valid[0])[at, 1]) > 1.9
    twins, valid, invalid = ball("vanishes", seed)
    assert np.isnan(invalid[0, twins.moment :]).all()
    assert not np.isnan(valid[0, twins.moment]).any()
    twins, valid, invalid = ball("doubles", seed)
    for clip, copies in ((twins.valid, 1), (twins.invalid, 2)):
        frame = clip[twins.moment].numpy()
        assert ndimage.label(frame[..., 1] < 128)[1] == copies
    twins, valid, invalid = ball("changes colour", seed)
    at = twins.moment
    np.testing.assert_allclose(invalid[1, at], valid[0, at], atol=1e-6)
    twins, valid, invalid = ball("changes speed", seed)
    at = twins.moment
    before, after = valid[0, 1, 0] - valid[0, 0, 0], invalid[0, at + 1, 0] - invalid[0, at, 0]
    assert any(after == pytest.approx(factor * before, abs=0.03) for factor in (2.0, 0.4))
    twins, valid, invalid = ball("falls upwards", seed)
    at = twins.moment
    assert np.diff(invalid[0, at - 1 : at + 4, 1], n=2).mean() == pytest.approx(2.5 * 0.01, abs=0.01)
    assert np.diff(valid[0, at - 1 : at + 4, 1], n=2).mean() == pytest.approx(-2.5 * 0.01, abs=0.01)
    twins, valid, invalid = ball("passes through", seed)
    order = [np.sign(np.diff(held(track)[:, :, 0], axis=0))[0] for track in (valid, invalid)]
    assert (order[0] > 0).all()
    assert order[1].min() < 0


def test_the_control_breaks_nothing():
    for seed in range(SEED, SEED + 4):
        _, valid, invalid = ball(CONTROL, seed)
        np.testing.assert_allclose(invalid, valid * [1, -1] + [0, 10], atol=1e-6)


def test_an_actor_goes_on_through_the_wall_that_stops_its_twin():
    twins = make_twins("pond", "passes through", SEED, VideoShape(17, 64, 64), 8.0)
    still = [(clip[-1].int() - clip[-2].int()).abs().max() for clip in (twins.valid, twins.invalid)]
    assert still[0] == 0
    assert still[1] > 0


def test_preferences_count_pairs_and_the_controls_are_what_they_claim():
    class Knows:
        """Sees which of the two is invalid by the order it is given."""

        def __call__(self, clips, prompt, levels, seed):
            return torch.arange(len(clips), dtype=torch.float64)[:, None].repeat(1, len(levels))

    found = measure_preference(Knows(), "balls", VideoShape(17, 32, 32), 10.0, pairs=12, seed=1000, levels=(0.3, 0.7))
    assert found.overall("model").value == found.overall("model", level=1).value == 0
    assert found.overall(CHANCE).low < 0.5 < found.overall(CHANCE).high
    assert found.error(ROUGHNESS, "vanishes").value > 0.6  # what is not there does not change
    assert found.error(ROUGHNESS, "doubles").value == 0.0
    assert found.error(ROUGHNESS, "teleports").value < 0.2
    again = measure_preference(Knows(), "balls", VideoShape(17, 32, 32), 10.0, pairs=12, seed=1000, levels=(0.3, 0.7))
    assert again.found == found.found


def test_laws_that_are_broken_in_the_same_scenes_are_not_counted_as_if_in_others():
    laws = ("vanishes", "doubles", "teleports", "changes colour", CONTROL)

    def pair(law: str, scene: int) -> Preference:
        return Preference(law, scene, 6, (1.0,), (0.0 if scene < 5 else 2.0,))

    found = {("model", law): tuple(pair(law, scene) for scene in range(10)) for law in laws}
    said = Preferences("balls", found, {}, (0.5,), 10, 0).overall("model")
    assert (said.value, said.count) == (0.5, 10)
    assert said.high - said.low > 0.5  # of 40 pairs that are independent: 0.3


def test_another_seed_draws_other_noise():
    first, other = (
        measure_preference(None, "balls", VideoShape(17, 32, 32), 10.0, pairs=1, seed=seed, levels=(0.5,))
        for seed in (0, 1)
    )
    drawn = [{each.found[CHANCE, law][0].valid for law in BALL_LAWS} for each in (first, other)]
    assert not drawn[0] & drawn[1]


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: make_twins("sea", "vanishes", 1, BALLS, 10.0), "sea"),
        (lambda: make_twins("balls", "vanish", 1, BALLS, 10.0), "vanishes"),
        (lambda: make_twins("pond", "vanishes", 1, VideoShape(9, 48, 48), 8.0), "9 frames"),
        (lambda: measure_preference(None, "balls", BALLS, 10.0, pairs=0), "pairs=0"),
    ],
)
def test_what_cannot_be_made_is_refused(call, says):
    with pytest.raises(ValueError, match=says):
        call()
