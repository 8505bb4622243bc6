from __future__ import annotations

import itertools
from fractions import Fraction
from math import floor

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from carrara.data.batches import Cursor, Turns, batches, cursor_at, indices, mix, order, part, take


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


@given(
    st.lists(st.fractions(0, 20, max_denominator=50), min_size=1, max_size=5).filter(lambda rates: sum(rates) > 0),
    st.integers(0, 400),
)
def test_every_set_has_its_turns_to_within_one_and_in_no_gap(rates, step):
    turns = Turns(tuple(rates), seed=3)
    cursor = turns.cursor(step)
    assert turns.start(cursor.epoch) + cursor.position == step
    assert 0 <= cursor.position < turns.start(cursor.epoch + 1) - turns.start(cursor.epoch)
    number, before = turns.at(step)
    assert rates[number] > 0
    assert floor(cursor.epoch * rates[number]) <= before < floor((cursor.epoch + 1) * rates[number])


def test_turns_are_a_function_of_the_step_and_count_on():
    turns = Turns((Fraction(7, 2), Fraction(1, 3), Fraction(2)), seed=1)
    seen = [0, 0, 0]
    for step in range(300):
        number, before = turns.at(step)
        assert before == seen[number]
        seen[number] += 1
    shares = [count / 300 for count in seen]
    assert shares == pytest.approx([float(rate / sum(turns.rates)) for rate in turns.rates], abs=0.01)
    later = [Turns(turns.rates, 1).at(step) for step in range(250, 260)]  # a fresh loader, in the middle
    assert later == [turns.at(step) for step in range(250, 260)]
    assert [turns.at(s)[0] for s in range(60)] != [Turns(turns.rates, 2).at(s)[0] for s in range(60)]


def test_turns_without_anything_to_take_are_refused():
    with pytest.raises(ValueError, match="one must be above 0"):
        Turns((Fraction(0),))
    with pytest.raises(ValueError, match="none may be negative"):
        Turns((Fraction(1), Fraction(-1)))


@given(st.integers(1, 40), st.integers(1, 8))
def test_the_parts_of_all_ranks_are_the_batch(count, ranks):
    if count < ranks:
        with pytest.raises(ValueError, match=f"a batch of {count} on {ranks} ranks"):
            part(count, 0, ranks)
        return
    rows = [list(range(count))[part(count, rank, ranks)] for rank in range(ranks)]
    assert list(itertools.chain(*rows)) == list(range(count))
    assert max(map(len, rows)) - min(map(len, rows)) <= 1


def test_a_rank_beyond_the_last_is_refused():
    with pytest.raises(ValueError, match="rank=2 of 2: ranks are counted from 0"):
        part(4, 2, 2)
