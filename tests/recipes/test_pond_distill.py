"""Distillation in small, from a finished run to a student that generates: resumed, checked against its teacher."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from carrara.core.config import read_json, write_json
from carrara.core.types import VideoShape
from carrara.recipes import RECIPES
from carrara.recipes.pond_distill import DistillRecipe
from carrara.systems.distill_phase import Distillation
from carrara.systems.latent import LatentVideo
from carrara.systems.phases import CaptionedLatents
from carrara.training.config import TrainConfig
from carrara.training.loop import Stopped, train


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> Path:
    """The folder of a finished run of `pond-tiny`."""
    folder = tmp_path_factory.mktemp("teacher")
    RECIPES["pond-tiny"]().run(folder)
    return folder


def recipe(teacher: Path, steps: int = 4) -> DistillRecipe:
    budget = TrainConfig(
        steps=steps, warmup=1, precision="float32", log_every=1, validate_every=2, picture_every=4, checkpoint_every=2
    )
    return DistillRecipe(
        budget,
        str(teacher / "denoiser/model"),
        str(teacher / "latents"),
        str(teacher / "latents-validation"),
        Distillation(steps=4, rolled=1, compared=2),
        clips=4,
    )


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "denoiser/metrics.jsonl").read_text().splitlines()]


def test_a_finished_model_becomes_a_student_that_generates_with_its_defaults(teacher, tmp_path):
    from carrara.cli import run

    model = recipe(teacher).run(tmp_path)
    system = LatentVideo.load(model)
    sampling = system.defaults.sampling
    assert (sampling.steps, sampling.guidance, sampling.sampler, sampling.grid) == (4, 1.0, "euler", "flow")
    assert (system.defaults.frames, system.defaults.height, system.defaults.fps) == (5, 32, 8.0)
    latents = system.sample(["a red ball bounces on the grass"], [1], VideoShape(5, 32, 32), sampling)
    assert latents.isfinite().all()
    teachers = LatentVideo.load(teacher / "denoiser/model")
    assert system.fingerprint != teachers.fingerprint
    made = tmp_path / "clip.mp4"
    assert run(["generate", "--model", str(model), "a red ball bounces on the grass", "-o", str(made)]) == 0
    assert made.stat().st_size > 0
    assert list((tmp_path / "denoiser/pictures").glob("*.png"))
    seen = lines(tmp_path)
    parts = next(line for line in seen if "loss_rolled" in line)
    assert {"loss", "loss_rolled", "loss_noised"} <= set(parts)
    assert any("endpoint_undistilled" in line for line in seen)


def test_a_run_that_was_stopped_goes_on_to_the_same_bits(teacher, tmp_path):
    whole = recipe(teacher).run(tmp_path / "whole")
    phase = recipe(teacher).phase()
    batch = phase.batch

    def until_ctrl_c(step: int) -> CaptionedLatents:
        if step == 3:
            raise KeyboardInterrupt
        return batch(step)

    phase.batch = until_ctrl_c
    with pytest.raises(Stopped, match="resume"):
        train(phase, recipe(teacher).train, tmp_path / "parts/denoiser", recipe(teacher).settings(phase))
    parts = recipe(teacher).run(tmp_path / "parts")
    weights = [next((model / "transformer").glob("*.safetensors")).read_bytes() for model in (whole, parts)]
    assert weights[0] == weights[1]
    other = replace(recipe(teacher), distillation=Distillation(steps=4, rolled=2, compared=2))
    with pytest.raises(ValueError, match="rolled"):
        other.run(tmp_path / "whole")


def test_latents_of_another_autoencoder_or_size_are_refused_before_anything_is_written(teacher, tmp_path):
    vae = tmp_path / "model/vae"
    shutil.copytree(teacher / "denoiser/model", tmp_path / "model")
    config = read_json(vae / "config.json")
    write_json(vae / "config.json", {**config, "latents_std": [2 * std for std in config["latents_std"]]})
    with pytest.raises(ValueError, match="encodes the same clips otherwise"):
        replace(recipe(teacher), teacher=str(tmp_path / "model")).run(tmp_path / "run")
    own = read_json(tmp_path / "model/carrara.json")
    own["defaults"]["height"] = 48
    write_json(tmp_path / "model/carrara.json", own)
    with pytest.raises(ValueError, match="height=32, the teacher makes height=48"):
        replace(recipe(teacher), teacher=str(tmp_path / "model")).run(tmp_path / "run")
    with pytest.raises(ValueError, match="no cache of latents"):
        replace(recipe(teacher), latents=str(tmp_path)).run(tmp_path / "run")
    with pytest.raises(ValueError, match="clips=2"):
        replace(recipe(teacher), clips=2, distillation=Distillation(rolled=3))
    assert not (tmp_path / "run").exists()
