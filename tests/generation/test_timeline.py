"""Laws of windows: they make every frame once, and begin with what is known."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from carrara.generation.conditions import Conditions
from carrara.generation.making import Remembered
from carrara.generation.material import Material
from carrara.generation.modes import Length, lay_out
from carrara.generation.passes import keyframe_indices
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


def test_a_window_that_its_context_fills_is_refused_and_not_waited_for():
    assert forward_windows(0, 0, 1, 1, 1) == (Window(0, 1),)
    for lay in (lambda: forward_windows(0, 0, 5, 1, 1), lambda: backward_windows(5, 1, 1)):
        with pytest.raises(
            ValueError, match="a pass of one frame is filled by the one that it is told; ask for one pass"
        ):
            lay()


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


def clip_of(frames: int) -> torch.Tensor:
    return torch.zeros(frames, 1, 1, 3, dtype=torch.uint8)


@given(st.integers(2, 8).map(lambda k: 1 + STEP * k), st.integers(5, 40), st.integers(1, 60), st.booleans())
def test_a_short_extension_takes_more_context_rather_than_being_short(window, given_frames, made, loop):
    length = Length(None, float(made), 1.0, window, window, 1.0)
    conditions = Conditions(extend="a", loop=loop)
    timeline, _, _ = lay_out(conditions, length, Material(clip=clip_of(given_frames)))
    first, context = timeline.windows[0], context_of(window, STEP)
    assert first.fresh == given_frames
    assert first.prefix <= given_frames
    assert first.prefix % STEP == 1
    assert loop or first.prefix >= min(context, 1 + (given_frames - 1) // STEP * STEP)
    if len(timeline.windows) == 1 and not loop:
        assert first.frames == window or first.prefix + STEP > given_frames or first.frames + STEP > window
    assert timeline.longest <= window


@given(
    st.integers(2, 8).map(lambda k: 1 + STEP * k),
    st.sampled_from(["between", "loop", "loop of a clip"]),
    st.integers(5, 30),
    st.integers(5, 30),
    st.integers(2, 120),
)
def test_what_is_ahead_is_told_to_the_last_window_and_to_no_other(window, mode, before, behind, made):
    clip, second = clip_of(before), clip_of(behind)
    conditions, material = {
        "between": (Conditions(between=("a", "b")), Material(clip=clip, second=second)),
        "loop": (Conditions(loop=True), Material()),
        "loop of a clip": (Conditions(extend="a", loop=True), Material(clip=clip)),
    }[mode]
    length = Length(None, float(made), 1.0, window, window, 1.0)
    timeline, _, _ = lay_out(conditions, length, material)
    assert timeline.end - timeline.begin == made
    ahead = set(range(timeline.end, timeline.end + 40))
    told = [keyframe_indices(one, lambda index: True if index in ahead else None, STEP) for one in timeline.windows]
    assert told[-1][0] == timeline.end
    assert not any(told[:-1])
    assert timeline.windows[-1].fresh < timeline.end  # and it makes something
    context = context_of(window, STEP)
    if len(timeline.windows) > 2 and window - 2 * context >= STEP:
        assert timeline.windows[-1].prefix == context
        assert told[-1] == list(range(timeline.end, timeline.end + context, STEP))


@given(st.integers(1, 8).map(lambda k: 1 + STEP * k), st.integers(2, 40), st.sampled_from([2, 4]))
def test_every_given_frame_is_told_to_a_window_that_makes_its_neighbours(window, count, factor):
    conditions = Conditions(interpolate="a", factor=factor)
    length = Length(None, None, None, window, window, 8.0)
    timeline, fps, _ = lay_out(conditions, length, Material(clip=clip_of(count), fps=8.0))
    assert (timeline.frames, fps) == ((count - 1) * factor + 1, 8.0 * factor)
    told = {index for one in timeline.windows for index in keyframe_indices(one, timeline.known.get, STEP)}
    assert told == set(timeline.known) - {0}


def test_a_window_without_room_for_both_sides_is_refused():
    length = Length(None, 4.0, 1.0, 5, 5, 1.0)
    with pytest.raises(ValueError, match="window=5: too short to arrive at what is ahead; take at least 9"):
        lay_out(Conditions(between=("a", "b")), length, Material(clip=clip_of(5), second=clip_of(5)))


@pytest.mark.parametrize("step", [2, 4])
def test_a_loop_remembers_as_many_first_frames_as_its_seam_is_told(step):
    window = Window(80, 25)
    remembered = Remembered(Timeline(200, 0, 200, (window,), loop=True), step)
    remembered.add(0, torch.arange(105).view(-1, 1, 1, 1).expand(-1, 2, 2, 3).to(torch.uint8))
    remembered.forget(window)
    kept = [index for index in range(200) if remembered.frame(index) is not None]
    assert kept == [*range(context_of(25, step)), *range(80, 105)]
    assert remembered.frame(203)[0, 0, 0] == 3
