"""What was asked for against what a clip shows: one verdict per attribute.

Only what the prompt's text commits to is scored. An attribute that could not be read counts as wrong, and so does
everything about an actor that is not there. With two actors the reading is assigned to the request by the order that
makes most of it right, because a clip does not say which actor is the first; a relation is judged in that order.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path
from typing import Any

from carrara.core.config import nearest
from carrara.data.pond.captions import Caption
from carrara.data.pond.world import Scene
from carrara.evaluation.reading.clip import ActorReading, Reading, read_file
from carrara.evaluation.reading.relations import holds

ACTOR = ("kind", "colour", "size", "motion", "stilts")
SCENE = ("background", "camera")
ATTRIBUTES = ("background", "camera", "count", *ACTOR, "relation")


@dataclass(frozen=True)
class Asked:
    """What a prompt commits to. background, camera, relation (of the first actor to the second): None where it says
    nothing; actors: per actor the attributes it names (of "kind", "colour", "size", "motion", "stilts") and their
    values."""

    actors: tuple[Mapping[str, str | bool], ...]
    background: str | None = None
    camera: str | None = None
    relation: str | None = None

    def __post_init__(self) -> None:
        for actor in self.actors:
            for name in actor:
                if name not in ACTOR:
                    raise ValueError(f"an actor has no attribute {name!r}; {nearest(name, ACTOR)}")

    @classmethod
    def everything(cls, scene: Scene) -> Asked:
        """As if the prompt had said all there is to a scene; an image has no motion."""
        names = tuple(name for name in ACTOR if name != "motion" or not scene.still)
        return cls(
            tuple({name: getattr(actor, name) for name in names} for actor in scene.actors),
            scene.background,
            scene.camera,
            scene.relation,
        )

    @classmethod
    def stated(cls, scene: Scene, caption: Caption) -> Asked:
        """What this caption of the scene says."""
        said = caption.attributes
        actors = tuple(
            {name: getattr(actor, name) for name in ACTOR if f"actors.{index}.{name}" in said}
            for index, actor in enumerate(scene.actors)
        )
        return cls(
            actors,
            scene.background if "background" in said else None,
            scene.camera if "camera" in said else None,
            scene.relation if "relation" in said else None,
        )

    def plain(self) -> dict[str, Any]:
        """As JSON values."""
        scene = {name: getattr(self, name) for name in (*SCENE, "relation")}
        return scene | {"actors": [dict(actor) for actor in self.actors]}


def score(reading: Reading, asked: Asked) -> dict[str, bool]:
    """Attribute -> whether the clip shows what was asked; and "all" of it. Of two actors both must be right.

    Keys: "count", and of ATTRIBUTES those that were asked for.
    """
    verdicts = {"count": reading.count == len(asked.actors)}
    for name in SCENE:
        wanted = getattr(asked, name)
        if wanted is not None:
            verdicts[name] = getattr(reading, name) == wanted
    slots: list[ActorReading | None] = [*reading.actors, *(None for _ in asked.actors)]
    orders = [_actors(order, asked) for order in permutations(slots[: max(len(reading.actors), len(asked.actors))])]
    best: dict[str, bool] = max(orders, key=_right)
    verdicts.update(best)
    verdicts["all"] = all(verdicts.values())
    return verdicts


def _actors(order: tuple[ActorReading | None, ...], asked: Asked) -> dict[str, bool]:
    """The verdicts if the actors that were asked for are these, in this order."""
    verdicts: dict[str, bool] = {}
    for found, wanted in zip(order, asked.actors):
        for name, value in wanted.items():
            seen = getattr(found, name) if found is not None else None
            verdicts[name] = verdicts.get(name, True) and seen is not None and seen == value
    if asked.relation is not None:
        first, second = (*order, None, None)[:2]
        verdicts["relation"] = first is not None and second is not None and holds(asked.relation, first, second)
    return verdicts


def _right(verdicts: Mapping[str, bool]) -> tuple[int, bool, bool]:
    return sum(verdicts.values()), verdicts.get("colour", False), verdicts.get("kind", False)


def adherence(path: str | Path, asked: Asked) -> tuple[dict[str, bool], Reading]:
    """Read a written video file and score it. Raises ValueError for a file that cannot be read."""
    reading = read_file(path)
    return score(reading, asked), reading
