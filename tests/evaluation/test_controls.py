"""Controls keep every frame and spoil every order."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from carrara.evaluation.controls import CONTROLS, frozen, shuffled


def clip(frames: int) -> np.ndarray:
    return np.arange(frames * 4 * 6 * 3, dtype=np.uint32).reshape(frames, 4, 6, 3).astype(np.uint8)


@given(st.integers(1, 40), st.integers(0, 1000))
def test_shuffling_keeps_the_frames_and_never_their_order(frames, seed):
    numbered = np.broadcast_to(np.arange(frames, dtype=np.uint8)[:, None, None, None], (frames, 2, 2, 3))
    found = shuffled(numbered, seed)[:, 0, 0, 0]
    assert sorted(found) == list(range(frames))
    assert frames == 1 or list(found) != list(range(frames))
    assert (found == shuffled(numbered, seed)[:, 0, 0, 0]).all()


def test_seeds_shuffle_differently():
    assert len({shuffled(clip(17), seed).tobytes() for seed in range(20)}) == 20


def test_frozen_is_the_first_frame_throughout():
    assert (frozen(clip(5)) == clip(5)[0]).all()
    assert frozen(clip(5)).shape == clip(5).shape


@pytest.mark.parametrize("name", CONTROLS)
def test_the_original_is_left_alone(name):
    original = clip(9)
    CONTROLS[name](original, 3)[:] = 0
    assert (original == clip(9)).all()
