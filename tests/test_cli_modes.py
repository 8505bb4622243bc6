"""The modes on the command line: every command of docs/modes.md, and one clear line for what cannot be."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path

import pytest
import torch

from carrara.cli import run
from carrara.core.media import read_video, write_picture, write_video
from carrara.generation.manifest import read_manifest
from carrara.generation.run import load

PAGE = Path(__file__).resolve().parents[1] / "docs/modes.md"
PROMPT = "a red ball bounces on the grass"


def film(frames: int, height: int = 16, width: int = 32) -> torch.Tensor:
    coarse = torch.rand(1, 3, frames, 3, 3, generator=torch.Generator().manual_seed(frames)) * 255
    smooth = torch.nn.functional.interpolate(coarse, (frames, height, width), mode="trilinear")
    return smooth[0].permute(1, 2, 3, 0).round().to(torch.uint8)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Inputs of every kind, in the working directory."""
    monkeypatch.chdir(tmp_path)
    write_video("a.mp4", film(9), 8.0)
    write_video("b.mp4", film(10), 8.0)
    write_video("fast.mp4", film(9), 30.0)
    write_video("fastest.mp4", film(5), 40.0)
    write_video("short.mp4", film(3), 8.0)
    write_video("wide.mp4", film(9, 16, 64), 8.0)
    write_video("five.gif", film(5), 8.0)
    write_picture("first.png", film(1)[0])
    write_picture("tall.png", film(1, 64, 32)[0])
    mask = torch.zeros(16, 32, 3, dtype=torch.uint8)
    write_picture("black.png", mask)
    mask[4:12, 4:12] = 255
    write_picture("mask.png", mask)
    write_picture("small.png", mask[:8])
    return tmp_path


