from __future__ import annotations

import itertools
import random
import re

import pytest

from carrara.data.pond import lexicon
from carrara.data.pond.captions import LEVELS, Caption, caption, count_tokens, start_place, vocabulary
from carrara.data.pond.sampling import sample_scene
from carrara.data.pond.world import (
    ACTORS,
    BACKGROUNDS,
    CAMERAS,
    COLOURS,
    MOTIONS,
    RELATIONS,
    SIZES,
    WALLS,
    Actor,
    Scene,
)
from carrara.text.tokenizer import train_tokenizer


def random_scene(draw: random.Random) -> Scene:
    """Any scene that can be written down, sensible or not."""
    count = draw.choice([1, 1, 2])
    motions = draw.choices(MOTIONS, k=2) if draw.random() < 0.7 else [draw.choice(MOTIONS)] * 2
    actors = []
    for motion in motions[:count]:
        kind = draw.choice(ACTORS)
        actors.append(
            Actor(
                kind,
                draw.choice(list(COLOURS)),
                draw.choice(list(SIZES)),
                motion,
                stilts=kind == "frog" and draw.random() < 0.5,
                x=draw.uniform(-0.4, 0.4),
                heading=draw.choice([1, -1]),
            )
        )
    return Scene(
        draw.choice(list(BACKGROUNDS)),
        tuple(actors),
        relation=draw.choice([None, *RELATIONS]) if count == 2 else None,
        wall=draw.choice([None, *WALLS]),
        camera=draw.choice(CAMERAS),
        still=draw.random() < 0.2,
    )


def scenes(count: int, seed: int = 0) -> list[Scene]:
    draw = random.Random(seed)
    return [random_scene(draw) for _ in range(count)]


def all_captions(count: int) -> list[tuple[str, Caption, Scene]]:
    return [
        (level, caption(scene, level, seed=i, canonical=canonical), scene)
        for i, scene in enumerate(scenes(count))
        for level, canonical in itertools.product(LEVELS, (True, False))
    ]


def test_the_tables_cover_the_world() -> None:
    assert set(lexicon.KINDS) == set(ACTORS)
    assert set(lexicon.COLOURS) == set(COLOURS)
    assert set(lexicon.SIZES) == set(SIZES)
    assert set(lexicon.MOTIONS) == set(MOTIONS)
    assert set(lexicon.PLACES) == set(lexicon.SCENERY) == set(BACKGROUNDS)
    assert set(lexicon.RELATIONS) == set(RELATIONS)
    assert set(lexicon.WALLS) == set(lexicon.WALLS_BESIDE) == set(WALLS)
    assert set(lexicon.CAMERAS) == set(CAMERAS)


def test_ways_to_say_one_thing_never_say_another() -> None:
    for table in (lexicon.KINDS, lexicon.COLOURS, lexicon.SIZES, lexicon.MOTIONS, lexicon.CAMERAS, lexicon.SCENERY):
        ways = [way for entry in table.values() for way in entry]
        assert len(set(ways)) == len(ways)
    places = {name: {way for ways in hows.values() for way in ways} for name, hows in lexicon.PLACES.items()}
    for one, other in itertools.combinations(places, 2):
        assert not places[one] & places[other]


def test_every_word_is_in_the_vocabulary_and_one_token() -> None:
    tokenizer = train_tokenizer(sorted(vocabulary()))
    assert set(tokenizer.known_words()) == vocabulary()
    used: set[str] = set()
    for _, said, _ in all_captions(1000):
        used.update(re.findall(r"\w+", said.text))
        assert tokenizer.lengths([said.text]) == [count_tokens(said.text)]
    for motion in MOTIONS:
        pair = Scene("plain", (Actor("ball", "red", motion=motion), Actor("box", "blue", motion=motion)))
        for seed in range(100):
            used.update(caption(pair, "medium", seed, canonical=False).text.split())
    assert vocabulary() <= used  # and every word of it is really used


