"""Which way up a picture is, and which bucket it goes to."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from carrara.data.prepare.fitting import fit
from carrara.data.prepare.orientation import Orientation, from_matrix
from carrara.data.prepare.reasons import Unfit
from carrara.data.prepare.settings import Settings

EIGHT = [Orientation(*flags) for flags in itertools.product((False, True), repeat=3)]


@pytest.mark.parametrize("turn", EIGHT)
def test_each_pixel_goes_where_the_matrix_says(turn):
    """Against the definition: (x, y) is shown at (a x + c y, b x + d y), shifted to begin at 0."""
    signs = (-1 if turn.across else 1, -1 if turn.down else 1)
    a, b, c, d = (0, signs[1], signs[0], 0) if turn.swap else (signs[0], 0, 0, signs[1])
    matrix = np.array([a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30], np.int64).astype("<i4").tobytes()
    assert from_matrix(matrix) == turn
    picture = np.arange(12, dtype=np.uint8).reshape(3, 4)
    shown = turn(picture)
    places = {(x, y): (a * x + c * y, b * x + d * y) for y in range(3) for x in range(4)}
    left, top = (min(place[axis] for place in places.values()) for axis in (0, 1))
    for (x, y), (across, down) in places.items():
        assert shown[down - top, across - left] == picture[y, x]


def test_no_matrix_turns_nothing():
    assert from_matrix(b"") == Orientation() == from_matrix(bytes(36))


@given(st.integers(16, 4000), st.integers(16, 4000))
def test_a_fit_covers_its_bucket_evenly_and_keeps_the_aspect(width, height):
    settings = Settings(most_upscaled=100, most_cropped=1)
    found = fit(width, height, settings)
    for side, scaled, start, full in zip(found.size, found.scaled, (found.left, found.top), (width, height)):
        assert scaled >= side
        assert start % 2 == scaled % 2 == 0
        assert abs((scaled - side) / 2 - start) <= 1
        assert abs(found.scaled[0] / width - scaled / full) <= 2 / width + 2 / full
    assert 0 < found.kept <= 1 + 1e-9
    shares = [min(width / height, w / h) / max(width / height, w / h) for w, h in settings.sizes]
    assert found.kept >= max(shares) - 0.02 - 1e-9


def test_the_bucket_is_chosen_by_aspect_then_by_size():
    settings = Settings(sizes=((128, 128), (256, 256), (320, 192), (192, 320)))
    assert fit(1920, 1080, settings).size == (320, 192)
    assert fit(1080, 1920, settings).size == (192, 320)
    assert fit(600, 600, settings).size == (256, 256)
    assert fit(150, 150, settings).size == (128, 128)  # the larger would enlarge it too much
    assert fit(210, 210, settings).size == (256, 256)


def test_what_fits_no_bucket_is_told_why():
    with pytest.raises(Unfit) as small:
        fit(100, 100, Settings())
    assert small.value.reason == "too_small"
    assert "2.56 times" in small.value.sentence
    with pytest.raises(Unfit) as thin:
        fit(4000, 300, Settings())
    assert thin.value.reason == "shape"


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"fps": 0}, "fps=0: must be a number above 0"),
        ({"fps": float("nan")}, "fps=nan"),
        ({"frames": (16,)}, "nearest 13 or 17"),
        ({"frames": (1,)}, "at least 5 frames"),
        ({"frames": ()}, "at least one number of frames"),
        ({"frames": (17, 17)}, "only once"),
        ({"sizes": ((250, 256),)}, "width=250: must be a multiple of 16; nearest 240 or 256"),
        ({"sizes": ((256, 256),), "multiple": 3}, "multiple=3"),
        ({"sizes": ((8192, 8192),)}, "are too many to hold; at most 4"),
        ({"chroma": 422}, "420 or 444"),
        ({"most_cropped": 1.5}, "most_cropped=1.5: must be from 0 to 1"),
        ({"captioner": "x {clip}", "caption_model": "y"}, "give one of them"),
    ],
)
def test_settings_that_cannot_be_are_refused(wrong, said):
    with pytest.raises(ValueError, match=said.replace("(", r"\(")):
        Settings(**wrong)
