"""The pieces of the study that teaches a colour: what is taught, how it is told, and what is refused."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from carrara.core.types import VideoShape
from carrara.data.pond.render import render
from carrara.data.pond.validity import table_reason
from carrara.evaluation.reading.colours import NAMES

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))

import teach_lora as study


def test_scenes_are_of_the_colour_or_of_any_other():
    taught, kept = study.scenes_of(1, 20, "pink", "pink"), study.scenes_of(1, 40, None, "pink")
    assert {scene.actors[0].colour for scene in taught} == {"pink"}
    assert len({scene.actors[0].colour for scene in kept}) > 5
    assert "pink" not in {scene.actors[0].colour for scene in kept}
    assert not any(table_reason(scene) for scene in (*taught, *kept))
    assert len({(scene.actors[0].kind, scene.background) for scene in taught}) > 10
    assert not {*study.scenes_of(study.TAUGHT_SCENES, 20, "pink", "pink")} & {
        *study.scenes_of(study.ASKED_SCENES, 20, "pink", "pink")
    }


def test_every_caption_names_the_colour():
    for scene in study.scenes_of(7, 10, "pink", "pink"):
        said = study.told(scene)
        assert len(said) > 2
        assert all(any(word in text for word in ("pink", "rosy")) for text in said)


def test_a_colour_that_could_not_be_told_apart_is_refused():
    with pytest.raises(ValueError, match="'red' is a colour that the pond has"):
        study.register("red", (1, 2, 3))
    with pytest.raises(ValueError, match="is too near to red"):
        study.register("ruby", (221, 38, 38))
    with pytest.raises(RuntimeError, match="has already listed its colours"):
        study.register("turquoise", (64, 224, 208))
    assert "turquoise" not in NAMES


def test_clips_are_read_for_the_old_colour_and_for_the_new():
    """The truth of prompts: read right where it is shown, wrong where another prompt's clip is."""
    scenes = study.scenes_of(100, 4, None, "pink")
    video = render(scenes, VideoShape(9, 96, 96), 8.0).video
    found = study.measure(lambda _, number: video[number], 8.0, scenes, "pink")
    assert found["colour"]["share"] == found["background"]["share"] == 1
    assert found["read as pink"]["share"] == 0
    pink = [scene.with_actor(0, colour="pink") for scene in scenes]
    painted = render(pink, VideoShape(9, 96, 96), 8.0).video
    found = study.measure(lambda _, number: painted[number], 8.0, scenes, "pink")
    assert found["read as pink"]["share"] == 1
    assert found["colour"]["share"] == 0


def test_pictures_are_joined_with_white_between():
    joined = study._joined([torch.zeros(4, 3, 3, dtype=torch.uint8)] * 3, 1, gap=2)
    assert joined.shape == (4, 13, 3)
    assert (joined[:, 3:5] == 255).all()
    assert (joined[:, 5:8] == 0).all()
