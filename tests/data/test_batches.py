from __future__ import annotations

import itertools

import pytest
import torch

from carrara.data.batches import Cursor, batches, cursor_at, indices, mix, order, take


def test_an_epoch_visits_every_clip_once_and_no_two_alike():
    first, second = order(3, 0, 101), order(3, 1, 101)
    assert torch.equal(first.sort().values, torch.arange(101))
    assert torch.equal(second.sort().values, torch.arange(101))
    assert not torch.equal(first, second)
    assert not torch.equal(first, order(4, 0, 101))
    assert torch.equal(first, order(3, 0, 101))


def test_the_order_cannot_be_spoiled_by_its_reader():
    order(3, 0, 10).zero_()
    assert torch.equal(order(3, 0, 10).sort().values, torch.arange(10))


def test_batches_run_across_epochs_without_losing_a_clip():
    seen = torch.cat([indices(step, 7, 10, seed=5) for step in range(10)])
    assert len(seen) == 70
    for epoch in range(7):
        assert torch.equal(seen[epoch * 10 : epoch * 10 + 10], order(5, epoch, 10))


def test_a_batch_may_be_larger_than_the_set():
    assert torch.equal(indices(0, 25, 10, seed=1), torch.cat([order(1, e, 10) for e in range(3)])[:25])


def test_resuming_from_a_cursor_yields_the_next_clip():
    stream = list(itertools.islice(batches(Cursor(), 4, 9, seed=2), 12))
    _, stored = stream[4]
    resumed = list(itertools.islice(batches(stored, 4, 9, seed=2), 7))
    for (expected, _), (found, _) in zip(stream[5:], resumed, strict=True):
        assert torch.equal(expected, found)


def test_the_step_and_the_cursor_agree():
    cursor = Cursor()
    for step in range(11):
        assert cursor == cursor_at(step, 6, 16)
        chosen, cursor = take(cursor, 6, 16, seed=8)
        assert torch.equal(chosen, indices(step, 6, 16, seed=8))


def test_an_empty_set_is_refused():
    with pytest.raises(ValueError, match="no clips"):
        indices(0, 4, 0, seed=0)


def test_mixed_seeds_differ_in_the_bits_that_torch_keeps():
    low = {mix(seed, step) & 0xFFFFFFFF for seed in range(20) for step in range(500)}
    assert len(low) == 10_000
    assert mix(1, 2) != mix(2, 1)
    assert 0 <= mix(-1) < 1 << 63
