"""Looking inside: the views that are refused, what is found and what is drawn, and the command."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from carrara.cli import run
from carrara.core.media import read_video
from carrara.core.types import Stride
from carrara.generation.drawing import above, beside, boxed, caption, enlarge, even, heat, overlay
from carrara.generation.explain import (
    View,
    check_view,
    emerge,
    explain,
    find_actor,
    prominence,
    token_frames,
)
from carrara.generation.explain_command import KINDS, explained_paths, parse_patch
from carrara.generation.explain_pictures import attention_film, attention_sheet, emerging_film, emerging_sheet
from carrara.generation.manifest import Manifest
from carrara.generation.request import Request
from carrara.generation.run import load

PROMPT = "a red ball bounces on the grass"


@pytest.fixture(scope="module")
def model(tiny_folder):
    return load(tiny_folder)


@pytest.fixture(scope="module")
def plan(model):
    return model.plan(Request(PROMPT, seed=5, steps=4, size=(32, 32), model=model.name))


@pytest.fixture(scope="module")
def explanation(model, plan):
    return explain(model, plan, View(patch=(2, 1, 2)), progress=False)


@pytest.mark.parametrize(
    ("view", "said"),
    [
        (View(step=0), "step=0: must be from 1 to 4"),
        (View(step=5), "step=5: must be from 1 to 4"),
        (View(block=3), "block=3: must be from 1 to 2"),
        (View(patch=(4, 1, 1)), "patch=4,1,1: its frame must be from 1 to 3"),
        (View(patch=(1, 0, 1)), "its row must be from 1 to 2"),
        (View(patch=(1, 1, 3)), "3 latent frames of 2 rows and 2 columns of patches"),
    ],
)
def test_views_outside_are_refused(model, plan, view, said):
    with pytest.raises(ValueError, match=said):
        check_view(view, plan, model.system)


def test_a_clip_without_other_frames_is_refused(model):
    with pytest.raises(ValueError, match="frames=1: attention to other frames needs some; at least 5"):
        check_view(View(), model.plan(Request(PROMPT, frames=1)), model.system)


def test_the_step_is_half_way_and_counts_evaluations(model, plan):
    assert check_view(View(), plan, model.system).step == 2
    heun = replace(plan, sampling=replace(plan.sampling, sampler="heun"))
    assert check_view(View(step=7), heun, model.system).step == 7


def test_the_explained_clip_is_the_clip(model, plan, explanation):
    clip = model.generate(Request(PROMPT, seed=5, steps=4, size=(32, 32), model=model.name))
    assert torch.equal(explanation.clip.frames, clip.frames)
    assert explanation.clip.manifest == clip.manifest
    emerging = explanation.emerging
    assert emerging.steps == (1, 2, 3, 4)
    assert emerging.total == 4
    assert torch.equal(emerging.estimates[-1], clip.frames)  # the last estimate is the clip
    assert not torch.equal(emerging.states[0], emerging.estimates[0])
    assert list(emerging.levels) == sorted(emerging.levels, reverse=True)


def test_attention_is_a_share_of_everything(explanation):
    prominent = torch.tensor([9.0, 1, 1, 1, 99, 99, 99, 99, 5, 1, 1, 1]).view(3, 2, 2)
    attention = replace(explanation.attention, prominent=prominent)
    assert attention.salient.flatten().tolist() == [True, *[False] * 7, True, *[False] * 3]
    assert attention.chance == pytest.approx(2 / 8)
    assert attention.weights.shape == (2, 2, 3, 2, 2)
    for values in (attention.map(), attention.map(2), attention.map(1, 2)):
        assert float(values.sum()) == pytest.approx(1, abs=1e-5)
        own = float(values[1].sum())
        assert attention.elsewhere(values) == pytest.approx(1 - own, abs=1e-5)
        there = float(values[0, 0, 0] + values[2, 0, 0])
        assert attention.found(values) == pytest.approx(there / (1 - own), abs=1e-5)
        frame, row, column = attention.brightest(values)
        assert frame != 2
        assert values[frame - 1, row - 1, column - 1] == values[[0, 2]].max()
    torch.testing.assert_close(attention.map(), (attention.map(1) + attention.map(2)) / 2)
    assert attention.found(torch.full((3, 2, 2), 1 / 12)) == pytest.approx(attention.chance)
    best = attention.found(attention.map(attention.keenest))
    assert best == max(attention.found(attention.map(block)) for block in (1, 2))


def test_few_steps_of_many_keep_the_first_and_the_last(model):
    from carrara.generation.watching import sample_watched

    _, seen = sample_watched(model, model.plan(Request(PROMPT, seed=1, steps=9)), False)
    emerging = emerge(model.system, seen, most=3, progress=False)
    assert emerging.steps == (1, 5, 9)
    assert len(emerging.states) == len(emerging.estimates) == 3


def moving_square(side: int, path, size: int = 48) -> torch.Tensor:
    frames = torch.full((5, size, size, 3), 120, dtype=torch.uint8)
    for frame, (y, x) in zip(frames, path):
        frame[y : y + side, x : x + side] = torch.tensor([250, 20, 20])
    return frames


def test_the_actor_is_found_where_it_is():
    frames = moving_square(8, ((0, 4), (8, 4), (16, 4), (24, 20), (32, 36)))
    grid, by_frame = (5, 6, 6), tuple(range(5))
    found = prominence(frames, grid, by_frame)
    for index, (row, column) in enumerate(((1, 1), (2, 1), (3, 1), (4, 3), (5, 5))):
        assert found[index].argmax() == (row - 1) * 6 + column - 1
    still = frames[:1].expand(5, -1, -1, -1)
    assert find_actor(prominence(still, grid, by_frame))[1:] == (1, 1)


def test_of_a_large_actor_the_middle_is_found():
    path = ((0, 0), (0, 40), (40, 0), (40, 48), (16, 24))
    prominent = prominence(moving_square(24, path, 72), (5, 9, 9), tuple(range(5)))
    frame, row, column = find_actor(prominent)
    y, x = path[frame - 1]
    assert abs((row - 0.5) * 8 - (y + 12)) <= 4
    assert abs((column - 0.5) * 8 - (x + 12)) <= 4


def test_where_an_actor_was_for_most_of_the_time_is_no_actor_when_it_is_gone():
    frames = moving_square(8, ((8, 8), (8, 8), (8, 8), (8, 8), (32, 32)))
    assert find_actor(prominence(frames, (5, 6, 6), tuple(range(5)))) == (5, 5, 5)


@pytest.mark.parametrize(("frames", "patch", "expected"), [(9, 1, [0, 1, 1, 1, 1, 2, 2, 2, 2]), (5, 2, [0] * 5)])
def test_pixel_frames_belong_to_tokens_as_the_autoencoder_groups_them(frames, patch, expected):
    assert token_frames(frames, Stride(4, 8), patch) == tuple(expected)


def test_pictures_hold_what_they_should(explanation):
    assert emerging_sheet(explanation.emerging).shape[2] == 3
    for block in (None, 1):
        sheet, film = attention_sheet(explanation, block), attention_film(explanation, block)
        assert sheet.dtype == film.dtype == torch.uint8
        assert len(film) == 9
    for film in (emerging_film(explanation), attention_film(explanation)):
        assert film.shape[1] % 2 == film.shape[2] % 2 == 0
    assert len(emerging_film(explanation)) > 9
    assert not torch.equal(attention_sheet(explanation)[:, :100], attention_sheet(explanation, 1)[:, :100])
    final = emerging_film(explanation)[-1]
    shown = enlarge(explanation.clip.frames, 256)
    length = len(emerging_film(explanation)) - 9
    assert torch.equal(final[-shown.shape[1] :, : shown.shape[2]], shown[(length + 8) % 9])


def test_the_brightest_place_of_a_map_is_the_brightest_of_the_picture():
    values = torch.zeros(1, 2, 2)
    values[0, 1, 0] = 1
    shown = overlay(torch.full((1, 8, 8, 3), 100, dtype=torch.uint8), values).float().mean(-1)
    assert shown[0, 4:, :4].min() > shown[0, :4].max() + 20
    levels = heat(torch.linspace(-0.5, 1.5, 100)).float().sum(-1)
    assert (levels.diff() >= 0).all()


def test_parts_of_a_picture():
    one, two = torch.zeros(4, 6, 3, dtype=torch.uint8), torch.full((4, 3, 3), 9, dtype=torch.uint8)
    assert beside([one, two], 2).shape == (4, 11, 3)
    assert (beside([one, two], 2)[:, 6:8] == 255).all()
    assert above([one, two], 1).shape == (9, 6, 3)
    assert (above([one, two], 1)[5:, 3:] == 255).all()
    assert enlarge(one, 13).shape == (8, 12, 3)
    assert enlarge(one, 2).shape == one.shape
    assert even(torch.zeros(1, 3, 5, 3, dtype=torch.uint8)).shape == (1, 4, 6, 3)
    framed = boxed(one, 0, 0, 4, 4, line=1)
    assert (framed[1:3, 1:3] == 0).all()
    assert (framed[0, :4] != 0).any()
    assert one.max() == 0
    assert caption("a word and another " * 8, 200).shape[0] > caption("a word", 200).shape[0]
    assert caption("a word", 200).min() < 100


def test_the_command_writes_what_it_says(tiny_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    args = ["explain", "a red dragon", "a red ball", "--model", str(tiny_folder), "--seed", "3", "-o", "x"]
    assert run([*args, "--size", "48x32", "--patch", "3,1,2", "--step", "1", "--block", "2"]) == 0
    said = capsys.readouterr()
    assert "never seen 'dragon'" in said.err
    assert "own frames are 32x16; 48x32 is more than 2.5 times that" in said.err
    names = [f"x/{stem}-{kind}" for stem in ("a-red-dragon", "a-red-ball") for kind in KINDS]
    lines = said.out.splitlines()
    assert [line.split("  ")[0] for line in lines if line.startswith("x/")] == names
    assert lines[4].startswith("patch 3,1,2 at step 1 of 2 takes ")
    assert sorted(os.listdir("x")) == sorted(os.path.basename(name) for name in names)
    for name, seed in zip(names, [3] * 4 + [4] * 4):
        about = read_video(name)[2]
        assert Manifest.from_json(about["explains"], name).seed == seed
        assert (about["patch"], about["step"]) == ("3,1,2", "1")
    assert run(args) == 2
    assert "exists already; pass --overwrite" in capsys.readouterr().err


def test_the_same_seed_draws_the_same_bytes(tiny_folder, tmp_path):
    for folder in ("a", "b"):
        assert run(["explain", PROMPT, "--model", str(tiny_folder), "--seed", "3", "-o", str(tmp_path / folder)]) == 0
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ([], "no prompt; say what to show"),
        (["a", "--sed", "3"], "unknown option --sed; did you mean --seed"),
        (["a", "--step", "x"], "--step 'x': expected INT"),
        (["a", "-o", ""], "--output is empty"),
        (["a", "-o", "x.mp4"], "explain writes 4 files; give a folder"),
        (["a", "-o", "/dev/null"], "is a file, not a folder"),
        (["a", "--model", "nowhere"], "unknown model 'nowhere'"),
        (["a", "--patch", "3,1"], "patch='3,1': expected FRAME,ROW,COLUMN counted from 1"),
        (["a", "--patch=-1,1,1"], "patch='-1,1,1': expected FRAME,ROW,COLUMN"),
        (["a", "--size", "64"], "expected WIDTHxHEIGHT"),
        (["a", "--patch", "9,1,1", "--model", "TINY"], "its frame must be from 1 to 3"),
        (["a", "b", "--patch", "1,2,1", "--model", "TINY"], "its row must be from 1 to 1"),
        (["a", "--step", "3", "--model", "TINY"], "step=3: must be from 1 to 2"),
        (["a", "--block", "0", "--model", "TINY"], "block=0: must be from 1 to 2"),
        (["a", "--frames", "1", "--model", "TINY"], "frames=1: attention to other frames needs some"),
        (["a", "--frames", "10", "--model", "TINY"], "nearest 9 or 13"),
        (["a", "", "--model", "TINY"], "the prompt is empty"),
        (["a", "--steps", "0", "--model", "TINY"], "steps=0: must be a whole number"),
    ],
)
def test_mistakes_are_one_line_before_the_run(args, said, tiny_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run(["explain", *(str(tiny_folder) if arg == "TINY" else arg for arg in args)]) == 2
    captured = capsys.readouterr()
    assert said in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""
    assert os.listdir(tmp_path) == []


def test_help_is_immediate():
    heavy = {"torch", "numpy", "av", "PIL", "transformers"}
    code = f"import sys; from carrara.cli import run; run(['explain', '--help']); print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "usage: carrara explain" in done.stdout
    assert "--patch F,R,C" in done.stdout
    assert done.stdout.splitlines()[-1] == "set()"


def test_prompts_alike_and_patches_as_text():
    first, second = explained_paths(("a b", "a/b"), "x")
    assert first[0].as_posix() == "x/a-b-emerging.png"
    assert second[3].as_posix() == "x/a-b-2-attention.mp4"
    assert parse_patch(" 2, 3,4 ") == (2, 3, 4)
