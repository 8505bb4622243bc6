"""Permanence on truth and on twins that break it: right on the one, and each break found by the verdict it is about."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from carrara.core.media import read_video, write_video
from carrara.core.types import VideoShape
from carrara.data.pond.render import render
from carrara.data.pond.sampling import SINGLES, Mix, sample_scene
from carrara.data.pond.simulate import simulate
from carrara.data.pond.validity import is_held_out
from carrara.evaluation.controls import CONTROLS
from carrara.evaluation.permanence.pictures import draw_tracks
from carrara.evaluation.permanence.scenes import (
    LENGTHS,
    TWINS,
    crossing_scene,
    crossing_twins,
    longest_occlusion,
    open_twins,
)
from carrara.evaluation.permanence.section import Result, crossing_prompts, section
from carrara.evaluation.permanence.tracks import extent, read_lives
from carrara.evaluation.permanence.verdicts import VERDICTS, read_permanence, read_wall
from carrara.evaluation.reading.stage import read_stage

SEED = 7 << 40
SHAPE = VideoShape(17, 64, 64)


def through_file(frames: np.ndarray, folder: Path) -> np.ndarray:
    write_video(folder / "clip.mp4", frames, 8, overwrite=True)
    return read_video(folder / "clip.mp4")[0].numpy()


@pytest.fixture(scope="module")
def twins(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, np.ndarray]]:
    """Per crossing: name -> frames as they come back from a file."""
    folder = tmp_path_factory.mktemp("twins")
    found = []
    for index, occlusion in enumerate((1.0, 3.0, 5.0)):
        clips = crossing_twins(crossing_scene(SEED + index, occlusion), index, SHAPE)
        found.append({name: through_file(frames, folder) for name, frames in clips.items()})
    return found


@pytest.mark.parametrize("occlusion", LENGTHS)
def test_a_scene_hides_its_actor_as_long_as_it_says(occlusion):
    for seed in range(SEED, SEED + 5):
        crossed = crossing_scene(seed, occlusion)
        assert crossed == crossing_scene(seed, occlusion)
        truth = simulate(crossed.scene, 17, 8.0)
        assert abs((truth.visible[0] <= 0).sum() - occlusion) <= 1
        assert truth.visible[0, [0, 1, -2, -1]].min() == 1
        assert not is_held_out(crossed.scene)
        assert is_held_out(crossing_scene(seed, occlusion, "held_out").scene)


def test_an_occlusion_without_room_is_refused():
    with pytest.raises(ValueError, match="must be from 0"):
        crossing_scene(0, 9.0)
    assert longest_occlusion(17) < longest_occlusion(33)
    crossing_scene(0, 9.0, frames=33)


def test_truth_is_permanent(twins):
    for occlusion, clips in zip((1.0, 3.0, 5.0), twins):
        found = read_permanence(clips["truth"], 8.0)
        assert all(found.verdicts().values()), found
        assert set(found.verdicts()) == {*VERDICTS, "nothing comes or goes", "permanent"}
        assert found.lives.right_counts() == 1
        assert found.crossing.occlusion == pytest.approx(occlusion, abs=1.2)
        assert found.plain() == read_permanence(clips["truth"].copy(), 8.0).plain()


@pytest.mark.parametrize("name", [name for name, verdict in TWINS.items() if verdict != "nothing comes or goes"])
def test_every_break_is_found_by_its_verdict(twins, name):
    for clips in twins:
        verdicts = read_permanence(clips[name], 8.0).verdicts()
        assert verdicts[TWINS[name]] is False
        assert verdicts["permanent"] is False


def test_what_comes_or_goes_in_the_open_is_found(tmp_path):
    for index in range(4):
        clips = open_twins(sample_scene(SEED + index, SINGLES), index, SHAPE)
        for name, frames in clips.items():
            found = read_permanence(through_file(frames, tmp_path), 8.0)
            assert found.verdicts()["nothing comes or goes"] is (name == "truth")
            assert len(found.lives.vanished) == (name == "vanishes")
            assert len(found.lives.appeared) == (name == "appears")
            assert (found.lives.right_counts() == 1) is (name == "truth")


def test_controls_are_not_permanent(twins):
    for number, clips in enumerate(twins):
        for control in CONTROLS.values():
            found = read_permanence(control(clips["truth"], number), 8.0)
            assert not found.verdicts()["permanent"]
    assert not read_permanence(CONTROLS["frozen"](twins[0]["truth"], 0), 8.0).lives.moves


def test_a_mirrored_clip_is_judged_alike(twins):
    truth = twins[1]["truth"]
    there, back = read_permanence(truth, 8.0), read_permanence(truth[:, :, ::-1], 8.0)
    assert there.verdicts() == back.verdicts()
    assert there.crossing.path.pace == pytest.approx(-back.crossing.path.pace, rel=0.1)


def test_the_wall_is_where_it_stands():
    scene = crossing_scene(SEED, 3.0).scene
    for side in (64, 128):
        wall = read_wall(read_stage(render([scene], VideoShape(17, side, side)).video[0].numpy(), 8.0))
        assert wall.left == pytest.approx(-scene.wall_width / 2, abs=1.5 / side)
        assert wall.right == pytest.approx(scene.wall_width / 2, abs=1.5 / side)


def test_without_a_wall_there_is_a_reason():
    clip = render([sample_scene(SEED, SINGLES)], SHAPE).video[0].numpy()
    found = read_permanence(clip, 8.0)
    assert found.crossing is None
    assert found.reason == "there is no wall"
    assert "reason" in found.plain()
    grey = read_permanence(np.full((17, 64, 64, 3), 128, np.uint8), 8.0)
    assert grey.verdicts() == {"permanent": False}


def test_two_actors_that_cross_are_not_lost():
    scenes = [sample_scene(SEED + n, Mix(two=1.0, relation=1.0, wall=0.0, camera=0.0)) for n in range(6)]
    for video in render(scenes, SHAPE).video:
        lives = read_lives(read_stage(video.numpy(), 8.0), 8.0)
        assert not lives.appeared
        assert not lives.vanished


def test_edges_lie_between_pixels():
    assert extent(np.array([0.0, 1.0, 1.0, 0.0])) == (1.0, 3.0)
    left, right = extent(np.array([0.0, 0.75, 1.0, 0.75, 0.0]))
    assert 1.0 < left < 1.25
    assert right == pytest.approx(5 - left)
    assert extent(np.ones(3)) == (0.0, 3.0)


def test_prompts_ask_for_a_wall_and_are_fixed():
    prompts = crossing_prompts(12, seed=3)
    assert prompts[:5] == crossing_prompts(5, seed=3)
    assert all("wall" in prompt.text and "small" in prompt.text for prompt in prompts)
    assert {prompt.split for prompt in prompts} == {"held in", "held out"}
    with pytest.raises(ValueError, match="must be from 1"):
        crossing_prompts(0)


def test_the_section_tells_truth_from_its_controls(twins):
    prompts = crossing_prompts(3, seed=3)
    results = {
        "truth": [Result(p, read_permanence(c["truth"], 8.0), c["truth"]) for p, c in zip(prompts, twins)] * 6,
        "frozen": [Result(p, read_permanence(CONTROLS["frozen"](c["truth"], 0), 8.0)) for p, c in zip(prompts, twins)]
        * 6,
    }
    made = section(results)
    first = made.tables[0]
    assert dict(first.rows)["permanent"][0].value == 1
    assert dict(first.rows)["permanent"][1].value == 0
    assert "goes behind" in dict(first.rows)
    by_length = made.tables[2]
    assert by_length.title == "By length of occlusion (truth)"
    lengths = [cell for cell in dict(by_length.rows)["permanent"] if cell is not None]
    assert len(lengths) > 1
    assert sum(cell.count for cell in lengths) == 18
    assert all(cell.value == 1 for cell in lengths)
    assert made.plain() == section(results).plain()
    assert len(made.pictures) == 19
    assert made.data["not reported"] == []
    same = section({"truth": results["truth"], "frozen": results["truth"]})
    assert len(same.data["not reported"]) == 8


def test_tracks_are_drawn_on_frames(twins):
    clip = twins[1]["truth"]
    picture = draw_tracks(clip, read_permanence(clip, 8.0))
    assert picture.dtype == np.uint8
    assert picture.shape[0] == 160
    assert (picture == (255, 210, 0)).all(axis=-1).any()
