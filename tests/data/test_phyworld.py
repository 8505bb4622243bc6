"""The balls' world: its ranges, the laws of motion, and pictures that show where the balls are."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from carrara.core.config import from_dict, to_dict
from carrara.core.types import VideoShape
from carrara.data.phyworld import (
    FRAMES,
    GRAVITY,
    KINDS,
    OUTER_RADII,
    OUTER_SPEEDS,
    RADII,
    SPEEDS,
    SPLITS,
    WORLD,
    BallScene,
    draw_balls,
    render_balls,
    sample_balls,
    simulate_balls,
)

SEEDS = st.integers(0, 2**42)


def among(value: float, ranges: tuple[tuple[float, float], ...]) -> bool:
    return any(low <= value <= high for low, high in ranges)


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("kind", KINDS)
def test_scenes_are_functions_of_their_seed_and_stay_in_the_published_ranges(kind, split):
    drawn = [sample_balls(seed, kind, split) for seed in range(40)]
    assert drawn == [sample_balls(seed, kind, split) for seed in range(40)]
    assert len({scene.balls for scene in drawn}) == 40
    for scene in drawn:
        for ball in scene.balls:
            outer_radius, outer_speed = (scene.outside in (name, "both") for name in ("radius", "velocity"))
            assert among(ball.radius, OUTER_RADII if outer_radius else (RADII,))
            assert among(abs(ball.vx), OUTER_SPEEDS if outer_speed else (SPEEDS,))
    assert {scene.outside for scene in drawn} == ({"radius", "velocity", "both"} if split == "out" else {""})


@settings(max_examples=40, deadline=None)
@given(SEEDS, st.sampled_from(KINDS), st.sampled_from(SPLITS))
def test_balls_begin_wholly_inside_and_an_impact_can_be_seen(seed, kind, split):
    scene = sample_balls(seed, kind, split)
    truth = simulate_balls(scene)
    assert truth.inside[:, :5].all()
    if kind == "collision":
        assert 0.8 - 1e-9 <= scene.contact <= (FRAMES - 8) / 10 + 1e-9
        assert (truth.inside.all(0) & (truth.times > scene.contact)).sum() >= 3


@settings(max_examples=40, deadline=None)
@given(SEEDS, st.sampled_from(SPLITS))
def test_a_collision_keeps_momentum_and_energy_and_the_balls_never_overlap(seed, split):
    scene = sample_balls(seed, "collision", split)
    truth = simulate_balls(scene, frames=200, fps=60)
    mass = truth.radius[:, None, None] ** 2
    momentum = (mass * truth.velocity).sum(0)
    energy = (mass * truth.velocity**2).sum((0, 2)) / 2
    assert np.ptp(momentum, axis=0).max() < 1e-9
    assert np.ptp(energy) < 1e-9
    apart = np.linalg.norm(truth.position[0] - truth.position[1], axis=-1)
    assert apart.min() >= truth.radius.sum() - 1e-9
    through = simulate_balls(scene, 200, 60, through=True)
    assert np.ptp(through.velocity, axis=1).max() == 0


@settings(max_examples=20, deadline=None)
@given(SEEDS, st.sampled_from(["uniform", "parabola"]))
def test_velocity_is_the_derivative_of_position_and_only_gravity_changes_it(seed, kind):
    truth = simulate_balls(sample_balls(seed, kind), frames=100, fps=50)
    middle = (truth.velocity[:, 1:] + truth.velocity[:, :-1]) / 2
    np.testing.assert_allclose(np.diff(truth.position, axis=1) * 50, middle, atol=1e-9)
    change = np.diff(truth.velocity, axis=1) * 50
    np.testing.assert_allclose(change[..., 0], 0, atol=1e-9)
    np.testing.assert_allclose(change[..., 1], -GRAVITY if kind == "parabola" else 0, atol=1e-9)


@pytest.mark.parametrize(("height", "width"), [(64, 64), (128, 128), (48, 80)])
def test_pictures_show_the_balls_where_and_as_large_as_they_are(height, width):
    scene = sample_balls(5, "collision")
    rendered = render_balls([scene], VideoShape(9, height, width))
    truth, unit = rendered.truths[0], min(height, width) / WORLD
    cover = (rendered.video[0, ..., 0].int() - rendered.video[0, ..., 1].int()).clamp(0).numpy() / 255  # the red one
    x = (np.arange(width) + 0.5 - width / 2) / unit + WORLD / 2
    y = WORLD / 2 - (np.arange(height) + 0.5 - height / 2) / unit
    area = cover.sum((1, 2))
    np.testing.assert_allclose(area, np.pi * (truth.radius[0] * unit) ** 2, rtol=0.02)
    np.testing.assert_allclose((cover.sum(1) @ x) / area, truth.position[0, :, 0], atol=0.02)
    np.testing.assert_allclose((cover.sum(2) @ y) / area, truth.position[0, :, 1], atol=0.02)
    assert set(rendered.mask.unique().tolist()) == {0, 1, 2}


def test_a_clip_depends_only_on_its_own_scene_and_continues_itself():
    scenes = [sample_balls(seed, kind) for seed, kind in enumerate(KINDS)]
    shape = VideoShape(9, 32, 32)
    whole = render_balls(scenes, shape)
    for number, scene in enumerate(scenes):
        alone = render_balls([scene], shape)
        assert torch.equal(alone.video[0], whole.video[number])
        assert torch.equal(alone.mask[0], whole.mask[number])
    later = render_balls(scenes, VideoShape(4, 32, 32), first=5)
    assert torch.equal(later.video, whole.video[:, 5:])
    assert later.truths[0].times[0] == pytest.approx(0.5)


def test_absent_balls_leave_the_plain_white():
    truth = simulate_balls(sample_balls(1, "uniform"), 3)
    truth.position[:, 1] = np.nan
    video, mask = draw_balls([truth], 32, 32)
    assert (video[0, 1] == 255).all()
    assert not mask[0, 1].any()
    assert mask[0, 0].any()


def test_scenes_survive_json():
    scene = sample_balls(3, "collision", "out")
    assert from_dict(BallScene, to_dict(scene), "scene") == scene


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: sample_balls(1, "pendulum"), "pendulum"),
        (lambda: sample_balls(1, "uniform", "held_out"), "held_out"),
        (lambda: sample_balls(-1, "uniform"), "seed=-1"),
        (lambda: render_balls([], VideoShape(5, 64, 64)), "no scenes"),
        (lambda: render_balls([sample_balls(1, "uniform")], VideoShape(5, 8, 64)), "64x8"),
        (lambda: BallScene("collision", sample_balls(1, "uniform").balls), "1 balls"),
        (lambda: simulate_balls(sample_balls(1, "uniform"), 0), "frames=0"),
    ],
)
def test_what_cannot_be_is_refused(call, says):
    with pytest.raises(ValueError, match=says):
        call()
