"""What is approximate is asked for by name, stands in the manifest, and its error is bounded."""

from __future__ import annotations

import pytest
import torch

from carrara.cli import run
from carrara.core.media import read_video
from carrara.generation.manifest import read_manifest
from carrara.generation.run import load

ASKED = ["generate", "a red ball bounces on the grass", "--seed", "1", "--steps", "8"]


def test_skipped_steps_and_an_interval_of_guidance_are_opt_in(tiny_folder, tmp_path):
    exact, near = tmp_path / "exact.mp4", tmp_path / "near.mp4"
    asked = [*ASKED, "--model", str(tiny_folder), "-o"]
    assert run([*asked, str(exact)]) == 0
    assert run([*asked, str(near), "--reuse", "0.2", "--interval", "0.1", "0.95"]) == 0
    plain, said = read_manifest(exact).sampling, read_manifest(near).sampling
    assert (plain.reuse, plain.interval) == (0.0, (0.0, 1.0))
    assert (said.reuse, said.interval) == (0.2, (0.1, 0.95))
    frames, others = (read_video(path)[0].float() for path in (exact, near))
    assert not torch.equal(frames, others)
    assert (frames - others).abs().mean() < 26  # a tenth of the range, of an untrained model


def test_python_takes_them_by_the_same_names(tiny_folder, tmp_path):
    model = load(str(tiny_folder))
    plain, near = (model.generate(ASKED[1], seed=1, steps=4, **said) for said in ({}, {"interval": (0.1, 0.5)}))
    assert near.manifest.sampling.interval == (0.1, 0.5)
    assert not torch.equal(plain.frames, near.frames)
    assert model.generate(ASKED[1], seed=1, steps=4, reuse=0.2).manifest.sampling.reuse == 0.2


@pytest.mark.parametrize(
    ("given", "said"), [(["--reuse", "2"], "reuse=2"), (["--interval", "0.9", "0.1"], "interval=(0.9, 0.1)")]
)
def test_values_that_make_no_sense_are_one_line(tiny_folder, tmp_path, capsys, given, said):
    out = tmp_path / "clip.mp4"
    assert run([*ASKED, "--model", str(tiny_folder), "-o", str(out), *given]) == 2
    found = capsys.readouterr().err
    assert said in found
    assert found.count("\n") == 1
    assert not out.exists()
