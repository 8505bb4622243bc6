"""What stages share: sizes that fit, smaller and larger clips, noise on what is enlarged, and clips made in blocks."""

from __future__ import annotations

import pytest
import torch

from carrara.core.types import VideoShape
from carrara.systems.cascade import (
    Augmentation,
    Rung,
    as_beginning,
    augment,
    blocks,
    by_blocks,
    check_ladder,
    enlarge,
    shrink,
)
from carrara.systems.stage import COSINE

BASE = Rung("base", None, VideoShape(16, 32, 32), 8.0)
LARGE = Rung("large", VideoShape(16, 32, 32), VideoShape(16, 64, 64), 8.0)


def clip(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_a_ladder_whose_rungs_meet_is_fine():
    check_ladder([BASE])
    check_ladder([BASE, LARGE])


@pytest.mark.parametrize(
    ("rungs", "match"),
    [
        ([], "without stages"),
        ([LARGE], "nothing is before it"),
        ([BASE, BASE], "base takes text alone"),
        ([BASE, Rung("fine", VideoShape(16, 16, 32), VideoShape(16, 64, 64), 8.0)], "16 frames of 32x16.*32x32"),
        ([BASE, Rung("slow", VideoShape(16, 32, 32), VideoShape(16, 64, 64), 4.0)], "4 fps"),
    ],
)
def test_stages_that_do_not_meet_are_refused(rungs, match):
    with pytest.raises(ValueError, match=match):
        check_ladder(rungs)


def test_shrinking_undoes_enlarging_in_time_and_keeps_means_in_space():
    small = clip(2, 3, 4, 5, 6)
    for between in ("repeat", "linear", "blank"):
        large = enlarge(small, 3, 1, between)
        assert large.shape == (2, 3, 10, 5, 6)
        assert shrink(large, 3, 1).equal(small)
    assert enlarge(small, 2, 1, "blank")[:, :, 1::2].eq(0).all()
    torch.testing.assert_close(enlarge(small, 2, 1, "linear")[:, :, 1], (small[:, :, 0] + small[:, :, 1]) / 2)
    assert enlarge(small, 2, 1)[:, :, 1].equal(small[:, :, 0])
    flat = torch.full((1, 3, 2, 4, 4), 0.25)
    assert enlarge(flat, 2, 2).shape == (1, 3, 3, 8, 8)
    torch.testing.assert_close(shrink(enlarge(flat, 2, 2), 2, 2), flat)
    with pytest.raises(ValueError, match="did you mean repeat"):
        enlarge(flat, 2, 2, "repeated")


def test_augmentation_noises_as_the_schedule_says_and_level_zero_is_the_clip():
    levels = Augmentation(most=0.5, level=0.25).draw(64, torch.Generator().manual_seed(0))
    assert levels.min() < 0.02
    assert 0.48 < levels.max() <= 0.5
    assert levels.sort().values.diff().max() < 2 * 0.5 / 64 + 1e-6  # stratified
    given, noise = clip(2, 3, 2, 4, 4), clip(2, 3, 2, 4, 4, seed=1)
    found = augment(given, torch.tensor([0.0, 0.25]), noise)
    assert found[0].equal(given[0])
    level = torch.tensor(0.25)
    torch.testing.assert_close(found[1], COSINE.alpha(level) * given[1] + COSINE.sigma(level) * noise[1])
    assert Augmentation(0.5, 0.25).at_sampling(3).tolist() == [0.25] * 3
    with pytest.raises(ValueError, match=r"level=0\.6"):
        Augmentation(0.5, 0.6)


@pytest.mark.parametrize("frames", [1, 3, 4, 5, 6, 7, 11])
def test_blocks_cover_a_clip_and_each_knows_where_it_begins(frames):
    found = blocks(frames, 4, 2)
    seen = 0
    for block in found:
        assert block.stop - block.start <= 4
        assert block.start + block.known == seen
        assert block.stop > seen
        assert block.known >= (2 if seen else 0)
        seen = block.stop
    assert seen == frames


def test_blocks_of_a_fine_clip_begin_on_frames_of_the_coarse_one():
    assert all(block.start % 4 == 0 and block.stop % 4 == 1 for block in blocks(61, 9, 1))
    with pytest.raises(ValueError, match="overlap=4"):
        blocks(9, 4, 4)


def test_a_clip_made_in_blocks_is_passed_on_from_each_to_the_next():
    whole = clip(1, 2, 11, 1, 1)

    def make(block, past):
        if block.known:
            assert past.equal(whole[:, :, block.start : block.start + block.known])
        return whole[:, :, block.start : block.stop].clone()

    assert by_blocks(11, 4, 1, make).equal(whole)


def test_a_beginning_is_values_and_a_mask():
    past = clip(2, 3, 2, 4, 4)
    known, mask = as_beginning(past, 5)
    assert known[:, :, :2].equal(past)
    assert known[:, :, 2:].eq(0).all()
    assert mask.tolist() == [[True, True, False, False, False]] * 2
