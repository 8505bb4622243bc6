"""What is seen of a shape against what is behind it: all of it where it stands out, less where its edge does not."""

import numpy as np
import pytest
from tests.evaluation.written import written

from carrara.data.pond.sampling import sample_scene
from carrara.evaluation.adherence.verdicts import Asked, score
from carrara.evaluation.prompts import PAIRS
from carrara.evaluation.reading.against import seen_of, templates_against
from carrara.evaluation.reading.clip import read_clip
from carrara.evaluation.reading.colours import to_lab
from carrara.evaluation.reading.silhouettes import overlap, plain_templates, templates

NIGHT = to_lab(np.array([36, 36, 86], np.uint8)).astype(np.float64)
SNOW = np.array([95.0, 0.0, 0.0])


def test_only_where_an_edge_is_hidden_is_anything_matched_but_whole_shapes():
    whole = templates()
    known, plains = templates_against("yellow", NIGHT)
    assert known is whole
    assert plains is plain_templates("yellow")
    known, plains = templates_against("blue", NIGHT)
    assert len(known.masks) == len(plains) == len(known.areas) == 2 * len(whole.masks)
    assert (known.names[: len(whole.names)] == known.names[len(whole.names) :]).all()
    assert np.array_equal(known.masks[: len(whole.masks)], whole.masks)


def test_what_stands_out_everywhere_is_seen_whole():
    whole = templates()
    seen, _ = seen_of(whole, "blue", SNOW)
    solid = np.isin(whole.names, ("triangle", "heart"))
    alike = np.diag(overlap(seen.masks[solid], whole.masks[solid]))
    assert alike.min() > 0.8
    assert np.allclose(seen.areas[solid], whole.areas[solid], rtol=0.1)


def test_a_hidden_edge_takes_area_and_leaves_the_frame_normalised():
    whole = templates()
    seen, plains = seen_of(whole, "blue", NIGHT)
    assert (seen.areas <= whole.areas * 1.02).all()
    assert seen.areas[whole.names == "fish"].mean() < 0.85 * whole.areas[whole.names == "fish"].mean()
    spread = seen.masks.sum(1)
    assert spread.min() > 0.85 * whole.masks.sum(1).min()
    assert plains.shape == seen.masks.shape
    assert np.isfinite(plains).all()


@pytest.mark.parametrize("number", [10, 19, 45])  # a purple star, a blue fish, a purple fish
def test_small_dark_actors_are_read_at_night(number, tmp_path):
    scene = sample_scene((5 << 40) + 1000 + number, PAIRS, ("train", "held_out")[number % 2])
    assert scene.background == "night"
    (frames,) = written([scene], tmp_path, side=64)
    assert score(read_clip(frames, 8), Asked.everything(scene))["all"]
