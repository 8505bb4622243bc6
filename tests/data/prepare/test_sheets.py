"""Strips of a piece show the frames that decoding all of it would."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tests.data.prepare.filming import shot

from carrara.core.media import read_video, write_video
from carrara.data.prepare.sheets import frames_of


@pytest.mark.parametrize("count", [1, 2, 4, 17, 30])
def test_some_frames_are_those_of_the_whole(tmp_path: Path, count: int):
    path = tmp_path / "clip.mp4"
    write_video(path, shot(3, 17, height=64, width=96), 16.0)
    whole = frames_of(path, 17)
    assert len(whole) == 17
    assert np.abs(np.stack(whole).astype(int) - read_video(path)[0].numpy()).mean() < 2
    chosen = np.linspace(0, 16, min(count, 17)).round().astype(int)
    for made, index in zip(frames_of(path, count), chosen, strict=True):
        assert (made == whole[index]).all()


def test_a_piece_that_is_not_whole_is_named(tmp_path: Path):
    path = tmp_path / "clip.mp4"
    write_video(path, shot(3, 5, height=64, width=96), 16.0)
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(ValueError, match=r"clip\.mp4: cannot be read"):
        frames_of(path, 2)
