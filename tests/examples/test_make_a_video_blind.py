"""The test of Make-A-Video's blindness can see, can fail, and runs."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import torch

from carrara.core.types import VideoShape
from carrara.data.pond.sampling import Mix
from carrara.recipes import RECIPES
from carrara.recipes.pond_clips import pond_clips
from carrara.recipes.pond_data import Captioning
from carrara.systems.find import find_model
from carrara.systems.registry import load_system

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))

import make_a_video_blind

MOVES = re.compile(r"\b(moves?|moving|drives?|rolls?|goes|going|travels?|heads?|heading)\b.*?\b(left|right)\b")
ALONE = Mix(two=0.0, wall=0.0, camera=0.0)


def captioned(frames: int):
    shape = VideoShape(frames, 64, 64)
    return pond_clips(shape, 8.0, 64, 0, ALONE, Captioning(), 0, torch.device("cpu"))(0)


def test_words_of_moving_left_and_right_stand_beside_clips_and_beside_no_image():
    assert sum(bool(MOVES.search(said)) for said in captioned(2).captions) >= 5
    assert not any(MOVES.search(said) for said in captioned(1).captions)


def test_true_clips_are_read_to_go_the_way_that_they_are_said_to():
    batch = captioned(12)
    found = [
        (make_a_video_blind.way_of(clip, 8.0), make_a_video_blind.WAYS[told.group(2)])
        for clip, said in zip(batch.video, batch.captions)
        if (told := MOVES.search(said))
    ]
    told = [seen == way for seen, way in found if seen]
    assert len(told) >= 4
    assert all(told)


def test_the_prediction_is_refuted_by_a_model_that_obeys_and_kept_by_one_that_does_not():
    obeys = {"left": [-1] * 18 + [1, 0], "right": [1] * 17 + [-1, 0, 0]}
    assert make_a_video_blind.judge(obeys)["above_one_half"]
    one_way = {told: [1] * 15 + [-1] * 5 for told in ("left", "right")}
    assert not make_a_video_blind.judge(one_way)["above_one_half"]
    assert make_a_video_blind.judge({"left": [0], "right": [0]})["above_one_half"] is None


def test_the_bundled_model_which_saw_captioned_clips_goes_the_way_that_it_is_told(tmp_path):
    result = make_a_video_blind.study(load_system(find_model("pond")), tmp_path, 2)
    assert result["as_told"]["total"] >= 3
    assert result["as_told"]["share"] == 1


def test_the_study_runs(tmp_path):
    recipe = RECIPES["make-a-video-tiny"]()
    system = recipe.fresh()
    for name in ("decoder", "interpolation", "space_time"):
        system = recipe.grown(system, name)
    system.defaults = replace(system.defaults, frames=3)
    result = make_a_video_blind.study(system, tmp_path, 2)
    assert json.loads((tmp_path / "blind.json").read_text()) == result
    assert result["clips"] == 4
    assert (tmp_path / "blind.png").stat().st_size > 0
