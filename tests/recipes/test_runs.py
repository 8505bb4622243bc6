"""Whose run a folder holds, and that none is put into another's."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from carrara.cli import run
from carrara.core.config import to_dict
from carrara.recipes import RECIPES
from carrara.recipes.runs import MARKS, Recipe, check_finished
from carrara.training.config import TrainConfig

RECORDED = {  # of each kind of run a training folder and settings that it records there
    "clips": ("denoiser", {"denoiser", "held_out", "seed", "data", "autoencoder", "start"}),
    "pond": ("autoencoder", {"autoencoder", "width", "height", "frames", "fps", "seed"}),
    "phyworld": ("denoiser", {"denoiser", "width", "height", "frames", "fps", "seed", "world"}),
    "pond-distill": ("denoiser", {"distillation", "captioning", "images", "clips", "seed", "teacher"}),
    "pond-decoder": ("decoder", {"loss", "mix", "shown", "width", "height", "frames", "fps", "seed", "model"}),
    "pond-refiner": (
        "refiner",
        {"dim", "multipliers", "fold", "loss", "melting", "mix", "captioning", "shown", "seed", "model"},
    ),
    "lora": ("lora", {"shares", "lora", "batch", "caption_dropout", "fields", "times", "seed", "model", "clips"}),
    "motion-features": ("", set(RECIPES["motion-features"]().__dataclass_fields__) - {"train"}),
    "vdm": ("fine", set(RECIPES["vdm"]()._settings("fine"))),
    "make-a-video": ("decoder", set(RECIPES["make-a-video"]()._kept("decoder"))),
}


def write(folder: Path, kind: str) -> Path:
    name, settings = RECORDED[kind]
    path = folder / name / "config.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"train": {"steps": 1}, "recipe": dict.fromkeys(settings, 0)}))
    return folder


def files_of(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def begun(monkeypatch) -> list[Path]:
    """The folders in which recipes have begun to train, which they do not here."""
    folders: list[Path] = []
    for kind in {type(make()) for make in RECIPES.values()}:
        monkeypatch.setattr(kind, "_run", lambda self, folder: folders.append(folder) or folder)
    return folders


def test_every_recipe_is_known_and_what_it_records_is_what_it_is_known_by():
    assert {make().kind for make in RECIPES.values()} == set(MARKS) == set(RECORDED)
    assert set(RECIPES["pond-tiny"]()._settings("autoencoder")) == RECORDED["pond"][1]
    assert set(RECIPES["phyworld-tiny"]()._settings("denoiser")) == RECORDED["phyworld"][1]


def test_all_recipes_run_by_the_one_way_that_checks_their_folder():
    for make in RECIPES.values():
        assert type(make()).run is Recipe.run


@pytest.mark.parametrize("kind", RECORDED)
def test_a_run_is_told_from_those_of_all_other_recipes(kind, tmp_path, begun):
    folder = write(tmp_path / "run", kind)
    assert {name for name, mark in MARKS.items() if mark.is_on(folder)} == {kind}
    for make in RECIPES.values():
        recipe = make()
        if recipe.kind == kind:
            assert recipe.run(folder) == folder
            continue
        told = rf"run: holds a run of {kind}, and {recipe.kind} was asked for; give another folder"
        with pytest.raises(ValueError, match=told):
            recipe.run(folder)
    assert len(begun) == sum(make().kind == kind for make in RECIPES.values())


def test_other_files_are_no_run(tmp_path, begun):
    for text in ("", "[]", "nonsense", '{"recipe": 3}', '{"model_type": "umt5"}'):
        (tmp_path / "base").mkdir(exist_ok=True)
        (tmp_path / "base/config.json").write_text(text)
        RECIPES["pond"]().run(tmp_path)
    RECIPES["vdm"]().run(tmp_path / "nowhere")
    assert begun == [tmp_path] * 5 + [tmp_path / "nowhere"]


def test_a_folder_that_cannot_be_written_to_is_refused_before_anything_runs(tmp_path, begun):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="file, not a folder; choose another path"):
        RECIPES["vdm"]().run(tmp_path / "file")
    assert not begun


def test_the_command_line_and_python_refuse_before_anything_is_written(tmp_path, capsys):
    folder = write(tmp_path / "run", "make-a-video")
    (folder / "compute.json").write_text("{}")
    before = files_of(folder)
    told = (
        f"{folder}: holds a run of make-a-video, and vdm was asked for; give another folder (-o), or move this one away"
    )
    assert run(["train", "vdm-tiny", "-o", str(folder)]) == 2
    assert capsys.readouterr().err == f"carrara: {told}\n"
    with pytest.raises(ValueError) as refused:
        RECIPES["vdm-tiny"]().run(folder)
    assert str(refused.value) == told
    assert files_of(folder) == before


@pytest.mark.parametrize(("tiny", "whole"), [("vdm-tiny", "vdm"), ("make-a-video-tiny", "make-a-video")])
def test_a_finished_run_of_other_settings_is_refused_with_what_differs(tiny, whole, tmp_path, capsys):
    """A finished run in what it records: neither recipe gets as far as to train."""
    recipe = RECIPES[tiny]()
    stages = recipe.stages if tiny == "vdm-tiny" else MARKS[recipe.kind].folders
    for stage in stages:
        kept = recipe._settings(stage) if tiny == "vdm-tiny" else recipe._kept(stage)
        (tmp_path / stage / "model").mkdir(parents=True)
        said = {"train": to_dict(recipe.plan(stage).train), "recipe": kept}
        (tmp_path / stage / "config.json").write_text(json.dumps(said))
        check_finished(tmp_path / stage, recipe.plan(stage).train, kept)
    before, first = files_of(tmp_path), tmp_path / stages[0]
    assert run(["train", whole, "-o", str(tmp_path)]) == 2
    told = f"carrara: {first}: was trained with train.warmup=1, now it is 100; set it back to resume, or train in a new"
    assert capsys.readouterr().err.startswith(told)
    with pytest.raises(ValueError, match=rf"{stages[0]}: was trained with recipe\.seed=0, now it is 1; set it back"):
        replace(recipe, seed=1).run(tmp_path)
    assert files_of(tmp_path) == before


def test_lengths_and_reports_of_a_finished_run_are_no_other_settings(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "config.json").write_text(json.dumps({"train": {"steps": 4, "warmup": 1}, "recipe": {"seed": 0}}))
    check_finished(tmp_path, TrainConfig(minutes=3, warmup=1, log_every=7), {"seed": 0})
    with pytest.raises(ValueError, match=r"train\.ema=0\.999, now it is 0\.9"):
        check_finished(tmp_path, TrainConfig(minutes=3, warmup=1, ema=0.9), {"seed": 0})
