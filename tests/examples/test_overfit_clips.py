"""The overfitting study tells clips apart by their pixels, and says which caption brought which."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from tests.data.prepared_folder import Clip, write_prepared

from carrara.data.prepared import Prepared

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))

import overfit_clips


def test_the_study_runs_from_a_prepared_folder_to_a_picture(tmp_path, monkeypatch, capsys):
    clips = [Clip((5, 16, 32), n) for n in range(3)] + [Clip((5, 16, 32), 3, None), Clip((1, 16, 32), 4)]
    write_prepared(tmp_path / "data", clips)
    arguments = [str(tmp_path / "data"), "-o", str(tmp_path / "run"), "--recipe", "clips-tiny", "--clips", "3"]
    monkeypatch.setattr(sys, "argv", ["overfit_clips.py", *arguments])
    overfit_clips.main()
    found = json.loads((tmp_path / "run/overfit.json").read_text())
    assert [row["caption"] for row in found["psnr"]] == [clip.text for clip in clips[:3]]
    for row in found["psnr"]:
        assert (row["brings"] == row["caption"]) == (row["made"] > row["best_other"])
    assert found["right"] == sum(row["brings"] == row["caption"] for row in found["psnr"])
    assert (tmp_path / "run/overfit.png").stat().st_size > 0
    assert "of 3 captions bring their own clip back" in capsys.readouterr().out


def test_clips_that_say_the_same_are_not_told_apart(tmp_path):
    write_prepared(tmp_path / "data", [Clip((5, 16, 16), 0, "a"), Clip((5, 16, 16), 1, "a"), Clip((1, 16, 16), 2, "b")])
    with pytest.raises(ValueError, match="clips of one shape with two captions at least"):
        overfit_clips.captioned_clips(Prepared(tmp_path / "data"), 8)
