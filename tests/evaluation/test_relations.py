"""Relations: true of the simulator's tracks, false the other way round, read from pixels, and not guessed at."""

import numpy as np
import pytest

from carrara.core.types import VideoShape
from carrara.data.pond.captions import caption
from carrara.data.pond.render import render
from carrara.data.pond.sampling import Mix, sample_scene
from carrara.data.pond.simulate import simulate
from carrara.data.pond.world import RELATIONS, Scene
from carrara.evaluation.adherence.verdicts import Asked, score
from carrara.evaluation.controls import frozen
from carrara.evaluation.reading.clip import ActorReading, read_clip
from carrara.evaluation.reading.relations import holds, related
from carrara.evaluation.reading.tracks import Track

SEED = 6 << 40
RELATED = Mix(two=1.0, relation=1.0, wall=0.0, camera=0.0)


def scenes(relation: str, count: int) -> list[Scene]:
    drawn = (sample_scene(SEED + n, RELATED, ("train", "held_out")[n % 2]) for n in range(40 * count))
    found = [scene for scene in drawn if scene.relation == relation][:count]
    assert len(found) == count
    return found


def exact(scene: Scene) -> list[ActorReading]:
    """What a perfect reader would see of two actors: positions where they are whole, areas where they are not."""
    truth = simulate(scene, 17, 8.0)
    readings = []
    for index, actor in enumerate(scene.actors):
        radius, visible = truth.scale[index] * actor.radius, truth.visible[index]
        x, y = truth.position[index].T
        shown = visible > 0.05
        track = Track(
            truth.times,
            np.where(shown, x, np.nan),
            np.where(shown, y, np.nan),
            np.where(visible > 0.95, radius, np.nan),
        )
        area = np.where(shown, visible * np.pi * radius**2, np.nan)
        readings.append(ActorReading(actor.kind, actor.colour, actor.size, actor.motion, False, track, area))
    return readings


@pytest.mark.parametrize("relation", RELATIONS)
def test_what_is_so_is_read_and_the_reverse_is_not(relation):
    for scene in scenes(relation, 40):
        first, second = exact(scene)
        assert holds(relation, first, second)
        assert not holds(relation, second, first)


def mirrored(actor: ActorReading) -> ActorReading:
    track = Track(actor.track.times, -actor.track.x, actor.track.y, actor.track.radius)
    return ActorReading(actor.kind, actor.colour, actor.size, actor.motion, False, track, actor.area)


def test_in_a_mirror_left_changes_and_the_rest_does_not():
    for relation in RELATIONS:
        for scene in scenes(relation, 8):
            first, second = map(mirrored, exact(scene))
            assert holds(relation, first, second) == (relation != "left of")
            assert relation != "left of" or holds(relation, second, first)


def test_relations_are_read_from_pixels():
    for relation in RELATIONS:
        scene = scenes(relation, 1)[0]
        video = render([scene], VideoShape(17, 96, 96)).video[0].numpy()
        reading = read_clip(video, 8)
        assert score(reading, Asked.everything(scene))["relation"]
        assert any(relation in found for found in related(reading.actors))
        still = read_clip(frozen(video), 8)
        if relation != "left of":
            assert not score(still, Asked.everything(scene))["relation"]


def test_a_relation_is_asked_for_where_the_caption_states_it():
    scene = scenes("follows", 1)[0]
    assert Asked.stated(scene, caption(scene, "short")).relation == "follows"
    alone = Asked(({"colour": scene.actors[0].colour},), relation=None)
    assert "relation" not in score(read_clip(np.full((9, 64, 64, 3), 90, np.uint8), 8), alone)


def test_nobody_is_related_to_nobody():
    first, _ = exact(scenes("left of", 1)[0])
    nowhere = np.full(17, np.nan)
    lost = ActorReading(None, None, None, None, None, Track(first.track.times, nowhere, nowhere, nowhere), nowhere)
    for relation in RELATIONS:
        assert not holds(relation, first, lost)
        assert not holds(relation, lost, first)
    assert related((first,)) == []
    with pytest.raises(ValueError, match="did you mean follows"):
        holds("folows", first, lost)