def test_levels_stay_within_their_tokens_and_commit_to_more_and_more() -> None:
    for level, said, _ in all_captions(1000):
        assert count_tokens(said.text) <= LEVELS[level], said.text
    for scene in scenes(300):
        short, medium, dense = (caption(scene, level).attributes for level in ("short", "medium", "dense"))
        assert short <= dense
        assert medium <= dense


def key(scene: Scene) -> tuple[object, ...]:
    """What a canonical dense caption must tell apart."""
    actors = tuple((a.kind, a.colour, a.size, a.stilts, None if scene.still else a.motion) for a in scene.actors)
    relation = scene.relation if not scene.still or scene.relation in lexicon.STILL_RELATIONS else None
    return scene.background, actors, relation, scene.wall, scene.still, None if scene.still else scene.camera


def test_dense_captions_tell_scenes_apart() -> None:
    told: dict[str, tuple[object, ...]] = {}
    for scene in scenes(6000):
        text = caption(scene, "dense").text
        assert told.setdefault(text, key(scene)) == key(scene), text


def test_each_attribute_alone_changes_a_dense_caption() -> None:
    for scene in scenes(200):
        changes = [{"background": name} for name in BACKGROUNDS] + [{"wall": name} for name in (None, *WALLS)]
        if not scene.still:
            changes += [{"camera": name} for name in CAMERAS]
        values = vars(scene)
        varied = [Scene(**{**values, **change}) for change in changes]
        for i in range(len(scene.actors)):
            options = {"kind": ACTORS, "colour": COLOURS, "size": SIZES, **({} if scene.still else {"motion": MOTIONS})}
            varied += [scene.with_actor(i, **{name: value}) for name, all_ in options.items() for value in all_]
        varied = [other for other in varied if all(actor.kind == "frog" or not actor.stilts for actor in other.actors)]
        assert len({caption(other, "dense").text for other in varied}) == len({key(other) for other in varied})


def test_a_caption_says_what_it_claims_and_nothing_else() -> None:
    tables = {"kind": lexicon.KINDS, "colour": lexicon.COLOURS, "size": lexicon.SIZES}
    behind = [way for hows in lexicon.PLACES.values() for ways in hows.values() for way in ways]
    behind += [way for ways in lexicon.SCENERY.values() for way in ways]
    for _, said, scene in all_captions(400):
        of_actors = re.sub("|".join(sorted(behind, key=len, reverse=True)), "", said.text)  # not "the blue sky"
        for name, table in tables.items():
            for i, actor in enumerate(scene.actors):
                claimed = f"actors.{i}.{name}" in said.attributes
                found = any(re.search(rf"\b{way}\b", of_actors) for way in table[getattr(actor, name)])
                others = [getattr(other, name) for other in scene.actors if other is not actor]
                if claimed:
                    assert found, (said, name)
                elif getattr(actor, name) not in others:
                    assert not found, (said, name)
        assert ("background" in said.attributes) == any(
            re.search(rf"\b{way}\b", said.text) for ways in lexicon.PLACES[scene.background].values() for way in ways
        )
        assert ("wall" in said.attributes) == ("wall" in said.text)
        assert ("camera" in said.attributes) == bool(re.search("camera|view (is|pans|zooms)", said.text))
        if scene.still:
            assert not any(path.endswith(("motion", "heading", "camera")) for path in said.attributes)


def test_drawn_scenes_fit_with_everything_that_their_level_may_say() -> None:
    for seed in range(600):
        scene = sample_scene(seed)
        dense = caption(scene, "dense").attributes
        wanted = {"background", "wall", "relation", "camera"} - {
            name for name in ("wall", "relation") if getattr(scene, name) is None
        }
        for i in range(len(scene.actors)):
            wanted |= {f"actors.{i}.{name}" for name in ("kind", "colour", "size", "motion")}
        assert wanted <= dense, (scene, caption(scene, "dense"))
        short = caption(scene, "short").attributes
        least = {f"actors.{i}.{name}" for i in range(len(scene.actors)) for name in ("kind", "colour")}
        assert least | {"actors.0.motion"} <= short, caption(scene, "short")


