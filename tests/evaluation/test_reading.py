"""The reader on fresh renders, through the file format: right, deterministic, graceful, and silent on noise."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage
from tests.evaluation.written import written

from carrara.core.types import VideoShape
from carrara.data.pond.render import render
from carrara.data.pond.sampling import SINGLES, Mix, sample_scene
from carrara.data.pond.world import Scene
from carrara.evaluation.adherence.verdicts import Asked, adherence, score
from carrara.evaluation.reading.clip import read_clip

SEED = 4 << 40
PAIRS = Mix(two=1.0, wall=0.0, camera=0.0)
BATTERY = 48


@pytest.fixture(scope="module")
def singles(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Scene], list[np.ndarray]]:
    scenes = [sample_scene(SEED + n, SINGLES, ("train", "held_out")[n % 2]) for n in range(BATTERY)]
    return scenes, written(scenes, tmp_path_factory.mktemp("singles"))


def test_truth_is_read_right(singles):
    scenes, clips = singles
    right = Counter()
    for scene, frames in zip(scenes, clips):
        right.update(name for name, good in score(read_clip(frames, 8), Asked.everything(scene)).items() if good)
    for name in ("background", "count", "kind", "colour", "size", "motion"):
        assert right[name] >= 0.95 * BATTERY, f"{name}: {right[name]} of {BATTERY}"
    assert right["all"] >= 0.92 * BATTERY


def test_the_track_is_where_the_actor_is(singles):
    scenes, clips = singles
    for scene, frames in zip(scenes[:8], clips):
        truth = render([scene], VideoShape(17, 32, 32)).truths[0]
        (actor,) = read_clip(frames, 8).actors
        off = np.hypot(actor.track.x - truth.position[0, :, 0], actor.track.y - truth.position[0, :, 1])
        assert np.nanmedian(off) < 0.03


def test_two_actors_are_told_apart(tmp_path):
    scenes = [sample_scene(SEED + n, PAIRS) for n in range(8)]
    verdicts = [score(read_clip(f, 8), Asked.everything(s)) for s, f in zip(scenes, written(scenes, tmp_path))]
    assert sum(v["count"] for v in verdicts) >= 7
    assert sum(v["colour"] for v in verdicts) >= 7
    assert sum(v["kind"] for v in verdicts) >= 6


def test_an_actor_in_front_keeps_its_own_motion_and_a_small_ring_is_one(tmp_path):
    """At 64 pixels: what passes behind leaves edges in the front one's mask, and rings are two pixels wide."""
    first, related = 5 << 40, Mix(two=1.0, relation=1.0, wall=0.0, camera=0.0)
    behind = [
        sample_scene(first + n, related, split) for n, split in ((48, "train"), (65, "held_out"), (91, "held_out"))
    ]
    alone = replace(related, relation=0.0)
    rings = [sample_scene(first + n, alone, split) for n, split in ((74, "train"), (91, "held_out"))]
    assert all(scene.relation == "passes behind" for scene in behind)
    assert all("ring" in (actor.kind for actor in scene.actors) for scene in rings)
    scenes = [*behind, *rings]
    for scene, frames in zip(scenes, written(scenes, tmp_path, 64)):
        assert score(read_clip(frames, 8), Asked.everything(scene))["all"], scene


@pytest.mark.parametrize(
    ("mix", "number", "split"),
    [(SINGLES, 9_900_000_000_140, "train"), (Mix(two=0.0, wall=1.0, camera=0.0), (5 << 40) + 128, "train")],
)  # orange and red frogs, whose feet are as brown as no other actor's edge
def test_the_foot_of_a_frog_is_no_actor(mix, number, split, tmp_path):
    scene = sample_scene(number, mix, split)
    assert scene.actors[0].kind == "frog"
    reading = read_clip(written([scene], tmp_path, side=64)[0], 8)
    assert (reading.count, [actor.kind for actor in reading.actors]) == (1, ["frog"])


