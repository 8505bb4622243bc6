"""The example that compares settings of sampling: every clip is judged once, and nothing is mixed up."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

import carrara
from carrara.evaluation.prompts import draw_prompts

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))

import choose_sampling

MODEL = Path(carrara.__file__).parent / "models" / "pond"


def test_settings_are_measured_once_and_kept(tmp_path, monkeypatch, capsys):
    def table(*options: str) -> list[str]:
        monkeypatch.setattr(sys, "argv", ["x", str(MODEL), "-o", str(tmp_path), "--prompts", "2", *options])
        choose_sampling.main()
        return capsys.readouterr().out.splitlines()[2:]

    first = table("--steps", "1")
    kept = json.loads((tmp_path / "sampling.json").read_text())
    assert kept["prompts"] == [prompt.text for prompt in draw_prompts(2, choose_sampling.VALIDATION_SEED)]
    assert [len(found) for found in kept["settings"].values()] == [2]
    monkeypatch.setattr(choose_sampling, "BATCH", 0)  # sampling again would fail
    assert table("--steps", "1") == first
    assert first[0].startswith("| unipc, 1 steps, shift 1, guidance 4 | 2 |")
    monkeypatch.setattr(choose_sampling, "BATCH", 2)
    assert len(table("--steps", "1", "--guidance", "4", "1")) == 2
    for other in (("--prompts", "3"), ("--frames", "9"), ("--frames", "1")):
        with pytest.raises(SystemExit, match="other prompts or clips"):
            table(*other)


def test_a_row_counts_only_what_was_asked():
    verdicts = [{"colour": True, "all": True}, {"colour": False, "size": True, "all": False}]
    cells = dict(zip(("name", "networks", *choose_sampling.ROWS), choose_sampling.row("x", verdicts, 9).split(" | ")))
    assert (cells["colour"], cells["size"], cells["motion"]) == ("50%", "100%", "")


def test_from_a_little_noised_truth_everything_is_right():
    system = choose_sampling.LatentVideo.load(MODEL)
    prompts = [prompt for prompt in draw_prompts(12, 1000) if len(prompt.scene.actors) == 1][:4]
    sampling = choose_sampling.replace(system.defaults.sampling, steps=2)
    near = choose_sampling.measure(system, prompts, sampling, 0.1)
    far = choose_sampling.measure(system, prompts, sampling)
    assert sum(found["all"] for found in near) >= 3 > sum(found["all"] for found in far)


def test_pictures_are_asked_for_what_a_picture_can_show():
    system = choose_sampling.LatentVideo.load(MODEL)
    prompts = [prompt for prompt in draw_prompts(20, 1000) if len(prompt.scene.actors) == 1][:4]
    pictures = [choose_sampling.as_picture(prompt) for prompt in prompts]
    assert not any("motion" in actor for picture in pictures for actor in picture.asked.actors)
    assert all(picture.asked.camera is None for picture in pictures)
    assert [set(p.asked.actors[0]) for p in pictures] == [set(p.asked.actors[0]) - {"motion"} for p in prompts]
    sampling = choose_sampling.replace(system.defaults.sampling, steps=2)
    near = choose_sampling.measure(system, pictures, sampling, 0.1, frames=1)
    assert sum(found["all"] for found in near) >= 3


def test_a_level_that_is_none_is_refused(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["x", str(MODEL), "-o", "unused", "--truth-at", "0"])
    with pytest.raises(SystemExit):
        choose_sampling.main()
    assert "--truth-at 0: must be a noise level above 0, at most 1" in capsys.readouterr().err


def test_frames_that_the_model_cannot_make_are_refused_before_any_clip(tmp_path, monkeypatch, capsys):
    for frames, said in (("0", "--frames=0"), ("8", "nearest 7 or 9")):
        monkeypatch.setattr(sys, "argv", ["x", str(MODEL), "-o", str(tmp_path / "out"), "--frames", frames])
        with pytest.raises(SystemExit):
            choose_sampling.main()
        assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
