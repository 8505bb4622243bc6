"""Every tick of the wanted rate shows the frame nearest to it."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from carrara.data.prepare.resampling import Resampler


def ticks(times, fps):
    """Which frame each tick shows."""
    resampler = Resampler(fps)
    shown = []
    for index, time in enumerate(times):
        count = resampler.push(time)
        shown += [index - 1] * count
    return shown + [len(times) - 1] * resampler.flush()


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 400), max_size=40), st.sampled_from([1.0, 8.0, 16.0, 23.976, 30.0]), st.floats(0, 20))
def test_ticks_show_the_nearest_frame(steps, fps, start):
    times = start + np.concatenate([[0], np.cumsum(steps)]) / 1000
    shown = ticks(times.tolist(), fps)
    assert abs(len(shown) - 1 - (times[-1] - times[0]) * fps) <= 0.5 + 1e-5
    assert shown == sorted(shown)
    for tick, frame in enumerate(shown):
        distances = abs(times - times[0] - tick / fps)
        assert distances[frame] <= distances.min() + 1e-5


def test_equal_rates_show_every_frame_once_although_times_are_rounded():
    for fps in (24, 29.97, 30, 60):
        times = [round(index / fps, 3) for index in range(200)]
        assert ticks(times, fps) == list(range(200))


def test_half_and_double_rate():
    times = [index / 30 for index in range(31)]
    assert ticks(times, 15) == list(range(0, 31, 2))
    assert ticks([0, 0.5, 1.0], 4) == [0, 1, 1, 2, 2]  # between two frames, the later


def test_a_new_grid_begins_after_the_end_of_one():
    resampler = Resampler(10)
    assert [resampler.push(0.0), resampler.push(0.1), resampler.flush()] == [0, 1, 1]
    assert [resampler.push(50.03), resampler.push(50.13), resampler.flush(), resampler.flush()] == [0, 1, 1, 0]
