"""Compiled blocks: the same to rounding, resumed bit for bit, refused in one line where they cannot be."""

from __future__ import annotations

import copy
import io
import math
from pathlib import Path

import pytest
import torch

from carrara.cli import run
from carrara.core.types import VideoShape
from carrara.diffusion.fields import FieldMix
from carrara.generation.manifest import Software, read_manifest
from carrara.generation.run import load
from carrara.nn.compiling import has_compiler
from carrara.systems.compiling import compile_networks
from carrara.systems.latent import Sampling
from carrara.systems.phases import CaptionedLatents, DenoiserPhase
from carrara.training.config import TrainConfig
from carrara.training.loop import Stopped, train

PROMPT = "a red ball bounces on the grass"
SHAPE = VideoShape(9, 16, 32)
needs_compiler = pytest.mark.skipif(not has_compiler(), reason="no C++ compiler")


def compiled(system):
    """Another system of the same weights, whose blocks are compiled."""
    other = copy.copy(system)
    other.denoiser = copy.deepcopy(system.denoiser)
    compile_networks(other)
    return other


@needs_compiler
def test_compiled_is_the_same_to_rounding(tiny_system):
    sampling = Sampling(steps=3, guidance=2.0)
    other = compiled(tiny_system)
    assert other.denoiser.compiled
    assert not tiny_system.denoiser.compiled
    assert list(other.denoiser.state_dict()) == list(tiny_system.denoiser.state_dict())
    wanted = tiny_system.sample([PROMPT], [1], SHAPE, sampling)
    found = other.sample([PROMPT], [1], SHAPE, sampling)
    assert torch.allclose(found, wanted, atol=1e-5)
    assert torch.equal(other.sample([PROMPT], [1], SHAPE, sampling), found)
    assert Software.here(other).compiled
    assert not Software.here(tiny_system).compiled


class Denoising(DenoiserPhase):
    """A phase of the tiny system on drawn latents."""

    def __init__(self, system, stop: float = math.inf) -> None:
        self.stop = stop
        system = copy.copy(system)
        for part in ("denoiser", "text_encoder"):
            setattr(system, part, copy.deepcopy(getattr(system, part)).requires_grad_(True))

        def batch(step: int) -> CaptionedLatents:
            def draw(*shape: int) -> torch.Tensor:
                return torch.randn(2, 4, *shape, generator=torch.Generator().manual_seed(step))

            return CaptionedLatents(draw(3, 2, 4), [PROMPT] * 2, draw(2, 2, 4), torch.tensor([[0.5, 1.0]] * 2))

        super().__init__(system, batch, batch(99), FieldMix(1, 0, 0, 0, 0), Sampling(steps=2), [PROMPT], SHAPE)

    def loss(self, batch, step, generator):
        if step == self.stop:
            raise KeyboardInterrupt
        return super().loss(batch, step, generator)


@needs_compiler
@pytest.mark.filterwarnings("ignore:The .grad attribute")  # which torch hides itself, unless warnings are errors
def test_training_compiled_and_resumed_is_bit_equal(tiny_system, tmp_path: Path):
    config = TrainConfig(steps=3, warmup=1, compile=True, validate_every=0, picture_every=0, precision="float32")
    whole = train(Denoising(tiny_system), config, tmp_path / "whole", out=io.StringIO())
    with pytest.raises(Stopped):
        train(Denoising(tiny_system, stop=2), config, tmp_path / "cut", out=io.StringIO())
    torch.compiler.reset()  # as another process would begin
    again = train(Denoising(tiny_system), config, tmp_path / "cut", out=io.StringIO())
    files = [path.relative_to(whole) for path in whole.rglob("*.safetensors")]
    assert files
    assert all((whole / file).read_bytes() == (again / file).read_bytes() for file in files)


def test_what_trains_nothing_that_is_compiled_is_refused(tmp_path: Path):
    class Line:
        module = torch.nn.Linear(1, 1)

    with pytest.raises(ValueError, match="compile=True: this phase trains nothing that is compiled; leave it out"):
        train(Line(), TrainConfig(steps=1, compile=True), tmp_path, out=io.StringIO())  # type: ignore[arg-type]


def test_without_a_compiler_one_line_says_what_to_do(tiny_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CXX", "no-such-compiler")
    out = tmp_path / "clip.mp4"
    assert run(["generate", PROMPT, "--model", str(tiny_folder), "--compile", "-o", str(out)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "no C++ compiler 'no-such-compiler' here" in said
    assert "leave compile out" in said
    assert not out.exists()


def test_without_a_compiler_no_stage_is_begun(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert run(["train", "pond-tiny", "-o", str(tmp_path / "run"), "--denoiser.train.compile"]) == 2
    assert "no C++ compiler 'no-such-compiler' here" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_blocks_that_come_and_go_are_not_compiled(tiny_folder):
    with pytest.raises(ValueError, match="leave out compile or offload"):
        load(tiny_folder, offload=True, compile=True)


@needs_compiler
def test_a_compiled_clip_says_so_and_is_made_again(tiny_folder, tmp_path):
    first, again, plain = (tmp_path / f"{name}.mp4" for name in ("first", "again", "plain"))
    asked = ["generate", PROMPT, "--model", str(tiny_folder), "--seed", "1", "-o"]
    assert run([*asked, str(first), "--compile"]) == 0
    assert read_manifest(first).software.compiled
    assert run(["generate", "--from", str(first), "-o", str(again)]) == 0
    assert again.read_bytes() == first.read_bytes()
    assert run([*asked, str(plain)]) == 0
    assert b"compiled" not in plain.read_bytes()
