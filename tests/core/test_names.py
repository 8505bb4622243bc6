"""File names made of prompts are valid everywhere."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from carrara.core.names import safe_name


@pytest.mark.parametrize(
    ("prompt", "name"),
    [
        ("a red ball bounces on the grass", "a-red-ball-bounces-on-the-grass"),
        ("  A *Red* / ball: \\ <x>?\n", "a-red-ball-x"),
        ("-o", "o"),
        ("../../etc/passwd", "etc-passwd"),
        ("红色的球", "红色的球"),
        ("ein Frosch, größer", "ein-frosch-größer"),
        ("🐸🐸", "video"),
        ("", "video"),
        ("CON", "con-video"),
        ("lpt1", "lpt1-video"),
        ("x" * 300, "x" * 80),
        ("word " * 40, "-".join(["word"] * 16)),
    ],
)
def test_examples(prompt, name):
    assert safe_name(prompt) == name


@given(st.text())
@example("İ" * 50)
@example("con aux")
def test_laws(prompt):
    name = safe_name(prompt)
    assert 0 < len(name.encode()) <= 86
    assert not set(name) & set('/\\:*?"<>|\0 .')
    assert name.isprintable()
    assert "-" not in (name[0], name[-1])
    assert safe_name(name) == name
