"""Temporal consistency: truth and its controls are told apart, and any clip gives numbers or reasons."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from carrara.core.media import read_video, write_video
from carrara.core.types import VideoShape
from carrara.data.pond.render import render
from carrara.data.pond.sampling import Mix, sample_scene
from carrara.evaluation.consistency.measures import MEASURES, MOST_FRAMES, measure
from carrara.evaluation.consistency.section import draw, mixed, section
from carrara.evaluation.controls import CONTROLS

REAL = Path(__file__).parents[3] / "shared" / "realdata"
SEEDS = 2**40 + 10_000_000  # scenes that no evaluation and no training uses
COUNT = 13


@pytest.fixture(scope="module")
def truth():
    scenes = [sample_scene(SEEDS + index, Mix(two=0.15, wall=0.0, camera=0.0)) for index in range(COUNT)]
    return list(render(scenes, VideoShape(17, 64, 64), 8.0).video.numpy())


@pytest.fixture(scope="module")
def found(truth):
    clips = {"truth": truth, "mixed": mixed(truth)[:6]}
    for name, control in CONTROLS.items():
        clips[name] = [control(clip, index) for index, clip in enumerate(truth)]
    return {name: [measure(clip, 8.0) for clip in part] for name, part in clips.items()}


def square(frames: int = 9, step: float = 3.0, side: int = 64, scale: int = 1) -> np.ndarray:
    """A plain square that moves to the right over stripes."""
    columns = np.arange(side)
    clip = np.empty((frames, side, side, 3), np.uint8)
    clip[:] = (90 + 40 * np.sin(columns / 5) + 20 * np.cos(columns / 3)[:, None])[..., None]
    for index, frame in enumerate(clip):
        left = 4 + round(index * step)
        frame[26:38, left : left + 12] = (230, 40, 30)
    return clip.repeat(scale, 1).repeat(scale, 2)


def test_controls_separate_from_truth_by_more_than_their_intervals(found):
    part = section(found)
    assert part.data["separates"] == dict.fromkeys(MEASURES, True)
    assert len(part.tables[0].rows) == len(MEASURES)


def test_a_measure_that_does_not_separate_is_not_reported(found):
    same = {"truth": found["truth"], "shuffled": found["truth"]}
    part = section(same)
    assert not part.data["separates"]["smoothness"]
    titles = [title for title, _ in part.tables[0].rows]
    assert len(titles) == 3  # speed, dynamic degree and background have no control here
    assert "Not reported: motion smoothness" in part.about
    assert "Too few clips or no control" in part.tables[0].note


def test_equal_clips_give_equal_json(found, truth):
    again = measure(truth[0], 8.0)
    assert json.dumps(again.plain()) == json.dumps(found["truth"][0].plain())
    assert json.dumps(section(found).plain()) == json.dumps(section(found).plain())


@pytest.mark.parametrize("value", [0, 90, 255])
def test_what_does_not_move_has_no_consistency_but_a_reason(value):
    clip = np.full((9, 32, 48, 3), value, np.uint8)
    still = measure(clip, 8.0)
    assert (still.speed, still.dynamic) == (0.0, False)
    for name in ("flicker", "smoothness", "subject", "background"):
        assert getattr(still, name) is None
        assert still.reasons[name] == "nothing moves"


@pytest.mark.parametrize(("shape", "measured"), [((1, 64, 64), set()), ((2, 64, 64), {"speed", "dynamic"})])
def test_short_clips_give_what_they_can(shape, measured):
    clip = measure(square(shape[0]), 8.0)
    assert measured <= {name for name in MEASURES if getattr(clip, name) is not None}
    assert set(clip.reasons) == {name for name in MEASURES if getattr(clip, name) is None}
    assert clip.smoothness is None
    assert f"the clip has {shape[0]}" in clip.reasons["smoothness"]


@pytest.mark.parametrize("shape", [(3, 1, 1), (3, 15, 200), (3, 16, 17), (3, 2, 3000), (4, 40, 1000), (5, 33, 31)])
def test_any_size_gives_values_or_reasons(shape):
    noise = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    clip = measure(noise, 25.0)
    for name in MEASURES:
        assert (getattr(clip, name) is None) == (name in clip.reasons)
    draw(noise, 25.0)


def test_speed_is_in_shorter_sides_per_second_at_any_size_and_rate():
    expected = 3 * 8 / 64
    values = [measure(square(), 8.0), measure(square(scale=3), 8.0), measure(square(33, 3 / 4), 32.0)]
    for clip in values:
        assert clip.speed == pytest.approx(expected, rel=0.3)
        assert clip.dynamic
    assert measure(square(), 4.0).speed == pytest.approx(values[0].speed / 2, rel=1e-6)


def test_each_disturbance_lowers_its_measure():
    clip = square(17, 2)
    true = measure(clip, 8.0)
    bright = clip.copy()
    bright[::2] = (bright[::2] * 0.9).astype(np.uint8)
    assert measure(bright, 8.0).flicker > 5 * true.flicker + 1
    jerky = square(17, 2)[[0, 0, 4, 4, 4, 5, 7, 7, 8, 10, 10, 10, 12, 12, 14, 16, 16]]
    assert measure(jerky, 8.0).smoothness < true.smoothness - 0.2
    fading = clip.astype(float)
    red = (clip[..., 0] > 200) & (clip[..., 1] < 60)
    weight = np.linspace(0, 1, 17)[:, None, None, None]
    fading = np.where(red[..., None], fading * (1 - weight) + np.array([30, 60, 230]) * weight, fading)
    assert measure(fading.astype(np.uint8), 8.0).subject < true.subject - 0.1
    drifting = np.where(red[..., None], clip, np.clip(clip + 60 * weight, 0, 255))
    assert measure(drifting.astype(np.uint8), 8.0).background < true.background - 0.1


def test_long_clips_are_measured_in_the_middle():
    clip = np.zeros((MOST_FRAMES + 20, 16, 16, 3), np.uint8)
    clip[:10, ::2], clip[-10:, ::2] = 255, 255
    still = measure(clip, 30.0)
    assert (still.frames, still.measured, still.speed) == (MOST_FRAMES + 20, MOST_FRAMES, 0.0)


def test_torch_and_numpy_are_the_same():
    clip = square(5)
    assert measure(torch.from_numpy(clip), 8.0) == measure(clip, 8.0)


@pytest.mark.parametrize("fps", [0, -1, float("nan"), float("inf")])
def test_what_is_no_clip_is_refused(fps):
    with pytest.raises(ValueError, match="fps"):
        measure(square(3), fps)
    with pytest.raises(ValueError, match="expected"):
        measure(np.zeros((0, 16, 16, 3), np.uint8), 8.0)


def test_mixing_takes_every_frame_from_another_clip():
    clips = [np.full((3, 4, 4, 3), value, np.uint8) for value in (10, 20, 30)]
    assert [frame[0, 0, 0] for frame in mixed(clips)[1]] == [20, 30, 10]
    with pytest.raises(ValueError, match="at least two"):
        mixed(clips[:1])


def test_the_drawing_shows_tracks_on_what_moves_and_the_flow_beneath():
    image = draw(square(), 8.0)
    assert image.dtype == np.uint8
    above, below = image[:160], image[160:]
    cyan = (np.abs(above.astype(int) - (0, 220, 220)).sum(-1) < 10).any()
    warm = ((above[..., 0] == 255) & (above[..., 1] > 55) & (above[..., 2] == 0)).any()
    assert cyan
    assert warm
    assert (below == 255).all(-1).mean() > 0.5  # rest is white
    assert (below != 255).any()


@pytest.mark.skipif(not REAL.is_dir(), reason="real clips are not here")
@pytest.mark.parametrize(
    "name",
    [
        "clips/intel_classroom.gif",
        "odd/mp_transparent.webm",
        "odd/exo_video_desks.3gp",
        "odd/x_bear-vp9-odd-dimensions.webm",
    ],
)
def test_real_clips_of_every_kind_are_measured(name):
    frames, fps, _ = read_video(REAL / name)
    clip = measure(frames[:24], fps)
    assert clip.speed > 0
    assert clip.smoothness is not None


def test_a_written_frozen_clip_does_not_move(tmp_path, truth):
    """Compression must not look like motion."""
    write_video(tmp_path / "clip.mp4", CONTROLS["frozen"](truth[0], 0), 8.0)
    frames, fps, _ = read_video(tmp_path / "clip.mp4")
    assert measure(frames, fps).flicker is None
