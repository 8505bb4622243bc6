"""The VDM recipe in small: from nothing to a model that the command line makes clips with."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from carrara.cli import run
from carrara.core.media import read_video
from carrara.core.types import VideoShape
from carrara.data.pond.sampling import SINGLES
from carrara.recipes import RECIPES
from carrara.recipes.pond_clips import pond_clips
from carrara.recipes.pond_data import Captioning
from carrara.recipes.vdm import VDMRecipe
from carrara.systems.registry import load_system
from carrara.systems.vdm import VDM

PROMPT = "a red ball bounces on the grass"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    return folder, RECIPES["vdm-tiny"]().run(folder)


def test_both_stages_are_trained_and_the_base_is_a_model_of_its_own(trained):
    folder, model = trained
    assert model == folder / "fine/model"
    whole, base = load_system(model), load_system(folder / "base/model")
    assert isinstance(whole, VDM)
    assert isinstance(base, VDM)
    assert (whole.defaults.frames, whole.defaults.height, whole.defaults.fps) == (7, 32, 16.0)
    assert (base.defaults.frames, base.defaults.height, base.defaults.fps) == (4, 16, 8.0)
    for ours, theirs in zip(whole.networks["base"].parameters(), base.first.parameters()):
        assert ours.equal(theirs)  # the second stage has changed nothing of the first
    for stage in ("base", "fine"):
        assert list((folder / stage / "pictures").glob("*.png"))


def test_the_command_line_makes_clips_with_it_and_makes_them_again(trained, tmp_path, capsys):
    _, model = trained
    clip, again = tmp_path / "clip.mp4", tmp_path / "again.mp4"
    assert run(["generate", PROMPT, "--model", str(model), "--seed", "1", "-o", str(clip)]) == 0
    frames, fps, _ = read_video(clip)
    assert (frames.shape, fps) == ((7, 32, 32, 3), 16.0)
    assert run(["generate", "--from", str(clip), "-o", str(again)]) == 0
    assert clip.read_bytes() == again.read_bytes()
    longer = tmp_path / "longer.mp4"
    assert run(["generate", PROMPT, "--model", str(model), "--frames", "12", "--size", "40x32", "-o", str(longer)]) == 0
    assert read_video(longer)[0].shape == (12, 32, 40, 3)
    capsys.readouterr()
    assert run(["generate", PROMPT, "--model", str(model), "--size", "33x32", "-o", str(tmp_path / "no.mp4")]) == 2
    assert "width=33: must be a multiple of 4; nearest 32 or 36" in capsys.readouterr().err
    assert not (tmp_path / "no.mp4").exists()


def test_what_looks_into_latents_says_that_there_are_none(trained, tmp_path, capsys):
    _, model = trained
    assert run(["info", str(model)]) == 0
    assert "any number of frames" in capsys.readouterr().out
    assert run(["explain", PROMPT, "--model", str(model), "-o", str(tmp_path / "out")]) == 2
    assert "a transformer on latents" in capsys.readouterr().err
    assert run(["evaluate", str(model), "--only", "preference", "-o", str(tmp_path / "report")]) == 2
    assert "cannot say how well it undoes noise" in capsys.readouterr().err
    assert run(["evaluate", str(model), "--suite", "full", "--only", "physics", "-o", str(tmp_path / "report")]) == 2
    assert "cannot continue a clip from its first frames" in capsys.readouterr().err


def test_a_finished_run_is_not_trained_again_and_another_recipe_is_refused(trained, capsys):
    folder, model = trained
    before = (folder / "base/model/base/model.safetensors").stat().st_mtime_ns
    assert RECIPES["vdm-tiny"]().run(folder) == model
    assert run(["train", "vdm", "-o", str(folder)]) == 2
    assert f"{folder}/base: was trained with train.warmup=1, now it is 100; set it back" in capsys.readouterr().err
    assert (folder / "base/model/base/model.safetensors").stat().st_mtime_ns == before


def test_a_base_alone_trains_for_a_given_compute(tmp_path, capsys):
    recipe = RECIPES["vdm-tiny"]()
    assert isinstance(recipe, VDMRecipe)
    step = recipe.phase("base", recipe.fresh(), recipe.base, torch.device("cpu")).step_flops()
    recipe = replace(recipe, only_base=True, base=replace(recipe.base, flops=2.4 * step))
    assert recipe.run(tmp_path) == tmp_path / "base/model"
    told = json.loads((tmp_path / "base/compute.json").read_text())
    assert told == {"stage": "base", "step_flops": step, "steps": 2, "flops": 2 * step}
    (tmp_path / "base/model/model_index.json").unlink()
    longer = replace(recipe, base=replace(recipe.base, flops=3.4 * step))
    assert longer.run(tmp_path) == tmp_path / "base/model"  # its length is no other recipe, and its decay is over
    capsys.readouterr()
    assert replace(recipe, base=replace(recipe.base, flops=30 * step)).run(tmp_path) == tmp_path / "base/model"
    assert "is finished; to train it with" in capsys.readouterr().out
    (tmp_path / "base/compute.json").unlink()  # as after a stop between the last step and the count
    assert recipe.run(tmp_path) == tmp_path / "base/model"
    assert json.loads((tmp_path / "base/compute.json").read_text()) == told
    (tmp_path / "base/model/model_index.json").unlink()
    other = replace(recipe, base=replace(recipe.base, images=0))
    with pytest.raises(ValueError, match="images"):
        other.run(tmp_path)


@pytest.mark.parametrize(
    ("stage", "changes", "match"),
    [
        ("fine", {"height": 48}, "fine takes 4 frames of 16x24, but base makes 4 frames of 16x16"),
        ("fine", {"fps": 8.0}, r"fine\.fps=8: must be 2 times"),
        ("fine", {"frames": 5}, r"fine\.frames=5"),
        ("base", {"frames": 5}, r"base\.frames=5"),
    ],
)
def test_stages_that_do_not_fit_are_refused_before_anything_is_trained(tmp_path, stage, changes, match):
    recipe = RECIPES["vdm-tiny"]()
    with pytest.raises(ValueError, match=match):
        replace(recipe, **{stage: replace(getattr(recipe, stage), **changes)}).run(tmp_path)
    assert not list(tmp_path.iterdir())


def test_batches_are_a_function_of_the_step_and_images_are_of_other_scenes():
    def source(span: int = 0):
        device = torch.device("cpu")
        return pond_clips(VideoShape(4, 16, 16), 8.0, 3, 2, SINGLES, Captioning(), 0, device, span)

    first, again, next_ = source()(5), source()(5), source()(6)
    assert first.video.equal(again.video)
    assert first.images.equal(again.images)
    assert (first.captions, first.image_captions) == (again.captions, again.image_captions)
    assert not first.video.equal(next_.video)
    assert first.images.shape == (3, 2, 16, 16, 3)
    assert len(first.image_captions) == 6
    assert not any(frame.equal(image) for frame in first.video[0] for image in first.images[0])
    pieces = source(9)(5).video  # of the same scenes, from anywhere in 9 frames
    assert pieces.shape == first.video.shape
    assert not pieces.equal(first.video)
