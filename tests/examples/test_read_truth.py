"""The reader's check on the truth: scenes of their sets, a record for every clip, and what was read of a wrong one."""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))

import read_truth


def test_scenes_are_those_of_their_sets_and_of_both_splits():
    for name, mix in read_truth.SETS.items():
        scenes = read_truth.drawn(mix, read_truth.FIRST, 4)
        assert all((len(scene.actors) == 2) == name.startswith("two actors") for scene in scenes)
        assert all((scene.wall is not None) == name.endswith("wall") for scene in scenes)
        assert all((scene.relation is not None) == name.endswith("related") for scene in scenes)
        assert scenes == read_truth.drawn(mix, read_truth.FIRST, 5)[:4]


def test_every_clip_has_a_record_and_a_wrong_one_says_what_was_read(tmp_path, monkeypatch, capsys):
    out = tmp_path / "read.json"
    monkeypatch.setattr(
        sys, "argv", ["read_truth.py", "--clips", "3", "--side", "32", "--sets", "two actors", "--output", str(out)]
    )
    read_truth.main()
    records = json.loads(out.read_text("utf-8"))["sets"]["two actors"]
    assert [record["seed"] for record in records] == [read_truth.FIRST + n for n in range(3)]
    for record in records:  # 32 pixels are too few for some
        assert ("read" in record) == (not record["verdicts"]["all"])
    printed = capsys.readouterr().out
    assert printed.count("\n  ") == sum(not record["verdicts"]["all"] for record in records)
    assert printed.startswith("two actors, 32 pixels: all ")
