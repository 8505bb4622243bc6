"""Motions read from exact tracks: of the simulator, at several rates, with noise, and turned about."""

import math

import numpy as np
import pytest

from carrara.data.pond.sampling import SINGLES, sample_scene
from carrara.data.pond.simulate import simulate
from carrara.data.pond.world import MOTIONS, Scene
from carrara.evaluation.reading.tracks import RINGS, SPOKES, Track, read_motion, turning

SEED = 3 << 40


def track_of(scene: Scene, fps: float = 8.0, frames: int = 17, noise: float = 0.0) -> Track:
    truth = simulate(scene, frames, fps)
    actor = scene.actors[0]
    x, y = truth.position[0].T + noise * np.random.default_rng(0).normal(size=(2, frames))
    radius = truth.scale[0] * actor.radius
    step = np.diff(np.unwrap(truth.angle[0])).mean() if actor.motion == "spins" else 0.0
    return Track(truth.times, x, y, radius, float(step))


def scenes(motion: str, count: int = 12) -> list[Scene]:
    found = []
    for seed in range(SEED, SEED + 1000):
        scene = sample_scene(seed, SINGLES)
        if scene.actors[0].motion == motion:
            found.append(scene)
            if len(found) == count:
                return found
    raise AssertionError(f"no scenes that show {motion}")


@pytest.mark.parametrize("motion", MOTIONS)
def test_every_motion_of_the_simulator_is_read(motion):
    for scene in scenes(motion):
        assert read_motion(track_of(scene)) == motion
        assert read_motion(track_of(scene, fps=12.0, frames=25)) == motion
        assert read_motion(track_of(scene, noise=0.003)) == motion


@pytest.mark.parametrize("motion", ["left", "right", "orbits", "swims", "grows", "flies"])
def test_a_mirrored_track_is_the_mirrored_motion(motion):
    scene = scenes(motion, 1)[0]
    track = track_of(scene)
    mirrored = Track(track.times, -track.x, track.y, track.radius, track.turning)
    assert read_motion(mirrored) == {"left": "right", "right": "left"}.get(motion, motion)


def test_a_few_lost_frames_do_not_matter():
    scene = scenes("right", 1)[0]
    track = track_of(scene)
    for array in (track.x, track.y, track.radius):
        array[5:9] = np.nan
    assert read_motion(track) == "right"


def test_what_stays_or_is_hardly_seen_has_no_motion():
    times = np.arange(17) / 8
    still = np.zeros(17)
    assert read_motion(Track(times, still, still, still + 0.1, 0.0)) is None
    assert read_motion(Track(times, still * np.nan, still, still + 0.1, 0.3)) is None
    brief = np.where(np.arange(17) < 3, np.linspace(-0.3, 0.3, 17), np.nan)
    assert read_motion(Track(times, brief, still, still + 0.1, 0.0)) is None


@pytest.mark.parametrize("spokes", [-7, -3, 3, 5, 9])
def test_turning_is_read_from_a_turning_appearance(spokes):
    draw = np.random.default_rng(1)
    angle = np.arange(SPOKES) * 2 * math.pi / SPOKES
    pattern = sum(draw.normal(size=(RINGS, 1, 3)) * np.cos(n * angle + n)[None, :, None] for n in range(1, 4)) * 8
    ones = np.ones((RINGS, SPOKES, 1))
    shading = 5 * np.cos(angle)[None, :, None] * np.ones((RINGS, 1, 3))  # does not turn

    def looks(step: int) -> list[np.ndarray]:
        frames = [np.roll(pattern, step * t, axis=1) + shading for t in range(17)]
        return [np.concatenate([f + draw.normal(size=f.shape), ones], axis=-1).astype(np.float32) for f in frames]

    assert turning(looks(spokes)) == pytest.approx(spokes * 2 * math.pi / SPOKES)
    assert turning(looks(0)) == 0.0
