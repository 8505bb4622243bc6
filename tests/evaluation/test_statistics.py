"""Intervals of shares and means."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from carrara.evaluation.statistics import Estimate, Share, mean_estimate, mean_or_none, tally, wilson


def test_wilson_agrees_with_the_published_example():
    low, high = wilson(81, 263)  # Newcombe 1998, table I
    assert (low, high) == pytest.approx((0.2553, 0.3662), abs=1e-4)


@given(st.integers(1, 2000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_the_interval_holds_the_share_and_mirrors(case):
    right, total = case
    low, high = wilson(right, total)
    assert 0 <= low <= right / total + 1e-12
    assert right / total <= high + 1e-12
    assert high <= 1
    assert wilson(total - right, total) == pytest.approx((1 - high, 1 - low), abs=1e-9)


def test_the_interval_shrinks_with_the_number_and_nothing_counted_says_nothing():
    wide, narrow = wilson(8, 10), wilson(800, 1000)
    assert narrow[1] - narrow[0] < wide[1] - wide[0]
    assert wilson(0, 0) == (0.0, 1.0)
    assert math.isnan(Share(0, 0).value)
    with pytest.raises(ValueError, match="3 right of 2"):
        wilson(3, 2)


def test_a_tally_counts_only_where_there_is_a_verdict():
    shares = tally([{"kind": True, "all": True}, {"all": False}], ("kind", "size", "all"))
    assert shares == {"kind": Share(1, 1), "all": Share(1, 2)}


def test_a_mean_has_students_interval():
    # Student 1908, Cushny and Peebles' sleep data: mean 1.58, deviation 1.23, t(9) = 2.262
    found = mean_estimate([1.2, 2.4, 1.3, 1.3, 0.0, 1.0, 1.8, 0.8, 4.6, 1.4])
    assert (found.value, found.low, found.high) == pytest.approx((1.58, 0.70, 2.46), abs=5e-3)


def test_the_interval_of_a_mean_covers_it_as_often_as_it_says():
    draw = np.random.default_rng(0)
    found = [mean_estimate(draw.normal(3, 2, 5)) for _ in range(2000)]
    covered = sum(e.low <= 3 <= e.high for e in found) / 2000
    assert covered == pytest.approx(0.95, abs=0.015)


def test_a_mean_of_shares_stays_a_share():
    zeros_and_ones = mean_estimate([1, 0, 1, 1], share=True)
    assert (zeros_and_ones.low, zeros_and_ones.high) == wilson(3, 4)
    parts = mean_estimate([0.9, 1.0, 0.95], share=True)
    assert parts.high == 1.0
    assert parts.value - parts.low > 0.05
    assert mean_estimate([0.5], share=True).high == 1.0


def test_one_value_has_no_spread_and_none_has_no_mean():
    alone = mean_estimate([0.3])
    assert (alone.low, alone.high) == (-math.inf, math.inf)
    assert alone.plain() == {"value": 0.3, "low": None, "high": None, "count": 1}
    assert mean_or_none([None, 0.3]) == alone
    assert mean_or_none([None]) is None
    with pytest.raises(ValueError, match="no values"):
        mean_estimate([])
    with pytest.raises(ValueError, match="not finite"):
        mean_estimate([1.0, math.nan])


def test_estimates_know_when_they_are_apart():
    low, high = mean_estimate([0.1, 0.2, 0.15]), mean_estimate([0.8, 0.9, 0.85])
    assert low.apart(high)
    assert high.apart(low)
    assert not low.apart(low)
    assert Estimate.of(Share(0, 0)) is None
    with pytest.raises(ValueError, match="inside its interval"):
        Estimate(2.0, 0.0, 1.0, 3)
