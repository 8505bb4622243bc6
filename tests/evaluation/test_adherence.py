"""Scoring: what was asked against what was read, the order of two actors, what cannot be read."""

import numpy as np
import pytest

from carrara.data.pond.captions import caption
from carrara.data.pond.world import Actor, Scene
from carrara.evaluation.adherence.verdicts import Asked, score
from carrara.evaluation.reading.clip import ActorReading, Reading
from carrara.evaluation.reading.tracks import Track

NOWHERE = Track(*(np.zeros(0) for _ in range(4)))
RED_BALL = {"kind": "ball", "colour": "red"}
BLUE_CAR = {"kind": "car", "colour": "blue"}


def actor(kind: str | None, colour: str | None, size: str = "small", motion: str | None = "left") -> ActorReading:
    return ActorReading(kind, colour, size, motion, False, NOWHERE)


def reading(*actors: ActorReading, background: str | None = "sky") -> Reading:
    return Reading(background, "still", len(actors), actors)


def test_what_is_right_is_right_and_only_what_was_asked_is_scored():
    verdicts = score(reading(actor("ball", "red")), Asked((RED_BALL,), "sky"))
    assert verdicts == {"count": True, "background": True, "kind": True, "colour": True, "all": True}


@pytest.mark.parametrize("name", ["background", "kind", "colour", "size", "motion"])
def test_one_wrong_attribute_makes_that_and_all_wrong_and_nothing_else(name):
    asked = {"background": "sky", "kind": "ball", "colour": "red", "size": "small", "motion": "left"}
    asked[name] = {"background": "sand", "kind": "box", "colour": "pink", "size": "large", "motion": "right"}[name]
    background = asked.pop("background")
    verdicts = score(reading(actor("ball", "red")), Asked((asked,), background))
    assert {key for key, right in verdicts.items() if not right} == {name, "all"}


def test_what_could_not_be_read_is_wrong_even_where_the_other_half_is_missing_too():
    verdicts = score(reading(actor(None, None, motion=None), background=None), Asked((RED_BALL,), "sky"))
    assert not any(verdicts[name] for name in ("background", "kind", "colour", "all"))
    nobody = score(Reading("sky", "still", 0, ()), Asked((RED_BALL,), "sky"))
    assert nobody == {"count": False, "background": True, "kind": False, "colour": False, "all": False}


def test_two_actors_match_in_either_order_but_never_mix():
    asked = Asked((RED_BALL, BLUE_CAR))
    assert score(reading(actor("ball", "red"), actor("car", "blue")), asked)["all"]
    assert score(reading(actor("car", "blue"), actor("ball", "red")), asked)["all"]
    mixed = score(reading(actor("ball", "blue"), actor("car", "red")), asked)
    assert not mixed["kind"] or not mixed["colour"]
    assert not score(reading(actor("ball", "red"), actor("ball", "red")), asked)["all"]


def test_one_actor_of_two_is_wrong_in_count_and_one_too_many_too():
    assert not score(reading(actor("ball", "red")), Asked((RED_BALL, BLUE_CAR)))["count"]
    verdicts = score(reading(actor("car", "blue"), actor("ball", "red")), Asked((RED_BALL,)))
    assert verdicts == {"count": False, "kind": True, "colour": True, "all": False}


def test_a_caption_is_scored_on_what_it_says():
    scene = Scene("sand", (Actor("frog", "blue", "large", "jumps"),))
    short = Asked.stated(scene, caption(scene, "short"))
    dense = Asked.stated(scene, caption(scene, "dense"))
    assert "size" not in short.actors[0]
    assert dense.actors[0] == {"kind": "frog", "colour": "blue", "size": "large", "motion": "jumps"}
    assert dense.background == "sand"
    assert set(dense.actors[0]) <= set(Asked.everything(scene).actors[0])


def test_an_unknown_attribute_is_refused_by_name():
    with pytest.raises(ValueError, match="colour"):
        Asked(({"color": "red"},))
