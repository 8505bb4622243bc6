"""The study of joint training shows every run the compute it says, and compares runs of one seed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from carrara.core.config import read_json
from carrara.recipes import RECIPES

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))

import vdm_images

FLOPS = 6e8


@pytest.fixture(scope="module")
def studied(tmp_path_factory):
    out = tmp_path_factory.mktemp("study")
    return vdm_images.study(RECIPES["vdm-tiny"](), out, FLOPS, (0, 2), 2), out


def test_runs_of_all_counts_take_the_same_compute_and_more_images_leave_fewer_clips(studied):
    found, out = studied
    for count in (0, 2):
        run = read_json(out / f"images-{count}" / "seed-1" / "base" / "compute.json")
        assert abs(run["flops"] - FLOPS) <= run["step_flops"]
    shown = found["shown"]
    assert shown["0"]["clips"] > shown["2"]["clips"] > 0
    assert (shown["0"]["images"], shown["2"]["images"]) == (0, 2 * shown["2"]["clips"])
    assert (out / "images.png").stat().st_size > 0


def test_losses_are_those_of_the_runs_and_a_second_call_trains_nothing(studied):
    found, out = studied
    assert found["losses"]["0"]["loss_mean"]["ratio"] == 1
    before = {path: path.stat().st_mtime_ns for path in out.glob("images-*/**/*.safetensors")}
    again = vdm_images.study(RECIPES["vdm-tiny"](), out, FLOPS, (0, 2), 2)
    assert again == found
    assert before
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_ratios_pair_the_runs_of_a_seed():
    losses = {0: [{"loss_mean": 1.0}, {"loss_mean": 4.0}], 4: [{"loss_mean": 0.5}, {"loss_mean": 2.0}]}
    row = vdm_images.compared(losses)["4"]["loss_mean"]
    assert row == {"mean": 1.25, "ratio": 0.5, "low": 0.5, "high": 0.5}


def test_a_table_names_every_count_and_its_loss(studied):
    found, _ = studied
    text = vdm_images.table(found["losses"], found["shown"])
    mean = found["losses"]["2"]["loss_mean"]
    assert f"{mean['mean']:.4f}" in text
    assert f"{mean['ratio']:.3f}" in text
    assert len(text.splitlines()) == 3
