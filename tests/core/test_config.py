"""Dataclasses from plain values: nothing unknown, missing or of another type gets through, and all comes back."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from carrara.core.config import choose, from_dict, nearest, read_json, to_dict, write_json


@dataclass(frozen=True)
class Inner:
    width: int
    scale: float = 1.0


@dataclass(frozen=True)
class Outer:
    name: str
    inner: Inner = field(default_factory=lambda: Inner(1))
    sides: tuple[int, int, int] = (1, 2, 2)
    rates: tuple[float, ...] = ()
    pairs: tuple[tuple[str, int], ...] = ()
    limit: int | None = None
    on: bool = False


def test_nested_values_and_tuples_are_built():
    values = {"name": "x", "inner": {"width": 3}, "sides": [1, 4, 4], "pairs": [["a", 1]], "rates": [1, 0.5]}
    assert from_dict(Outer, values, "x.json") == Outer("x", Inner(3), (1, 4, 4), (1, 0.5), (("a", 1),))


@given(
    st.builds(
        Outer,
        st.text(),
        st.builds(Inner, st.integers(), st.floats(allow_nan=False, allow_infinity=False)),
        st.tuples(st.integers(), st.integers(), st.integers()),
        st.lists(st.floats(allow_nan=False, allow_infinity=False)).map(tuple),
        st.lists(st.tuples(st.text(), st.integers())).map(tuple),
        st.none() | st.integers(),
        st.booleans(),
    )
)
def test_what_is_written_comes_back(value):
    assert from_dict(Outer, to_dict(value), "x") == value


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"name": "x", "limt": 3}, "x.json: no setting 'limt'; did you mean limit"),
        ({"name": "x", "zzzz": 3}, "known: inner, limit, name"),
        ({"name": "x", "inner": {"widht": 3}}, r"x\.json\.inner: no setting 'widht'; did you mean width"),
        ({"name": "x", "inner": {}}, r"x\.json\.inner: .*'width'"),
        ({}, r"x\.json: .*'name'"),
        ({"name": 3}, "name=3: expected str"),
        ({"name": "x", "limit": "3"}, "limit='3': expected int | None"),
        ({"name": "x", "limit": True}, "limit=True"),
        ({"name": "x", "on": 1}, "on=1: expected bool"),
        ({"name": "x", "sides": [1, 2]}, "sides=(1, 2)"),
        ({"name": "x", "sides": 3}, "sides=3"),
        ({"name": "x", "rates": ["fast"]}, "rates"),
        ({"name": "x", "inner": {"width": 1.5}}, r"x\.json\.inner: width=1\.5: expected int"),
        ({"name": "x", "inner": {"width": 1, "scale": None}}, "scale=None: expected float"),
    ],
)
def test_what_does_not_fit_is_named(values, said):
    with pytest.raises(ValueError, match=said.replace("(", r"\(").replace(")", r"\)").replace("|", r"\|")) as caught:
        from_dict(Outer, values, "x.json")
    assert "\n" not in str(caught.value)


def test_only_dataclasses_are_built():
    with pytest.raises(TypeError, match="not a dataclass"):
        from_dict(dict, {}, "x")


def test_the_nearest_names_come_first_and_else_all():
    assert nearest("eular", ["euler", "heun", "ddim"]) == "did you mean euler?"
    assert nearest("zzz", ["b", "a"]) == "known: a, b"
    assert choose("thing", "a", {"a": 1}) == 1
    with pytest.raises(ValueError, match="unknown thing 'eulr'; did you mean euler"):
        choose("thing", "eulr", {"euler": 1})


def test_json_files_go_round_and_errors_name_them(tmp_path):
    path = tmp_path / "new/x.json"
    write_json(path, {"b": "é", "a": [1, None]})
    assert read_json(path) == {"b": "é", "a": [1, None]}
    for content, said in ((b"{", "not valid JSON"), (b"[1]", "expected a JSON object, found list"), (b"\xff", "JSON")):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"x\.json: .*{said}"):
            read_json(path)
    path.unlink()
    with pytest.raises(ValueError, match=r"x\.json: no such file"):
        read_json(path)


def test_a_file_whose_writing_fails_stays_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "x.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})

    def full(self: Path, text: str, encoding: str) -> int:
        with self.open("w", encoding=encoding) as file:
            file.write(text[: len(text) // 2])
        raise OSError("no space left")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="no space"):
        write_json(path, {"a": 2})
    assert read_json(path) == {"a": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["x.json"]
