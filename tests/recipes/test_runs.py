"""Whose run a folder holds, and that none is put into another's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from carrara.cli import run
from carrara.recipes import RECIPES
from carrara.recipes.runs import MARKS, check_run

RECORDED = {  # of each kind of run a training folder and settings that it records there
    "clips": ("denoiser", {"denoiser", "held_out", "seed", "data", "autoencoder", "start"}),
    "pond": ("autoencoder", {"autoencoder", "width", "height", "frames", "fps", "seed"}),
    "phyworld": ("denoiser", {"denoiser", "width", "height", "frames", "fps", "seed", "world"}),
    "pond-distill": ("denoiser", {"distillation", "captioning", "images", "clips", "seed", "teacher"}),
    "pond-decoder": ("decoder", {"loss", "mix", "shown", "width", "height", "frames", "fps", "seed", "model"}),
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


def test_every_recipe_is_known_and_what_it_records_is_what_it_is_known_by():
    assert {type(make()) for make in RECIPES.values()} == set(MARKS)
    assert set(RECORDED) == {mark.recipe for mark in MARKS.values()}
    assert set(RECIPES["pond-tiny"]()._settings("autoencoder")) == RECORDED["pond"][1]
    assert set(RECIPES["phyworld-tiny"]()._settings("denoiser")) == RECORDED["phyworld"][1]


@pytest.mark.parametrize("kind", RECORDED)
def test_a_run_is_told_from_those_of_all_other_recipes(kind, tmp_path):
    folder = write(tmp_path / "run", kind)
    assert {mark.recipe for mark in MARKS.values() if mark.is_on(folder)} == {kind}
    for name, make in RECIPES.items():
        recipe = make()
        if MARKS[type(recipe)].recipe == kind:
            check_run(folder, name, recipe)
            continue
        with pytest.raises(ValueError, match=rf"run: holds a run of {kind}, and {name} was asked for; give another fo"):
            check_run(folder, name, recipe)


def test_other_files_are_no_run(tmp_path):
    for text in ("", "[]", "nonsense", '{"recipe": 3}', '{"model_type": "umt5"}'):
        (tmp_path / "base").mkdir(exist_ok=True)
        (tmp_path / "base/config.json").write_text(text)
        check_run(tmp_path, "pond", RECIPES["pond"]())
    check_run(tmp_path / "nowhere", "vdm", RECIPES["vdm"]())


def test_the_command_line_refuses_before_anything_is_written(tmp_path, capsys):
    folder = write(tmp_path / "run", "make-a-video")
    (folder / "compute.json").write_text("{}")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert run(["train", "vdm-tiny", "-o", str(folder)]) == 2
    assert capsys.readouterr().err == (
        f"carrara: {folder}: holds a run of make-a-video, and vdm-tiny was asked for; give another folder with -o, "
        "or move this one away\n"
    )
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
