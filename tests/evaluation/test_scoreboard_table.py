"""The table of systems: cells that survive JSON, means over trainings, reasons, and pictures in a row."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from carrara.core.media import write_video
from carrara.core.types import VideoShape
from carrara.data.pond.render import render
from carrara.evaluation.distribution.distances import distances
from carrara.evaluation.distribution.distances import section as distribution_section
from carrara.evaluation.permanence import section as permanence_section
from carrara.evaluation.prompts import draw_prompts
from carrara.evaluation.report.sections import Section
from carrara.evaluation.scoreboard import MEASURES, PARTS, Cell, cells_of, markdown, over_trainings, side_by_side
from carrara.evaluation.statistics import Estimate, mean_estimate
from carrara.evaluation.subject import Subject
from carrara.evaluation.suite import evaluate
from carrara.generation.measured import shrink_to


@pytest.mark.parametrize(
    "cell",
    [
        Cell(Estimate(0.25, 0.1, 0.5, 12, True)),
        Cell(Estimate(3.5, -math.inf, math.inf, 1)),
        Cell(Estimate(-0.5, -1.0, 0.25, 3)),
        Cell(None, "nothing moves"),
    ],
)
def test_cells_survive_json(cell):
    again = Cell.of(json.loads(json.dumps(cell.plain(), allow_nan=False)))
    assert again == cell
    assert again.text() == cell.text()


def test_several_trainings_are_one_mean_with_the_interval_of_their_spread():
    cells = [Cell(Estimate(value, value - 9, value + 9, 60)) for value in (1.0, 2.0, 6.0)]
    assert over_trainings(cells).estimate == mean_estimate([1.0, 2.0, 6.0])
    assert over_trainings(cells[:1]) == cells[0]
    assert over_trainings([*cells, Cell(None, "failed")]).text() == "failed"


@pytest.mark.parametrize("right", [True, False])
def test_a_model_that_shows_the_truth_has_the_truth_s_cells(tmp_path, right):
    shape, asked = VideoShape(17, 64, 64), draw_prompts(3)
    scenes = {prompt.seed: prompt.scene for prompt in asked}

    def make(prompts: Sequence[str], seeds: Sequence[int], paths: Sequence[Path]) -> None:
        for seed, path in zip(seeds, paths):
            scene = scenes[seed] if right else asked[0].scene
            write_video(path, render([scene], shape).video[0], 8, overwrite=True)

    sections = evaluate(Subject(shape, 8.0, make), tmp_path, only=PARTS[:1], prompts=3, progress=False)
    others = [section for section in evaluate_gaps(tmp_path) if section.name != "adherence"]
    found, truth = (cells_of([*sections, *others], source) for source in ("model", "truth"))
    assert set(found) == set(MEASURES) - {"seconds", "memory"}
    assert (found["asked"] == truth["asked"]) == right
    assert truth["asked"].estimate.value > 0.9
    if not right:
        assert found["asked"].estimate.value < truth["asked"].estimate.value
    assert found["permanent"].text() == "clips of 2 frames are too short for a wall to hide an actor"


def evaluate_gaps(folder: Path):
    """The sections of a subject of which only consistency can be measured."""

    def make(prompts: Sequence[str], seeds: Sequence[int], paths: Sequence[Path]) -> None:
        for path in paths:
            write_video(path, torch.zeros(2, 32, 32, 3, dtype=torch.uint8), 8, overwrite=True)

    subject = Subject(VideoShape(2, 32, 32), 8.0, make)
    return evaluate(subject, folder / "gaps", only=PARTS[1:], prompts=1, tell=len, progress=False)


def test_measures_are_found_under_the_names_that_their_sections_give_them():
    draw = np.random.default_rng(0)
    populations = {"model": 0.5, "truth": 0.0, "frozen": 3.0, "shuffled": 3.0}
    reference = draw.normal(size=(40, 6))
    found = {name: distances(draw.normal(shift, size=(40, 6)), reference) for name, shift in populations.items()}
    nowhere = Section("", "", "Not measured: not asked for")
    sections = {name: replace(nowhere, name=name) for name in PARTS}
    cells = cells_of([*{**sections, "distribution": distribution_section(found)}.values()], "model")
    assert cells["distance"].estimate == found["model"].kernel
    assert cells["asked"].text() == cells["flicker"].text() == "not asked for"
    crossings = permanence_section.shares("", {"model": [], "truth": []}, ())
    row = (permanence_section.ALL, (Estimate(0.5, 0.2, 0.8, 9, True), Estimate(0.9, 0.8, 1.0, 9, True)))
    assert permanence_section.ALL in dict(crossings.rows)
    shown = Section("permanence", "", "", (replace(crossings, rows=(row,)),))
    assert cells_of([*{**sections, "permanence": shown}.values()], "truth")["permanent"].estimate == row[1][1]
    left_out = replace(shown, tables=(replace(crossings, rows=()),))  # as where a control does as well
    found_none = cells_of([*{**sections, "permanence": left_out}.values()], "truth")["permanent"]
    assert found_none.text() == "not told from controls"


def test_a_row_shows_what_it_is_and_every_measure():
    cells = {key: Cell(None, f"no {key}").plain() for key in MEASURES}
    row = {"title": "A", "makes": "5 frames", "flops": 1.5e15, "beside": "-", "cells": cells}
    lines = markdown({"rows": [row]}).splitlines()
    assert len(lines) == 3
    assert lines[2] == f"| A | 5 frames | 1.5e+15 FLOP | - | {' | '.join(f'no {key}' for key in MEASURES)} |"


def test_one_prompt_is_shown_in_a_row_for_each_system(tmp_path):
    for number, side in enumerate((32, 64)):
        frames = torch.full((6, side, side, 3), 60 * (number + 1), dtype=torch.uint8)
        write_video(tmp_path / f"{number}.png", frames, 8)
        write_video(tmp_path / f"{number}.mp4", frames, 8)
    sheet = side_by_side("a ball", {"small": tmp_path / "0.mp4", "large": tmp_path / "1.mp4"}, frames=3)
    assert sheet.dtype == np.uint8
    for grey, side in ((60, 32), (120, 64)):
        assert np.isclose((np.abs(sheet.astype(int) - grey).max(axis=2) <= 3).sum(), 3 * side * side, rtol=0.05)


def test_larger_clips_are_averaged_over_squares():
    frames = torch.randint(0, 256, (3, 8, 12, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    small = shrink_to(frames, VideoShape(3, 4, 6))
    assert small.shape == (3, 4, 6, 3)
    assert abs(float(small[1, 2, 3, 0]) - float(frames[1, 4:6, 6:8, 0].float().mean())) <= 0.5
    assert shrink_to(frames, VideoShape(3, 8, 12)).equal(frames)
