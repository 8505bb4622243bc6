"""The example that draws curves: runs that follow one another make one."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))

import plot_run


def test_later_runs_go_on_where_earlier_ones_ended(tmp_path, capsys):
    for name, losses in (("first", {20: 1.0, 40: 0.5}), ("later", {20: 0.4})):
        (tmp_path / name).mkdir()
        lines = [json.dumps({"kind": "train", "step": step, "loss": loss}) for step, loss in losses.items()]
        (tmp_path / name / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    folders = [tmp_path / "first", tmp_path / "later"]
    assert plot_run.series(folders, ["loss", "other"]) == {"loss": [(20, 1.0), (40, 0.5), (60, 0.4)]}
    target = tmp_path / "curve.svg"
    plot_run.main([*map(str, folders), str(target), "loss"])
    assert "loss 0.4" in target.read_text()
    assert capsys.readouterr().out.strip() == str(target)
    with pytest.raises(SystemExit, match=r"name one \.svg"):
        plot_run.main([str(folders[0]), "loss"])
