"""A precision that is asked for is computed in, changes little, is written down, and comes back from the file."""

from __future__ import annotations

import pytest
import torch

from carrara.cli import run
from carrara.core.media import read_video
from carrara.core.types import VideoShape
from carrara.generation.manifest import read_manifest
from carrara.generation.measured import MeasuredClips
from carrara.generation.run import load
from carrara.recipes import RECIPES
from carrara.systems.registry import load_system

PROMPT = "a red ball bounces on the grass"


@pytest.fixture(scope="module")
def pixels(tmp_path_factory):
    """A VDM of both stages, of small random weights."""
    made = RECIPES["vdm-tiny"]().fresh()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in made.denoiser.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    folder = tmp_path_factory.mktemp("models") / "vdm"
    made.save(folder)
    return folder


def error(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a.float() - b.float()).square().mean().sqrt())


def test_the_bundled_model_makes_nearly_the_same_clip_in_bfloat16():
    clips = {}
    for precision in ("", "bfloat16"):
        model = load("pond", precision=precision)
        clips[precision] = model.generate(PROMPT, seed=1, steps=3, progress=False).frames
        matrix = model.system.denoiser.blocks[0].mlp.rise.weight
        assert matrix.dtype == (torch.bfloat16 if precision else torch.float32)
        assert next(model.system.autoencoder.parameters()).dtype == matrix.dtype
    assert 0 < error(clips[""], clips["bfloat16"]) < 6  # of 255


def test_u_nets_keep_their_weights_and_compute_in_it_on_every_path(pixels):
    clips = {}
    for precision in ("", "float32", "bfloat16"):
        model = load(pixels, precision=precision)
        clips[precision] = model.generate(PROMPT, seed=1, progress=False).frames  # both stages, the second by gradients
        assert {parameter.dtype for parameter in model.system.denoiser.parameters()} == {torch.float32}
    assert clips[""].equal(clips["float32"])
    assert 0 < error(clips[""], clips["bfloat16"]) < 6


def test_a_clip_says_what_was_asked_for_and_is_made_again_in_it(tiny_folder, tmp_path, capsys):
    common = [PROMPT, "--model", str(tiny_folder), "--seed", "3", "--steps", "2"]
    plain, half, again = (tmp_path / name for name in ("plain.mp4", "half.mp4", "again.mp4"))
    assert run(["generate", *common, "-o", str(plain)]) == 0
    assert run(["generate", *common, "--precision", "bfloat16", "-o", str(half)]) == 0
    assert '"precision"' not in read_video(plain)[2]["carrara"]
    software = read_manifest(half).software
    assert (software.precision, software.dtype) == ("bfloat16", "bfloat16")
    assert run(["generate", "--from", str(half), "-o", str(again)]) == 0
    assert again.read_bytes() == half.read_bytes() != plain.read_bytes()
    assert "may differ" not in capsys.readouterr().err
    assert run(["generate", "--from", str(half), "--precision", "float32", "-o", str(tmp_path / "no.mp4")]) == 2
    assert "leave out --precision" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["generate", "explain", "evaluate"])
def test_another_precision_is_refused_before_anything_is_written(command, tiny_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    asked = ["--model", str(tiny_folder)] if command != "evaluate" else []
    first = str(tiny_folder) if command == "evaluate" else PROMPT
    assert run([command, first, *asked, "--precision", "float16"]) == 2
    told = capsys.readouterr().err.strip()
    assert "unknown precision 'float16'" in told
    assert "bfloat16" in told
    assert len(told.splitlines()) == 1
    assert not list(tmp_path.rglob("*.*"))
    with pytest.raises(ValueError, match="unknown precision"):
        load_system(tiny_folder, precision="half")


def test_measured_clips_are_made_in_it(pixels):
    makes = load_system(pixels).defaults
    shape = VideoShape(makes.frames, makes.height, makes.width)
    plain, half = (MeasuredClips.open(pixels, shape, makes.fps, precision=name) for name in ("", "bfloat16"))
    assert 0 < error(plain.clip(PROMPT, 0), half.clip(PROMPT, 0)) < 6
    assert half.peak() > 0