def test_articles_agree() -> None:
    for _, said, _ in all_captions(500):
        assert not re.search(r"\ban [^aeiou]|\ba [aeiou]|  | ,|\{|\}", said.text), said.text
        assert not said.text.startswith(" ")
        assert said.text == said.text.strip().lower()


def test_two_actors_that_do_the_same_take_the_plural() -> None:
    pair = (Actor("ball", "red"), Actor("box", "orange"))
    assert caption(Scene("meadow", pair)).text == "a red ball and an orange box bounce on the grass"
    different = Scene("meadow", (pair[0], Actor("box", "blue", motion="spins")))
    assert caption(different).text == "a red ball bounces and a blue box spins on the grass"


@pytest.mark.parametrize(
    ("scene", "expected"),
    [
        (Scene("meadow", (Actor("ball", "red"),)), "a red ball bounces on the grass"),
        (Scene("pond", (Actor("frog", "green", motion="jumps"),)), "a green frog jumps over the pond"),
        (Scene("pond", (Actor("fish", "blue", motion="swims"),)), "a blue fish swims in the pond"),
        (Scene("night", (Actor("star", "purple", motion="spins"),)), "a purple star spins in the night sky"),
        (Scene("sky", (Actor("bird", "yellow", motion="flies"),)), "a yellow bird takes flight in the sky"),
        (
            Scene("meadow", (Actor("ball", "red", motion="left"), Actor("car", "blue", motion="left")), "follows"),
            "a red ball follows a blue car that moves left on the grass",
        ),
        (
            Scene("sand", (Actor("ball", "red"), Actor("box", "blue", motion="spins")), "left of"),
            "a red ball bounces on the sand to the left of a blue box",
        ),
        (Scene("sand", (Actor("ball", "red"),), still=True), "a red ball on the sand"),
        (
            Scene("plain", (Actor("car", "orange", motion="right"),), wall="hides"),
            "an orange car moves right on a plain background and passes behind a wall",
        ),
        (
            Scene("sand", (Actor("ring", "pink", motion="left"),), wall="stops"),
            "a pink ring moves left on the sand until a wall stops it",
        ),
    ],
)
def test_plain_sentences_are_the_short_canonical_captions(scene: Scene, expected: str) -> None:
    said = caption(scene)
    assert str(said) == said.text == expected
    assert {"background", "actors.0.kind", "actors.0.colour"} <= said.attributes
    assert ("actors.0.motion" in said.attributes) == (not scene.still)


def test_a_short_caption_may_leave_the_background_out() -> None:
    scene = Scene("sky", (Actor("bird", "yellow", motion="flies"),))
    texts = {caption(scene, seed=seed, canonical=False).text for seed in range(400)}
    assert "a yellow bird takes flight" in texts
    assert len(texts) > 50


def test_captions_are_functions_of_their_arguments() -> None:
    for scene in scenes(50):
        assert caption(scene, "dense", 3, False) == caption(scene, "dense", 3, False)
        assert caption(scene, "dense", 3, True) == caption(scene, "dense", 4, True)
    with pytest.raises(ValueError, match="unknown caption level 'long'"):
        caption(scenes(1)[0], "long")


def test_where_an_actor_starts_is_said_only_where_it_is_clear() -> None:
    for x, place in ((-0.3, "left"), (0.0, "middle"), (0.3, "right"), (0.1, None)):
        scene = Scene("meadow", (Actor("ball", "red", x=x),))
        said = caption(scene, "dense")
        assert start_place(scene.actors[0]) == place
        assert ("actors.0.x" in said.attributes) == (place is not None)
        assert (f"starting {'in' if place == 'middle' else 'on'} the {place}" in said.text) == (place is not None)