def test_every_command_of_the_page_runs(tiny_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    mask = torch.zeros(16, 32, 3, dtype=torch.uint8)
    mask[4:12, 4:12] = 255
    write_picture("mask.png", mask)
    blocks = re.findall(r"^```sh\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    commands = [shlex.split(line)[1:] for line in "".join(blocks).splitlines()]
    assert len(commands) > 12
    for number, command in enumerate(commands):
        assert run([*command, "--model", str(tiny_folder)]) == 0, f"{command}\n{capsys.readouterr().err}"
        if number % 3:  # that every mode comes back from its manifest is a law of its own
            continue
        made = command[command.index("-o") + 1]
        again = f"again-{number}{Path(made).suffix}"
        assert run(["generate", "--from", made, "-o", again]) == 0, f"{command}\n{capsys.readouterr().err}"
        assert Path(made).read_bytes() == Path(again).read_bytes()


def test_the_page_tells_the_block_of_the_bundled_model():
    side = load("pond").system.stride.space
    assert f"a block of pixels\n({side} x {side} for the bundled model" in PAGE.read_text("utf-8")


def test_images_are_pictures(tiny_folder, folder, capsys):
    assert run(["generate", PROMPT, "--images", "--model", str(tiny_folder), "--seed", "1"]) == 0
    frames, _, _ = read_video("out/a-red-ball-bounces-on-the-grass.png")
    assert frames.shape == (1, 16, 32, 3)


def test_files_without_a_prompt_are_named_after_what_they_are_made_from(tiny_folder, folder, capsys):
    assert run(["generate", "--extend", "a.mp4", "--model", str(tiny_folder)]) == 0
    assert run(["generate", "--image", "first.png", "--model", str(tiny_folder)]) == 0
    assert sorted(os.listdir("out")) == ["a-extend.mp4", "first-moving.mp4"]
    assert read_manifest(Path("out/a-extend.mp4")).conditions == {"extend": "a.mp4"}


def test_an_input_that_changed_is_refused(tiny_folder, folder, capsys):
    assert run(["generate", PROMPT, "--image", "first.png", "--model", str(tiny_folder), "-o", "x.mp4"]) == 0
    write_picture("first.png", film(1)[0].flip(0))
    assert run(["generate", "--from", "x.mp4", "-o", "y.mp4"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("carrara: first.png: not the file that the clip was made from")
    assert not os.path.exists("y.mp4")


def test_prompts_with_other_words_along_the_clip(tiny_folder, folder, capsys):
    later = ["--prompt-at", "1.0", "a green dragon", "--prompt-at", "2.0", PROMPT]
    assert run(["generate", PROMPT, "--seconds", "3", *later, "--model", str(tiny_folder), "-o", "x.mp4"]) == 0
    assert "never seen 'dragon'" in capsys.readouterr().err
    assert read_manifest(Path("x.mp4")).prompt_at == ((1.0, "a green dragon"), (2.0, PROMPT))
    assert len(read_video("x.mp4")[0]) == 24


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--image", "none.png"], "none.png: no such file"),
        (["--image", ""], "image is empty"),
        (["--image", "a.mp4"], "a.mp4: not a readable picture; image is a .png, .jpg or .webp, a clip goes to extend"),
        (["--image", "five.gif"], "five.gif: is animated (5 pictures)"),
        (["--image", "tall.png"], "tall.png: 32x64, and the clip to be made is 32x16; crop cuts off"),
        (["--image", "tall.png", "--fit", "cropp"], "unknown fit 'cropp'; did you mean crop?"),
        (["--image", "first.png", "--extend", "a.mp4"], "image and extend: the clip gives these frames itself"),
        (["--image", "first.png", "--frames", "1"], "nothing is left to make"),
        (["--image", "first.png", "--frames", "10"], "nearest 9 or 13"),
        (["--extend", "short.mp4"], "short.mp4: 3 frames, and extend needs at least 5"),
        (
            ["--extend", "fast.mp4"],
            "has 30 frames a second and this model makes 8: fps=30 takes its frames",
        ),
        (["--extend", "wide.mp4"], "wide.mp4: 64x16, and the clip to be made is 32x16"),
        (["--extend", "first.png"], "1 frame, and extend needs at least 5"),
        (["--extend", "a.mp4", "--frames", "9"], "frames and extend: seconds says how much is made"),
        (["--between", "a.mp4", "fast.mp4"], "a.mp4 has 8 frames a second and fast.mp4 30: convert one of them"),
        (["--between", "a.mp4"], "--between 'a.mp4': expected FILE FILE"),
        (["--interpolate", "a.mp4", "--factor", "3"], "factor=3: must be 2 or 4, how many times as many frames"),
        (["--interpolate", "first.png"], "1 frame, and interpolate needs at least 2"),
        (["--interpolate", "a.mp4", "--seconds", "1"], "seconds and interpolate: the clip has its own length"),
        (["--inpaint", "a.mp4"], "inpaint: needs a mask"),
        (["--inpaint", "a.mp4", "--mask", "black.png"], "black.png: marks nothing; make it white where to paint"),
        (["--inpaint", "a.mp4", "--mask", "small.png"], "small.png: 32x8, and a.mp4 is 32x16"),
        (["--inpaint", "a.mp4", "--mask", "five.gif"], "five.gif: a mask of 5 frames for a clip of 9"),
        (["--edit", "a.mp4", "--strength", "0"], "strength=0: must be more than 0"),
        (["--edit", "a.mp4", "--strength", "2"], "strength=2"),
        (["--edit", "a.mp4", "--loop"], "loop and edit"),
        (["--mask", "mask.png"], "mask: needs inpaint: which clip is painted on?"),
        (["--before"], "before: needs extend"),
        (["--loop", "--last", "first.png"], "a loop ends where it begins"),
        (["--last", "first.png", "--known-by", "replace"], "later frames need hold"),
        (["--seconds", "0"], "seconds=0: must be more than 0"),
        (["--seconds", "nan"], "seconds=nan: must be a number"),
        (["--seconds", "1e9"], "seconds=1e+09"),
        (["--seconds", "2", "--frames", "9"], "frames and seconds: "),
        (["--seconds", "2", "--window", "10"], "window=10: must be 4k+1 frames; nearest 9 or 13"),
        (["--seconds", "2", "--window", "1"], "window=1: must be at least 5 frames"),
        (["--seconds", "2", "--prompt-at", "3", "a frog"], "prompt_at 3: nothing is made at that time"),
        (["--seconds", "2", "--prompt-at", "1", ""], "the prompt of prompt_at is empty"),
        (["--seconds", "2", "--prompt-at", "1", "a", "--prompt-at", "1.1", "b"], "must come at least 4 frames after"),
        (["--edit", "a.mp4", "--prompt-at", "1", "a"], "prompt_at and edit: this is made with one prompt"),
        (["--prompt-at", "x", "a"], "--prompt-at"),
        (["--images", "--frames", "5"], "--images makes one frame"),
        (["--images", "--loop"], "1 frame in all: nothing is left to make"),
        (["--images", "--last", "first.png"], "1 frame in all: nothing is left to make"),
        (["--fit", "crop"], "fit: says what to do with pictures and clips of another shape, and none is given"),
        (["--interpolate", "fastest.mp4", "--factor", "4"], "fastest.mp4: the result would have 160 frames a second"),
        (["--extend", "a.mp4", "--seconds", "1", "--size", "320000x160000"], "of memory"),
        (["--from", "a.mp4", "--image", "first.png"], "leave out"),
    ],
)
def test_what_cannot_be_is_one_line_before_anything_is_computed(tiny_folder, folder, capsys, args, said):
    before = sorted(os.listdir())
    source = [] if "--from" in args else [PROMPT, "--model", str(tiny_folder), "-o", "made/x.mp4"]
    assert run(["generate", *source, *args]) == 2
    captured = capsys.readouterr()
    assert said in captured.err
    assert captured.err.startswith("carrara: ")
    assert captured.err.count("\n") == 1
    assert captured.out == ""
    assert sorted(os.listdir()) == before
