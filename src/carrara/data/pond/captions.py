"""Captions of scenes at three levels of detail, with a record of what each one commits to.

A caption is drawn from the tables of `lexicon.py`: the canonical one takes the first way to say each thing, others are
chosen by an integer seed. What does not fit into the level's tokens is left out in a fixed order, so no caption is ever
cut. Not standard: the result says which settings of the scene it states, so that a clip made from it is scored on
exactly what was asked for.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from carrara.core.config import choose
from carrara.data.pond import lexicon
from carrara.data.pond.world import Actor, Scene

LEVELS: dict[str, int] = {"short": 16, "medium": 32, "dense": 48}  # most tokens, the end token included

# What a level may say, in the order in which it is given up when the caption grows too long (last is kept longest).
_SHORT = ("heading", "size", "camera", "wall", "stilts", "second", "place", "motion", "colour")
_MEDIUM = ("heading", "wall", "camera", "place", "size", "stilts", "second", "motion", "colour")
_DENSE = ("scenery", "start", "still camera", *_MEDIUM)
_ORDER: dict[str, tuple[str, ...]] = {"short": _SHORT, "medium": _MEDIUM, "dense": _DENSE}


@dataclass(frozen=True)
class Caption:
    """What is said of a scene, and which settings that fixes.

    attributes: paths into the scene's JSON, such as "background", "camera", "relation", "wall", "actors.0.colour",
    "actors.1.motion", "actors.0.stilts", "actors.0.heading"; "actors.0.x" stands for `start_place`.
    """

    text: str
    attributes: frozenset[str]

    def __str__(self) -> str:
        return self.text


@dataclass
class _Voice:
    """Chooses among ways to say a thing and notes what has been said."""

    choice: Callable[[lexicon.Ways], str]
    said: set[str]

    def say(self, ways: lexicon.Ways, *attributes: str) -> str:
        self.said.update(attributes)
        return self.choice(ways)


def caption(scene: Scene, level: str = "short", seed: int = 0, canonical: bool = True) -> Caption:
    """Say what happens in a scene. level: "short" (up to 16 tokens), "medium" (32) or "dense" (48, with every detail).

    canonical: the first way to say each thing, and everything that fits; otherwise synonyms and omissions by the seed.
    Equal arguments give equal captions. Raises ValueError for an unknown level.
    """
    limit = choose("caption level", level, LEVELS)
    keep = _topics(scene, level, random.Random(2 * seed + 1), canonical)
    while True:
        # The same draws at every attempt; only what is said shrinks. A plain word takes over where synonyms are long.
        for plain in (canonical, True):
            draw = random.Random(2 * seed)
            voice = _Voice((lambda ways: ways[0]) if plain else draw.choice, set())
            text = _compose(scene, frozenset(keep), voice)
            if count_tokens(text) <= limit:
                return Caption(text, frozenset(voice.said))
        keep.pop(0)


def count_tokens(text: str) -> int:
    """How many tokens a caption of known words is: words, signs and the end."""
    return len(re.findall(r"\w+|[^\w\s]", text)) + 1


def start_place(actor: Actor) -> str | None:
    """Where an actor clearly starts: "left", "middle", "right", or None in between."""
    if abs(actor.x) <= 0.06:
        return "middle"
    return None if abs(actor.x) < 0.15 else "left" if actor.x < 0 else "right"


def vocabulary() -> frozenset[str]:
    """Every word that a caption can hold."""
    return frozenset(re.findall(r"[a-z]+", " ".join(re.sub(r"\{\w+\}", " ", text) for text in _texts(vars(lexicon)))))


def _texts(entry: object) -> Iterable[str]:
    if isinstance(entry, str):
        yield entry
    elif isinstance(entry, tuple):
        for item in entry:
            yield from _texts(item)
    elif isinstance(entry, dict):
        for key, item in entry.items():
            if not (isinstance(key, str) and key.startswith("_")):
                yield from _texts(item)


def _topics(scene: Scene, level: str, draw: random.Random, canonical: bool) -> list[str]:
    """What this caption would say if it had the room, in the order of giving up."""
    topics = list(_ORDER[level])
    if canonical:
        never = {"short": {"heading", "size"}, "medium": {"heading"}, "dense": set()}[level]
        return [topic for topic in topics if topic not in never]
    chance = dict.fromkeys(topics, {"short": 0.7, "medium": 0.85, "dense": 0.9}[level])
    if level == "short":
        chance["size"] = 0.25
    if level != "dense":
        chance["heading"] = 0.25
    chance["colour"] = 0.9 if level == "short" and len(scene.actors) == 1 else 1.0
    chance["motion"] = 1.0
    return [topic for topic in topics if draw.random() < chance[topic]]


def _compose(scene: Scene, topics: frozenset[str], voice: _Voice) -> str:
    nouns = {name: _noun(scene, i, topics, voice) for i, name in enumerate("ab"[: len(scene.actors)])}
    if scene.still or "motion" not in topics:
        template, parts = _picture(scene, voice), nouns
    elif len(nouns) == 1:
        template = voice.say(lexicon.ONE_MOVING)
        parts = nouns | {"va": _verb(scene, 0, topics, voice)}
    else:
        template, verbs = _together(scene, topics, voice) if scene.relation is None else _relate(scene, topics, voice)
        parts = nouns | verbs
    main = _fill(template, **parts, place=_place(scene, topics, voice))
    if scene.wall and "wall" in topics:
        walls = lexicon.WALLS if len(nouns) == 1 and "va" in parts else lexicon.WALLS_BESIDE
        main = f"{main} {voice.say(walls[scene.wall], 'wall')}"
    main += _start(scene, topics, voice)
    if not scene.still and ("still camera" if scene.camera == "still" else "camera") in topics:
        join = voice.say(lexicon.JOINS)
        comma = "," if "," in main and join.startswith(" ") else ""  # closes ", starting on the left"
        main += comma + join + voice.say(lexicon.CAMERAS[scene.camera], "camera")
    return _articles(main)


def _picture(scene: Scene, voice: _Voice) -> str:
    """The sentence without verbs."""
    if scene.relation is not None and scene.relation in lexicon.STILL_RELATIONS:
        return voice.say(lexicon.STILL_RELATIONS[scene.relation], "relation")
    ways = lexicon.ONE_STILL if len(scene.actors) == 1 else lexicon.TWO_STILL
    return voice.say(ways if scene.still else ways[:1])  # only an image is "a picture of"


def _together(scene: Scene, topics: frozenset[str], voice: _Voice) -> tuple[str, dict[str, str]]:
    """The sentence and the verbs of two actors without a relation."""
    first, second = scene.actors
    apart = "heading" in topics and first.motion in lexicon.HEADINGS and first.heading != second.heading
    if first.motion == second.motion and not apart:
        return voice.say(lexicon.TWO_ALIKE), {"both": _verb(scene, 0, topics, voice, together=True)}
    verbs = {"va": _verb(scene, 0, topics, voice), "vb": _verb(scene, 1, topics, voice)}
    return voice.say(lexicon.TWO_MOVING), verbs


def _relate(scene: Scene, topics: frozenset[str], voice: _Voice) -> tuple[str, dict[str, str]]:
    """The sentence and the verbs of one actor who does something to another."""
    assert scene.relation is not None
    template = voice.say(lexicon.RELATIONS[scene.relation], "relation")
    verbs = {"vb": _verb(scene, 1, topics, voice)} if "second" in topics else {}
    if scene.relation == "follows" and scene.actors[0].motion == scene.actors[1].motion:
        if verbs:  # who follows does the same
            voice.said.add("actors.0.motion")
    else:
        verbs["va"] = _verb(scene, 0, topics, voice)
        verbs["going"] = _fill(lexicon.GOING, **verbs)
    return template, verbs


def _start(scene: Scene, topics: frozenset[str], voice: _Voice) -> str:
    """Where a single actor starts, if that is clear and the frame shows it there."""
    actor = scene.actors[0]
    place = start_place(actor)
    blurred = scene.still or len(scene.actors) > 1 or actor.motion == "orbits" or scene.camera.startswith("pan")
    if "start" not in topics or place is None or blurred:
        return ""
    return ", " + voice.say(lexicon.START[place], "actors.0.x")


def _noun(scene: Scene, index: int, topics: frozenset[str], voice: _Voice) -> str:
    actor, path = scene.actors[index], f"actors.{index}"
    words = ["a"]
    if "size" in topics:
        words.append(voice.say(lexicon.SIZES[actor.size], f"{path}.size"))
    if "colour" in topics:
        words.append(voice.say(lexicon.COLOURS[actor.colour], f"{path}.colour"))
    words.append(voice.say(lexicon.KINDS[actor.kind], f"{path}.kind"))
    if actor.stilts and "stilts" in topics:
        words.append(voice.say(lexicon.STILTS, f"{path}.stilts"))
    return " ".join(words)


def _verb(scene: Scene, index: int, topics: frozenset[str], voice: _Voice, together: bool = False) -> str:
    """What an actor does, third person; together: what both do, plural, and then both motions are said."""
    actor = scene.actors[index]
    verbs = tuple(pair[together] for pair in lexicon.MOTIONS[actor.motion])
    who = range(len(scene.actors)) if together else (index,)
    verb = voice.say(verbs, *(f"actors.{i}.motion" for i in who))
    if "heading" in topics and actor.motion in lexicon.HEADINGS:
        way = voice.say(lexicon.HEADINGS[actor.motion][actor.heading], *(f"actors.{i}.heading" for i in who))
        verb = f"{verb} {way}"
    return verb


def _place(scene: Scene, topics: frozenset[str], voice: _Voice) -> str:
    if "place" not in topics:
        return ""
    ways, actor = lexicon.PLACES[scene.background], scene.actors[0]
    over = () if scene.still else lexicon.OVER_WATER if scene.background == "pond" else lexicon.OVER
    how = "in" if actor.kind == "fish" or actor.motion == "swims" else "over" if actor.motion in over else "on"
    if how not in ways:
        how = "over" if how == "in" and "over" in ways else "on"
    place = voice.say(ways[how], "background")
    if "scenery" in topics:
        place = f"{place} {voice.say(lexicon.SCENERY[scene.background])}"
    return place


def _fill(template: str, **parts: str) -> str:
    """A template with its parts; what has no part goes, and so does a "that" without its verb."""
    if not parts.get("vb"):
        template = template.replace(" that {vb}", "")
    text = re.sub(r"\{(\w+)\}", lambda match: parts.get(match[1], ""), template)
    return " ".join(text.split())


def _articles(text: str) -> str:
    """Write "an" for "a" before a vowel; the vocabulary has no word where spelling and sound differ."""
    return re.sub(r"\ba(?= [aeiou])", "an", text)
