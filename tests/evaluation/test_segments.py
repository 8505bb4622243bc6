"""Who is who where two actors touch: parts are told apart by colour, and loose pieces go back to whose they are."""

from collections import Counter

import numpy as np
import pytest
from tests.evaluation.written import written

from carrara.data.pond.sampling import sample_scene
from carrara.evaluation.adherence.verdicts import Asked, score
from carrara.evaluation.prompts import RELATED
from carrara.evaluation.reading.clip import read_clip
from carrara.evaluation.reading.colours import to_lab
from carrara.evaluation.reading.segments import colour_pair, given_back, side_by_side


def test_a_loose_piece_goes_to_the_other_part():
    first, second = np.zeros((2, 8, 16), bool)
    first[2:6, 1:5] = True
    second[2:6, 8:14] = True
    tail = np.zeros((8, 16), bool)
    tail[3:5, 7] = True
    gap = np.zeros((8, 16), bool)
    gap[3:5, 5:7] = True  # closed, but nobody's
    left, right = given_back([first | tail | gap, second], first | second | tail)
    assert np.array_equal(left, first)
    assert np.array_equal(right, second | tail)


def test_wheels_are_no_second_actor_and_what_stands_beside_them_is():
    picture = np.zeros((32, 56, 3), np.uint8)
    picture[10:22, 4:24] = (220, 40, 40)
    picture[20:26, 4:10] = picture[20:26, 18:24] = (25, 25, 25)
    assert side_by_side(to_lab(picture), picture.any(axis=-1), 64.0) is None
    picture[12:22, 24:42] = (40, 80, 220)
    for way in (1, -1):
        assert side_by_side(to_lab(picture[:, ::way]), picture[:, ::way].any(axis=-1), 64.0) == (0, 4)


def test_one_region_in_most_frames_may_be_two_actors():
    assert colour_pair([], Counter({(0, 4): 9}), 17) == (0, 4)
    assert colour_pair([], Counter({(0, 4): 8}), 17) is None


@pytest.mark.parametrize("number", [6, 114])  # a ring and a bird, each close behind a large fish
def test_who_follows_closely_keeps_its_shape_and_so_does_who_is_followed(number, tmp_path):
    scene = sample_scene((5 << 40) + 40_000 + number, RELATED, ("train", "held_out")[number % 2])
    assert scene.relation == "follows"
    (frames,) = written([scene], tmp_path, side=64)
    assert score(read_clip(frames, 8), Asked.everything(scene))["all"]
