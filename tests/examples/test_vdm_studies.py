"""The studies of a VDM run, and compare what they say they compare."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from carrara.core.media import read_video
from carrara.recipes import RECIPES

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))

import vdm_studies

PROMPTS = ("a red ball bounces on the grass", "a blue car moves right on the sand")


@pytest.fixture(scope="module")
def system():
    recipe = RECIPES["vdm-tiny"]()
    made = recipe.fresh()
    return vdm_studies.base_alone(made, replace(made.settings, frames=4, overlap=2))


def test_guidance_has_a_clip_for_every_prompt_and_scale(system, tmp_path):
    vdm_studies.guidance(system, tmp_path, PROMPTS, (1.0, 3.0))
    assert len(list(tmp_path.glob("guidance-*/*.mp4"))) == 4
    assert read_video(next((tmp_path / "guidance-3").glob("a-blue*")))[0].shape == (4, 16, 16, 3)
    assert (tmp_path / "guidance.png").stat().st_size > 0


def test_extension_measures_seams_apart_from_the_rest(system, tmp_path):
    vdm_studies.extension(system, tmp_path, PROMPTS, (("replace", 0.0), ("guide", 2.0)))
    found = json.loads((tmp_path / "extension.json").read_text())
    assert (found["frames"], found["seams"]) == (8, [4, 6])
    assert set(found) == {"frames", "seams", "replace", "guide 2"}
    assert all(found[way][part] >= 0 for way in ("replace", "guide 2") for part in ("seam", "elsewhere"))