def test_a_small_actor_beside_a_large_one_stays_an_actor(tmp_path):
    scene = sample_scene(SEED, PAIRS)
    large, small = scene.actors
    small = replace(small, size="small", motion="spins", x=0.22, y=0.0)
    near = replace(scene, actors=(replace(large, size="large", motion="spins", x=0.0, y=0.0), small))
    assert read_clip(written([near], tmp_path, side=64)[0], 8).count == 2


def test_a_small_ring_keeps_its_hole(tmp_path):
    """At 64 pixels the hole is a twelfth of the disc, where shading and a mark have taken from it."""
    first = 5 << 40
    rings = [
        sample_scene(first + 50_119, SINGLES, "held_out"),
        sample_scene(first + 30_020, PAIRS, "train"),
        sample_scene(first + 50_047, PAIRS, "held_out"),
    ]
    assert all("ring" in (actor.kind for actor in scene.actors) for scene in rings)
    for scene, frames in zip(rings, written(rings, tmp_path, 64)):
        assert score(read_clip(frames, 8), Asked.everything(scene))["all"], scene


@pytest.mark.parametrize("side", [64, 128])
def test_a_wall_is_scenery(side, tmp_path):
    scenes = [sample_scene(SEED + n, Mix(two=0.0, wall=1.0, camera=0.0, large=0.3)) for n in range(10)]
    verdicts = [score(read_clip(f, 8), Asked.everything(s)) for s, f in zip(scenes, written(scenes, tmp_path, side))]
    assert sum(v["all"] for v in verdicts) >= 9


def test_blur_and_noise_are_survived(singles):
    scenes, clips = singles
    draw = np.random.default_rng(0)
    right = Counter()
    for scene, frames in zip(scenes[:12], clips):
        soft = ndimage.gaussian_filter(frames.astype(np.float32), (0, 1, 1, 0))
        soft = np.clip(soft + draw.normal(0, 4, soft.shape) + 0.5, 0, 255).astype(np.uint8)
        right.update(name for name, good in score(read_clip(soft, 8), Asked.everything(scene)).items() if good)
    assert min(right[name] for name in ("background", "count", "kind", "colour", "size", "motion")) >= 10


def test_half_the_size_is_read_too(tmp_path):
    scenes = [sample_scene(SEED + n, Mix(two=0.0, wall=0.0, camera=0.0, large=1.0)) for n in range(8)]
    verdicts = [score(read_clip(f, 8), Asked.everything(s)) for s, f in zip(scenes, written(scenes, tmp_path, 64))]
    assert sum(v["colour"] and v["background"] and v["size"] for v in verdicts) >= 7


def test_noise_and_emptiness_are_not_guessed_at():
    draw = np.random.default_rng(0)
    noise = draw.integers(0, 256, (17, 64, 64, 3), dtype=np.uint8)
    grey = np.full((17, 64, 64, 3), 128, np.uint8)
    for frames in (noise, grey):
        reading = read_clip(frames, 8)
        assert reading.background is None
        assert reading.count in (None, 0)
        assert reading.actors == ()
        verdicts = score(reading, Asked(({"kind": "ball", "colour": "red", "motion": "left"},), "sky"))
        assert not any(verdicts.values())


def test_frozen_clips_do_not_move(singles):
    _, clips = singles
    for frames in clips[:6]:
        frozen = np.repeat(frames[:1], 17, axis=0)
        assert all(actor.motion is None for actor in read_clip(frozen, 8).actors)


def test_reading_twice_is_reading_once(singles):
    _, clips = singles
    assert read_clip(clips[0], 8).plain() == read_clip(clips[0].copy(), 8).plain()


def test_a_file_is_read_and_a_bad_one_refused(tmp_path):
    scene = sample_scene(SEED, SINGLES)
    written([scene], tmp_path)
    verdicts, reading = adherence(tmp_path / "0.mp4", Asked.everything(scene))
    assert verdicts["background"]
    assert reading.count == 1
    with pytest.raises(ValueError, match="no such file"):
        adherence(tmp_path / "missing.mp4", Asked.everything(scene))
    with pytest.raises(ValueError, match="expected uint8"):
        read_clip(np.zeros((17, 64, 64)), 8)
    with pytest.raises(ValueError, match="too small"):
        read_clip(np.zeros((17, 16, 16, 3), np.uint8), 8)
