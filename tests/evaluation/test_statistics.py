"""Wilson's interval and the tables."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from carrara.evaluation.statistics import Share, failure_sheet, table, tally, wilson


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
    assert "50.0%" in table({"model": shares}, ("kind", "size", "all"))
    assert "size" not in table({"model": shares}, ("kind", "size", "all"))


def test_the_sheet_of_failures_is_a_picture_even_without_failures(tmp_path):
    clip = np.zeros((5, 32, 48, 3), np.uint8)
    failure_sheet(tmp_path / "some.png", [(clip, "a red ball", "wrong: colour")] * 3)
    failure_sheet(tmp_path / "none.png", [])
    assert (tmp_path / "some.png").stat().st_size > (tmp_path / "none.png").stat().st_size > 0
