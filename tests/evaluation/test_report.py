"""A report: the same numbers in both files, nothing from elsewhere, nothing of the text taken for markup."""

import json
import math
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from carrara.evaluation.report.page import ticks
from carrara.evaluation.report.sections import Curve, Picture, Section, Table, write_report
from carrara.evaluation.statistics import Estimate, mean_estimate

NASTY = '<script>alert("1")</script> & "quotes"'
TABLE = Table(NASTY, ("model", "truth"), (("flicker", (Estimate(0.5, 0.25, 0.75, 9, True), None)),), NASTY)
CURVE = Curve("loss", (0.0, 0.5, 1.0), {"model": (1.0, None, 3.0), "truth": (0.0, 0.1, 0.2)}, "level", "loss")
PICTURE = Picture(NASTY, np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3))
SECTION = Section("first", NASTY, f"{NASTY}\n\nMore.", (TABLE,), (CURVE, PICTURE), {"clips": [1, 2]})


class Reader(HTMLParser):
    """Notes tags and addresses, and that every tag is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.addresses: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in ("href", "src")]
        if tag not in ("meta", "img", "line", "polyline"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in ("line", "polyline"):
            assert self.open.pop() == tag


def test_the_page_stands_alone_and_text_is_text(tmp_path):
    _, path = write_report(tmp_path, NASTY, [SECTION], {NASTY: NASTY})
    reader = Reader()
    reader.feed(path.read_text("utf-8"))
    assert reader.open == []
    assert {"table", "svg", "img", "polyline"} <= set(reader.tags)
    assert "script" not in reader.tags
    assert all(address.startswith(("#", "data:image/png;base64,")) for address in reader.addresses)
    assert "url(" not in path.read_text("utf-8")


def test_the_json_has_the_numbers_and_is_the_same_twice(tmp_path):
    path, _ = write_report(tmp_path, "title", [SECTION], {"seed": 0})
    report = json.loads(path.read_text("utf-8"))
    cell = {"value": 0.5, "low": 0.25, "high": 0.75, "count": 9}
    assert report["sections"]["first"]["tables"][0]["rows"] == {"flicker": {"model": cell, "truth": None}}
    assert report["sections"]["first"]["curves"][0]["model"] == [1.0, None, 3.0]
    assert report["sections"]["first"]["data"] == {"clips": [1, 2]}
    before = path.read_bytes()
    write_report(tmp_path, "title", [SECTION], {"seed": 0})
    assert path.read_bytes() == before


def test_a_gap_divides_a_line_and_one_value_has_no_interval(tmp_path):
    alone = Table("t", ("a",), (("x", (mean_estimate([2.0]),)),))
    _, path = write_report(tmp_path, "t", [Section("s", "s", "", (alone,), (CURVE,))], {})
    text = path.read_text("utf-8")
    assert text.count("<polyline") == 3
    assert "no interval" in text


def test_what_does_not_fit_is_refused(tmp_path):
    with pytest.raises(ValueError, match="1 cells for 2 columns"):
        Table("t", ("a", "b"), (("x", (None,)),))
    with pytest.raises(ValueError, match="expected uint8"):
        Picture("p", np.zeros((4, 4), np.uint8))
    with pytest.raises(ValueError, match="2 values for 1 x"):
        Curve("c", (0.0,), {"a": (1.0, 2.0)}, "", "")
    with pytest.raises(ValueError, match="same name"):
        write_report(tmp_path / "new", "t", [SECTION, SECTION], {})
    assert not (tmp_path / "new").exists()


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6) | st.just(0.0))
def test_ticks_enclose_the_values_at_even_round_steps(low, reach):
    found = ticks(low, low + reach)
    steps = np.diff(found)
    assert found[0] <= low + 1e-6 * steps[0]
    assert found[-1] >= low + reach - 1e-6 * steps[0]
    assert 2 <= len(found) <= 13
    assert np.allclose(steps, steps[0], rtol=1e-3)
    leading = float(f"{steps[0] / 10 ** math.floor(math.log10(steps[0])):.3g}")
    assert any(math.isclose(leading, good, rel_tol=2e-2) for good in (1, 2, 5, 10))


def test_the_text_of_a_table_has_every_number():
    lines = TABLE.text().splitlines()
    assert lines[1].split() == ["model", "truth", "n"]
    assert lines[2].split() == ["flicker", "50%", "[25,", "75]", "-", "9"]
    assert lines[3] == TABLE.note
