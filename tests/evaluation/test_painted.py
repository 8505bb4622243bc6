"""What is painted inside an outline: the pictures are the painters' own, and they part what outlines do not."""

import numpy as np
import pytest
from tests.evaluation.written import written

from carrara.data.pond.sampling import SINGLES, Mix, sample_scene
from carrara.evaluation.reading.against import templates_against
from carrara.evaluation.reading.clip import read_clip
from carrara.evaluation.reading.colours import to_lab
from carrara.evaluation.reading.painted import apart, pictures
from carrara.evaluation.reading.silhouettes import GRID, paint_labs, templates

NIGHT = to_lab(np.array([36, 36, 86], np.uint8)).astype(np.float64)
WALLED = Mix(two=0.0, wall=1.0, camera=0.0)


def test_a_template_is_painted_as_its_shape_is():
    known = templates()
    chosen = np.flatnonzero(known.names == "heart")[:1]
    there, paint = pictures(known, chosen, "red")
    assert paint.max() == pytest.approx(1, abs=0.02)
    middle = there.reshape(GRID, GRID, 3)[GRID // 2, GRID // 2]
    assert np.linalg.norm(middle - paint_labs("heart", "red")[0]) < 2  # its body, away from glint and edge


def test_a_picture_is_nearest_to_its_own_template():
    known = templates()
    chosen = np.array([np.flatnonzero(known.names == kind)[0] for kind in ("bird", "heart", "fish", "car")])
    there, paint = pictures(known, chosen, "blue")
    for own, (labs, mask) in enumerate(zip(there, paint)):
        views = np.repeat(labs[None], len(chosen), 0), np.repeat(mask[None], len(chosen), 0)
        far = apart(*views, known, chosen, "blue")
        assert far.argmin() == own
        assert far[own] < 1e-4
        assert np.delete(far, own).min() > 5


def test_what_is_seen_of_a_template_is_painted_in_its_own_frame():
    known, _ = templates_against("blue", NIGHT)
    count = len(templates().names)
    seen = count + np.flatnonzero(templates().names == "fish")[:4]
    _, paint = pictures(known, seen, "blue")
    masks = known.masks[seen]
    inside = np.minimum(masks, paint).sum(axis=1) / masks.sum(axis=1)
    assert inside.min() > 0.97  # all that is seen is painted; in the frame of the whole shape it would not fit
    _, whole = pictures(known, seen - count, "blue")
    assert (np.minimum(masks, whole).sum(axis=1) / masks.sum(axis=1)).max() < inside.min()


@pytest.mark.parametrize(
    ("mix", "number"), [(WALLED, 41), (WALLED, 89), (WALLED, 20), (SINGLES, 41), (SINGLES, 91)]
)  # small birds, whose outlines fit a heart as well; a triangle that spins
def test_shapes_with_alike_outlines_are_told_apart(mix, number, tmp_path):
    scene = sample_scene(7_700_000_000_000 + number, mix, ("train", "held_out")[number % 2])
    reading = read_clip(written([scene], tmp_path, side=64)[0], 8)
    assert [actor.kind for actor in reading.actors] == [scene.actors[0].kind]
