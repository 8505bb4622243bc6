"""Pieces that show the same are found, others of the same place are not."""

from __future__ import annotations

import numpy as np
from tests.data.prepare.filming import shot

from carrara.data.prepare.thumbs import Duplicates, distance, perceptual_hash, thumb, thumbs_of


def lumas(frames):
    return [
        np.asarray(frame @ np.array([0.2126, 0.7152, 0.0722]) * 219 / 255 + 16).astype(np.uint8) for frame in frames
    ]


def made(seed, noise=0.0, brightness=0.0, **more):
    draw = np.random.default_rng(seed)
    frames = shot(seed, 17, height=96, width=128, **more)
    noised = [luma + noise * draw.standard_normal(luma.shape) + brightness for luma in lumas(frames)]
    return thumbs_of([np.clip(luma, 16, 235).astype(np.uint8) for luma in noised])


def test_a_thumb_is_the_mean_of_each_cell():
    luma = np.random.default_rng(0).integers(0, 256, (32, 48), np.uint8)
    wanted = luma.reshape(16, 2, 16, 3).mean(axis=(1, 3))
    assert abs(thumb(luma) - wanted).max() <= 0.5
    assert (thumb(np.full((35, 50), 77, np.uint8)) == 77).all()


def test_coding_noise_is_found_and_another_clip_is_not():
    known = Duplicates(0.07)
    for seed in range(30):
        assert known.find(made(seed)) is None
        known.add(seed, made(seed))
    for seed in range(30):
        assert known.find(made(seed, noise=3.0)) == seed
    assert all(known.find(made(seed)) is None for seed in range(30, 60))


def test_another_movement_at_the_same_place_is_no_duplicate():
    """The hash alone would call it one: only a corner differs."""
    first = made(0, pan=0)
    moved = first.copy()
    moved[2, 3:5, 3:5] += 20
    assert (perceptual_hash(first) != perceptual_hash(moved)).sum() < 64
    assert distance(first, moved) > 0.05
    known = Duplicates(0.07)
    known.add(0, first)
    assert known.find(moved) is None
    assert known.find(first) == 0


def test_the_next_second_of_a_calm_shot_is_another_piece_and_a_coarse_copy_of_a_lively_one_is_not():
    calm, lively = made(0, pan=0).astype(np.int16), made(1, pan=1)
    ripple = np.random.default_rng(0).integers(-4, 5, (8, 16, 16))
    seconds = [(calm + ripple[:4]).astype(np.uint8), (calm + ripple[4:]).astype(np.uint8)]
    assert 0.02 < distance(*seconds) < 0.07
    known = Duplicates(0.07)
    known.add(0, seconds[0])
    known.add(1, lively)
    assert known.find(seconds[1]) is None
    copy = np.clip(lively.astype(np.int16) + ripple[:4] * 2, 0, 255).astype(np.uint8)
    assert distance(copy, lively) > 0.03
    assert known.find(copy) == 1


def test_the_first_of_several_is_named():
    known = Duplicates(0.07)
    known.add(7, made(1))
    known.add(8, made(1, noise=2))
    assert known.find(made(1, noise=2)) == 7


def test_a_piece_is_admitted_where_none_shows_the_same():
    """As when it is looked for, and added if it was not found."""
    at_once, apart = Duplicates(0.07), Duplicates(0.07)
    for number, seed in enumerate([0, 1, 0, 2, 1, 0]):
        thumbs = made(seed, noise=2.0)
        twin = apart.find(thumbs)
        if twin is None:
            apart.add(number, thumbs)
        assert at_once.admit(number, thumbs) == twin == {2: 0, 4: 1, 5: 0}.get(number)
