"""A film glued from known shots is cut at the known frames, and nowhere else."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.data.prepare.filming import shot

from carrara.data.prepare import shots
from carrara.data.prepare.shots import find_cuts, is_cut, mark_cuts, strengths


def small(frames):
    """As the small pictures that are compared, without a scaler: `t 3 h w`."""
    pixels = frames.astype(np.float64).reshape(len(frames), 12, 4, 16, 4, 3).mean(axis=(2, 4))
    luma = pixels @ np.array([0.2126, 0.7152, 0.0722])
    planes = [luma, 128 + (pixels[..., 2] - luma) / 1.8556, 128 + (pixels[..., 0] - luma) / 1.5748]
    return list(np.stack(planes, 1).round().astype(np.int16))


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(6, 40), st.sampled_from([0.0, 0.5, 1.0, 2.0])), min_size=1, max_size=5))
def test_a_film_glued_of_known_shots_is_cut_where_they_meet(parts):
    frames = np.concatenate([shot(seed, count, pan=pan) for seed, (count, pan) in enumerate(parts)])
    edges = np.cumsum([count for count, _ in parts])[:-1].tolist()
    assert find_cuts(small(frames)) == edges


def test_a_flash_is_no_cut():
    frames = shot(0, 40)
    frames[17] = 255
    assert find_cuts(small(frames)) == []
    frames[30:] = shot(5, 10)
    assert find_cuts(small(frames)) == [30]


def test_the_threshold_rises_with_the_motion_around():
    calm, wild = [0.5] * 10, [9.0] * 10
    assert is_cut(12.0, calm)
    assert not is_cut(12.0, wild)
    assert is_cut(shots.SURE, wild)
    assert not is_cut(shots.FLOOR - 0.1, [0.0] * 10)
    assert is_cut(shots.FLOOR - 0.1, [0.0] * 10, sensitivity=1.5)
    assert not is_cut(12.0, calm, sensitivity=0.5)


def test_in_one_pass_as_on_the_whole():
    """What is forgotten on the way is not needed: the decision for each frame is that of its neighbours."""
    film = small(np.concatenate([shot(1, 25, pan=2), shot(2, 9), shot(3, 33, pan=0.5), shot(4, 60)]))
    found = strengths(film)
    reach = shots.REACH
    wanted = [
        at
        for at in range(1, len(film))
        if is_cut(found[at], found[max(0, at - reach) : at] + found[at + 1 : at + 1 + reach])
    ]
    assert find_cuts(film) == wanted == [25, 34, 67]


@pytest.mark.parametrize("count", [1, 2, 3, 5, 6, 7, 30])
def test_every_frame_comes_out_once_and_a_new_beginning_begins_a_shot(count):
    film = small(shot(0, count + 4))
    marked = list(mark_cuts((index, picture, index in (0, count)) for index, picture in enumerate(film)))
    assert [item for item, _ in marked] == list(range(count + 4))
    assert [item for item, begins in marked if begins] == [0, count]


def test_the_delay_is_short():
    """No more than REACH + 2 frames are asked for before the first comes out: films are not held."""
    asked = 0

    def frames():
        nonlocal asked
        for picture in small(shot(0, 40)):
            asked += 1
            yield asked, picture, False

    next(mark_cuts(frames()))
    assert asked <= shots.REACH + 2
