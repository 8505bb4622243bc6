"""Files over a Ray cluster: the same bytes as on one machine. Without the extra `ray` the option is refused."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tests.data.prepare.filming import shot, write

from carrara.data.prepare.run import prepare
from carrara.data.prepare.settings import Settings

SETTINGS = Settings(frames=(5,), sizes=((64, 48),), most_upscaled=1.5)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    for number in range(5):
        write(tmp_path / f"in/{number}.mp4", np.concatenate([shot(2 * number, 11), shot(2 * number + 1, 6)]))
    (tmp_path / "in/bad.mp4").write_bytes(b"no film")
    return tmp_path / "in"


def test_without_ray_it_is_refused_before_anything_is_written(source, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)  # importing it fails
    with pytest.raises(ValueError, match=r"Ray is not installed; pip install 'carrara\[ray\]'"):
        prepare(source, tmp_path / "out", SETTINGS, ray="local")
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="the extra ray is not installed")
def test_a_cluster_writes_what_one_process_writes(source, tmp_path):
    """In a process of its own: Ray leaves threads, and warnings of its own making, behind."""
    prepare(source, tmp_path / "alone", SETTINGS)
    command = [sys.executable, "-m", "carrara", "data", "prepare", str(source), str(tmp_path / "cluster")]
    options = ["--frames", "5", "--sizes", "64x48", "--upscale", "1.5", "--ray", "local"]
    subprocess.run([*command, *options], check=True, env={**os.environ, "RAY_USAGE_STATS_ENABLED": "0"}, timeout=300)
    one, other = (
        {path.relative_to(place): path.read_bytes() for path in place.rglob("*") if path.is_file()}
        for place in (tmp_path / "alone", tmp_path / "cluster")
    )
    assert one == other
    assert any(name.suffix == ".tar" for name in one)
