"""The example that measures the modes: every answer is a clip of the task, and a measure tells right from wrong."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from carrara.core.types import VideoShape
from carrara.data.pond.render import render
from carrara.generation.run import Model

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))

import measure_modes
from mode_measures import NAMES, UNIFORM, Task, measure, psnr
from mode_tasks import MODES, Case, draw_scenes, faded, nearest


@pytest.fixture
def model(tiny_system, monkeypatch):
    defaults = replace(tiny_system.defaults, height=32, width=32, max_prompt_tokens=512)  # it spells most words
    monkeypatch.setattr(tiny_system, "defaults", defaults)
    return Model("tiny", tiny_system)


@pytest.fixture
def case(model):
    return Case(model, *draw_scenes(1, 0)[0])


@pytest.mark.parametrize("mode", sorted(measure_modes.ALL.keys() - {"6 s, part 2", "6 s, part 3"}))
def test_every_answer_is_a_clip_that_the_task_can_be_read_from(case, mode):
    task, answers = measure_modes.ALL[mode](case, (2.0,))
    assert any(label.startswith("model") for label in answers)
    assert len(answers) > 1
    for label, answer in answers.items():
        if label.startswith(("reconstruction guidance", "truth through")) and mode != "extend":
            continue
        frames = answer()
        assert frames.dtype == torch.uint8, label
        assert len(frames) == len(task.truth) if task.truth is not None else len(frames) >= task.made.stop - 2, label
        if mode in ("extend", "before", "between", "interpolate 2", "interpolate 4"):
            kept = list(task.told)
            assert torch.equal(frames[kept], task.truth[kept]), label
    if task.truth is not None and task.hole is None:
        told = set(task.told)
        assert not told & set(task.made), "what is given is not judged as made"


def test_what_is_painted_on_keeps_the_rest(case):
    task, answers = MODES["inpaint"](case, ())
    for label in ("model", "copying", "prompt alone", "replacement"):
        assert torch.equal(answers[label]()[~task.hole], task.truth[~task.hole]), label
    assert task.hole.any(2).any(1).all()


def rendered(count: int = 17) -> tuple[Task, torch.Tensor]:
    scene = next(scene for _, scene in draw_scenes(8, 3) if scene.actors[0].motion in ("left", "right"))
    truth = render([scene], VideoShape(count, 64, 64), 8.0).video[0].clone()
    return Task(scene, 8.0, range(9, count), truth, tuple(range(9)), seams=(9,)), truth


def test_the_truth_is_right_and_a_frozen_clip_is_not():
    task, truth = rendered()
    right = measure(task, truth)
    assert set(right) == set(NAMES)
    assert right["told"] == right["made"] == math.inf
    assert right["colour"] == right["shape"] == right["moves"] == right["whole"] == 1
    assert right["velocity"] < 0.1
    assert right["seam"] < 1
    frozen = measure(task, torch.cat([truth[:9], truth[8:9].expand(8, -1, -1, -1)]))
    assert frozen["told"] == math.inf
    assert frozen["made"] < 30
    assert frozen["moves"] == 0
    assert frozen["velocity"] > 0.9
    gone = measure(task, torch.cat([truth[:9], truth[:1].roll(32, 1).expand(8, -1, -1, -1)]))
    assert gone["seam"] > right["seam"]


def test_another_colour_and_another_way_are_seen():
    task, truth = rendered()
    colour = "blue" if task.scene.actors[0].colour != "blue" else "red"
    other = render([task.scene.with_actor(0, colour=colour)], VideoShape(17, 64, 64), 8.0).video[0]
    assert measure(task, other)["colour"] == 0
    back = torch.cat([truth[:9], truth[1:9].flip(0)])
    assert measure(task, back)["velocity"] > 1.5


def test_every_other_scene_moves_uniformly_and_none_is_another_seeds():
    scenes = draw_scenes(6, 0)
    assert [scene.actors[0].motion in UNIFORM for _, scene in scenes] == [True, False] * 3
    assert not {number for number, _ in scenes} & {number for number, _ in draw_scenes(6, 1)}
    assert draw_scenes(4, 0) == scenes[:4]


def test_copies_and_fades():
    two = torch.tensor([10, 20], dtype=torch.uint8)[:, None, None, None].expand(2, 1, 1, 3)
    assert nearest(two, 5)[:, 0, 0, 0].tolist() == [10, 10, 10, 20, 20]
    assert faded(two[0], two[1], 5)[:, 0, 0, 0].tolist() == [10, 12, 15, 18, 20]
    assert psnr(two, two) == math.inf
    assert abs(psnr(two[:1], two[1:]) - 20 * math.log10(25.5)) < 1e-9


def test_what_was_measured_is_kept_and_nothing_is_mixed_up(tmp_path, model, monkeypatch):
    found = measure_modes.run(model, 1, 0, ["last"], (), tmp_path, sheets=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last-1.png", "modes.json"]
    kept = json.loads((tmp_path / "modes.json").read_text())
    assert kept["found"] == found
    monkeypatch.setattr(measure_modes, "measure", None)  # measuring again would fail
    assert measure_modes.run(model, 1, 0, ["last"], (), tmp_path) == found
    with pytest.raises(SystemExit, match="give another folder"):
        measure_modes.run(model, 1, 1, ["last"], (), tmp_path)
    lines = measure_modes.table(found, ["last"])
    assert lines[2].startswith("| last: model | 1 | ")
    assert all(line.count("|") == lines[0].count("|") for line in lines)


def test_cells():
    assert measure_modes.cell("made", [None, None]) == ""
    assert measure_modes.cell("made", ["exact", "exact"]) == "exact"
    assert measure_modes.cell("made", [30.0, 30.0, "exact"]) == "30 [30, 30], 1 exact"
    assert measure_modes.cell("colour", [1.0, 0.0]).startswith("50% [")
