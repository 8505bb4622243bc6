"""The scoreboard in small, by the command and for real: every system trained to one budget, measured, and told."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import carrara
from carrara.cli import run
from carrara.core.media import read_video
from carrara.core.types import VideoShape
from carrara.data.pond.sampling import Mix
from carrara.evaluation.scoreboard import MEASURES, Cell, markdown
from carrara.generation.measured import MeasuredClips
from carrara.recipes import RECIPES
from carrara.recipes.make_a_video import PHASES
from carrara.recipes.make_a_video_data import unlabelled_clips
from carrara.recipes.runs import seeded, trainings
from carrara.recipes.scoreboard import Scoreboard, checked
from carrara.recipes.systems import BASE_SHARE, SYSTEMS, contest, contest_tiny
from carrara.recipes.systems_command import systems
from carrara.recipes.vdm_data import pond_data
from carrara.systems.make_a_video import STAGES
from carrara.systems.registry import load_system

BUDGET = 6e9
PROMPTS = 2


def command(folder: Path, *more: str) -> tuple[int, str]:
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        code = run(
            ["systems", "--run", str(folder), "--tiny", "--flops", str(BUDGET), "--prompts", str(PROMPTS), *more]
        )
    return code, said.getvalue()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    code, said = command(folder)
    assert code == 0
    return folder, said


def read(path: Path) -> dict:
    return json.loads(path.read_text("utf-8"))


def test_every_system_has_spent_the_budget_to_within_half_a_step_of_each_stage(made):
    folder, _ = made
    rows = {row["name"]: row for row in read(folder / "scoreboard.json")["rows"]}
    assert list(rows) == [*SYSTEMS, "truth"]
    shares = {"base": BASE_SHARE, "fine": 1 - BASE_SHARE}
    phases = contest_tiny().make_a_video
    for name, system in SYSTEMS.items():
        compute = read(folder / name / "seed-0/compute.json")
        stages = compute.get("stages", [compute])
        assert tuple(stage["stage"] for stage in stages) == system.stages
        for stage in stages:
            share = {
                "vdm": shares.get(stage["stage"]),
                "make-a-video": getattr(getattr(phases, stage["stage"], None), "share", None),
            }.get(name, 1.0)
            step = max(stage["step_flops"], stage.get("image_step_flops", 0))
            assert abs(stage["flops"] - share * BUDGET) <= step / 2 + 1, (name, stage)
        assert rows[name]["flops"] == sum(stage["flops"] for stage in stages)


def test_models_have_every_stage_of_their_system(made):
    folder, _ = made
    models = {name: load_system(Path(read(folder / name / "seed-0/row.json")["model"])) for name in SYSTEMS}
    assert tuple(models["make-a-video"].networks) == STAGES
    assert tuple(models["vdm"].networks) == ("base", "fine")
    assert not models["image"].first.time_parameters()
    assert models["latent"].stride.space > 1


def test_numbers_are_there_or_say_why_not(made):
    folder, _ = made
    rows = {row["name"]: row for row in read(folder / "scoreboard.json")["rows"]}
    for name in SYSTEMS:
        cells = {key: Cell.of(cell) for key, cell in rows[name]["cells"].items()}
        assert list(cells) == list(MEASURES)
        for key in ("asked", "seconds", "memory"):
            assert cells[key].estimate is not None, (name, key)
        assert "too short for a wall" in cells["permanent"].why
        assert "needs at least 10" in cells["distance"].why
        assert cells["seconds"].estimate.count == PROMPTS
        assert 50 < cells["memory"].estimate.value < 4000
    assert Cell.of(rows["truth"]["cells"]["asked"]).estimate.value > 0.5
    assert rows["make-a-video"]["makes"] == "5 of 64x64 at 8 fps"
    assert rows["vdm"]["makes"] == rows["latent"]["makes"] == "5 of 32x32 at 8 fps"
    assert "autoencoder" in rows["latent"]["beside"]


def test_what_is_printed_is_what_the_file_says(made):
    folder, said = made
    board = read(folder / "scoreboard.json")
    table = markdown(board)
    assert said.endswith(table + "\n")
    lines = [line.strip("| ").split(" | ") for line in table.splitlines()]
    assert {len(line) for line in lines} == {4 + len(MEASURES)}
    for line, row in zip(lines[2:], board["rows"], strict=True):
        assert line[0] == row["title"]
        assert line[4:] == [Cell.of(row["cells"][key]).text() for key in MEASURES]


def test_the_same_prompts_are_shown_through_every_system(made):
    folder, _ = made
    sheet, _, _ = read_video(folder / "scoreboard.png")
    pictures = [read_video(path)[0] for path in sorted((folder / "pictures").iterdir())]
    assert len(pictures) == PROMPTS
    assert all(picture.shape[1] > 5 * 32 for picture in pictures)  # a row for each system, and the truth
    assert sheet.shape[1] == sum(picture.shape[1] + 8 for picture in pictures)
    clips = [read_video(folder / name / "seed-0/evaluation/model/0000.mp4")[0] for name in SYSTEMS]
    assert {clip.shape for clip in clips} == {(5, 32, 32, 3)}  # the larger ones made smaller


def test_what_is_finished_is_left_alone_and_what_is_missing_is_made_again(made, tmp_path):
    shutil.copytree(made[0], folder := tmp_path / "run")
    models = {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")}
    before = read(folder / "scoreboard.json")
    (folder / "scoreboard.json").unlink()
    (folder / "image/seed-0/row.json").unlink()
    clips = [folder / f"image/seed-0/evaluation/model/{number:04d}.mp4" for number in range(PROMPTS)]
    clips[1].unlink()
    first = clips[0].stat().st_mtime_ns
    rows = {name: (folder / name / "seed-0/row.json") for name in SYSTEMS if name != "image"}
    written = {name: path.stat().st_mtime_ns for name, path in rows.items()}
    code, said = command(folder)
    assert code == 0
    after = read(folder / "scoreboard.json")
    assert said.endswith(markdown(after) + "\n")
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")} == models
    assert {name: path.stat().st_mtime_ns for name, path in rows.items()} == written
    assert clips[0].stat().st_mtime_ns == first  # a clip that is there is not made again
    assert all(clip.is_file() for clip in clips)
    for old, new in zip(before["rows"], after["rows"], strict=True):
        for key in MEASURES:
            if key not in ("seconds", "memory"):
                assert old["cells"][key] == new["cells"][key], (old["name"], key)


def test_a_table_of_some_rows_keeps_those_that_are_there(made, tmp_path):
    shutil.copytree(made[0], folder := tmp_path / "run")
    before = read(folder / "scoreboard.json")
    for name in ("make-a-video", "latent"):
        (folder / name / "seed-0/row.json").unlink()
    code, _ = command(folder, "--rows", "image")
    assert code == 0
    rows = read(folder / "scoreboard.json")["rows"]
    assert rows == [row for row in before["rows"] if row["name"] in ("vdm", "image", "truth")]
    sheet, _, _ = read_video(folder / "pictures/prompt-0.png")
    assert sheet.shape[1] < read_video(made[0] / "pictures/prompt-0.png")[0].shape[1]


def test_a_row_that_another_process_ends_meanwhile_is_in_the_table(made, tmp_path):
    shutil.copytree(made[0], folder := tmp_path / "run")
    for name in ("vdm", "latent"):
        (folder / name / "seed-0/row.json").rename(folder / name / "seed-0/waiting")
    (folder / "image/seed-0/row.json").unlink()

    def tell(line: str) -> None:
        if line == "image, seed 0: measuring":
            (folder / "vdm/seed-0/waiting").rename(folder / "vdm/seed-0/row.json")

    board = Scoreboard(contest_tiny(), MeasuredClips.open, BUDGET, prompts=PROMPTS, rows=("image",), tell=tell)
    assert [row["name"] for row in board.make(folder)["rows"]] == ["vdm", "make-a-video", "image", "truth"]


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (["--flops", "7e9"], r"flops=6000000000\.0, now it is 7000000000\.0"),
        (["--prompts", "3"], "prompts=2, now it is 3"),
        (["--flops", "0"], "flops=0.0: must be above 0"),
        (["--rows", "vmd"], "unknown row 'vmd'; did you mean vdm"),
        (["--seeds", "0"], "seeds=0: at least one"),
        (["--prompts", "0"], "prompts=0"),
        (["--pond", "nowhere"], "nowhere"),
        (["--precision", "half"], "unknown precision 'half'"),
        (["--precision", "bfloat16"], "precision"),
    ],
)
def test_what_does_not_fit_is_refused_and_changes_nothing(made, options, match, capsys):
    folder, _ = made
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    code, _ = command(folder, *options)
    assert code == 2
    assert re.search(match, capsys.readouterr().err)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_a_folder_of_other_recipes_is_refused(made):
    folder, _ = made
    tiny = contest_tiny()
    other = replace(tiny, vdm=replace(tiny.vdm, mix=Mix(two=0.9)))
    with pytest.raises(ValueError, match=r"vdm\.mix\.two"):
        Scoreboard(other, MeasuredClips.open, BUDGET, prompts=PROMPTS).make(folder)


def test_a_system_that_lacks_a_stage_is_refused():
    tiny = contest_tiny()
    with pytest.raises(ValueError, match="its stage fine is missing"):
        replace(tiny, vdm=replace(tiny.vdm, only_base=True))
    with pytest.raises(ValueError, match="interpolation, space_time, space are missing"):
        replace(tiny, make_a_video=replace(tiny.make_a_video, until="decoder"))
    for name, system in SYSTEMS.items():
        stages = [{"stage": stage, "flops": 1} for stage in system.stages]
        assert checked(name, {"stages": stages, "flops": len(stages)}) == len(stages)
        for missing in range(len(stages)):
            with pytest.raises(ValueError, match=f"{name}: stage {system.stages[missing]} was not trained"):
                checked(name, {"stages": stages[:missing] + stages[missing + 1 :], "flops": 1})


def test_several_trainings_on_a_given_autoencoder_and_a_failure_that_is_a_cell(made, tmp_path):
    folder, _ = made
    opened = []

    def opens(model: Path, shape: VideoShape, fps: float, alone: bool, precision: str):
        opened.append(model)
        raise RuntimeError("no room\nfor it")

    board = Scoreboard(
        contest_tiny(), opens, 2e9, seeds=2, prompts=PROMPTS, rows=("latent",), pond=folder / "latent", tell=len
    )
    (row,) = board.make(tmp_path / "run")["rows"]
    assert opened == [tmp_path / f"run/latent/seed-{seed}/model" for seed in range(2)]
    assert not (tmp_path / "run/latent/autoencoder").exists()
    first, second = (load_system(model).denoiser.state_dict() for model in opened)
    assert not all(first[name].equal(second[name]) for name in first)
    assert Cell.of(row["cells"]["asked"]).text() == "failed: no room for it"
    assert Cell.of(row["cells"]["seconds"]).text() == "-"
    assert "failed: no room for it" in markdown({"rows": [row]})
    assert not list((tmp_path / "run").rglob("row.json"))  # so that it is tried again
    with pytest.raises(ValueError, match="no trained autoencoder"):
        replace(board, pond=tmp_path).make(tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_without_a_folder_the_recorded_table_or_the_systems_are_told(made, tmp_path, capsys):
    folder, _ = made
    assert systems([], MeasuredClips.open, tmp_path / "none.json") == 0
    listed = capsys.readouterr().out
    for name, system in SYSTEMS.items():
        assert f"\n{name} " in f"\n{listed}"
        assert system.paper in listed
        assert system.recipe in RECIPES
        assert (Path(carrara.__file__).parent / system.page).is_file()
    assert systems([], MeasuredClips.open, folder / "scoreboard.json") == 0
    assert capsys.readouterr().out == markdown(read(folder / "scoreboard.json")) + "\n"
    assert run(["systems", "--flops", "1e14"]) == 2
    assert "--run DIR" in capsys.readouterr().err
    assert run(["systems"]) == 0


def test_the_whole_contest_is_of_one_clip():
    whole = contest()
    last = whole.vdm.ladder()[-1]
    assert (last.makes, last.fps) == (whole.shape, whole.fps) == (VideoShape(17, 64, 64), 8.0)
    assert whole.latent.shape == whole.shape
    settings = whole.make_a_video.settings
    assert settings.fps * settings.skip == whole.fps
    assert whole.make_a_video.side * settings.space**2 == 2 * whole.shape.height
    assert whole.image.base.shape == replace(whole.shape, frames=1)
    assert tuple(SYSTEMS["make-a-video"].stages) == PHASES


@pytest.mark.parametrize("row", SYSTEMS)
def test_seeds_are_trainings_that_share_no_chance(row):
    one, other = (contest_tiny().recipe(row, BUDGET, seed) for seed in (0, 1))
    assert {config.seed for config in trainings(one)} == {0}
    assert {config.seed for config in trainings(other)} == {1}
    assert (one.seed, other.seed) == (0, 1)
    assert replace(seeded(other, 0), seed=0) == one
    if row == "make-a-video":
        sources = [unlabelled_clips(recipe, "decoder", torch.device("cpu"), None) for recipe in (one, other)]
    elif row != "latent":
        sources = [pond_data(recipe, "base", torch.device("cpu")) for recipe in (one, other)]
    else:
        return  # of one cache, in another order
    assert not sources[0].batch(0).video.equal(sources[1].batch(0).video)
    assert sources[0].validation.video.equal(sources[1].validation.video)


def test_clips_that_cannot_be_brought_to_one_size_are_refused(made):
    folder, _ = made
    model = Path(read(folder / "vdm/seed-0/row.json")["model"])
    for shape, fps in ((VideoShape(5, 24, 32), 8.0), (VideoShape(5, 64, 64), 8.0), (VideoShape(5, 32, 32), 4.0)):
        with pytest.raises(ValueError, match="makes 32x32 at 8"):
            MeasuredClips.open(model, shape, fps)
