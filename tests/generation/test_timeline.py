"""Laws of windows: they make every frame once, and begin with what is known."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from carrara.generation.timeline import (
    Timeline,
    Window,
    align,
    backward_windows,
    context_of,
    forward_windows,
    longest_prefix,
)

STEP = 4
lengths = st.integers(1, 25).map(lambda k: 1 + STEP * k)


@given(lengths, st.integers(-20, 50), st.integers(0, 6), st.integers(1, 300), st.lists(st.integers(1, 300), max_size=3))
def test_forward_windows_make_every_frame_once(window, origin, k, more, cuts):
    known = longest_prefix(k, context_of(window, STEP), STEP)
    stop = origin + known + more
    places = sorted({align(origin + known + cut, origin, STEP) for cut in cuts if cut < more})
    windows = forward_windows(origin, known, stop, window, STEP, places)
    done = origin + known
    for one in windows:
        assert one.fresh == done  # begins where the one before ended
        assert one.stop > done
        assert one.frames <= window
        assert (one.frames - 1) % STEP == 0
        assert one.prefix == 0 or (one.prefix - 1) % STEP == 0
        assert one.start >= origin
        assert one.prefix >= min(context_of(window, STEP), done - origin)
        done = one.stop
    assert stop <= done < stop + STEP
    assert set(places) <= {one.stop for one in windows}


@given(lengths, st.integers(1, 300))
def test_backward_windows_make_every_frame_once(window, end):
    context, done = context_of(window, STEP), end
    for one in backward_windows(end, window, STEP):
        assert one.stop == done + context  # reaches into what follows
        assert one.start < done
        assert one.frames <= window
        assert (one.frames - 1) % STEP == 0
        assert one.prefix == 0
        done = one.start
    assert -STEP < done <= 0


@given(lengths)
def test_a_window_makes_more_than_it_is_told(window):
    context = context_of(window, STEP)
    assert 1 <= context < window
    assert (context - 1) % STEP == 0
    if window >= 13:
        assert context >= 5  # one frame has no motion


def test_context_is_about_a_quarter():
    assert [context_of(window, 4) for window in (5, 9, 17, 33, 81, 121)] == [1, 5, 5, 9, 21, 29]


def test_one_window_is_the_whole_clip_where_it_suffices():
    assert forward_windows(0, 0, 17, 17, 4) == (Window(0, 17),)
    assert forward_windows(0, 1, 17, 17, 4) == (Window(0, 17, 1),)
    assert forward_windows(0, 0, 9, 17, 4) == (Window(0, 9),)
    assert forward_windows(3, 5, 12, 17, 4) == (Window(3, 9, 5),)


def test_the_last_window_takes_more_context_rather_than_being_short():
    assert forward_windows(0, 0, 30, 17, 4) == (Window(0, 17), Window(12, 17, 5), Window(16, 17, 13))


@pytest.mark.parametrize(("available", "most", "expected"), [(0, 5, 0), (1, 5, 1), (4, 5, 1), (5, 5, 5), (99, 9, 9)])
def test_prefixes(available, most, expected):
    assert longest_prefix(available, most, 4) == expected


def test_a_timeline_without_pictures_is_comparable_and_says_so():
    plain = Timeline(9, 0, 9, (Window(0, 9),))
    assert plain == Timeline(9, 0, 9, (Window(0, 9),))
    assert not plain.pictured
    assert plain.longest == 9
