"""Drawing scenes at random: attributes by a mix of probabilities, then places where all of it can be seen."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from carrara.core.config import choose
from carrara.data.pond.motions import AIR, CROUCH, JUMP_LENGTH, ORBIT, PACE, REST, rest_height
from carrara.data.pond.shapes import outline, shape_name
from carrara.data.pond.validity import FRONTS, IN_PLACE, LEVEL, STILT_MOTIONS, SWIMMERS, is_held_out, table_reason
from carrara.data.pond.world import (
    ACTORS,
    BACKGROUNDS,
    CAMERAS,
    COLOURS,
    FLOOR,
    GROWTH,
    MOTIONS,
    NOMINAL_SECONDS,
    PAN,
    RELATIONS,
    WALLS,
    ZOOM,
    Actor,
    Scene,
)

CRAMPED = ("up", "down", "orbits", "flies", "jumps")  # under a moving camera only small actors have room for these
UNZOOMED = ("grows", "shrinks", "orbits", "flies", "jumps", "swims")
LAYOUTS = 64  # different arrangements of each background
SPLITS = ("train", "held_out")


@dataclass(frozen=True)
class Mix:
    """Probabilities of what is drawn; a curriculum is a list of these.

    still: an image. two: two actors. relation: that two actors have one. wall, camera: of one-actor (wall) and all
    (camera) scenes that are not images. stilts: of frogs in a motion that allows them. large: the size.
    """

    still: float = 0.0
    two: float = 0.4
    relation: float = 0.6
    wall: float = 0.12
    camera: float = 0.2
    stilts: float = 0.15
    large: float = 0.5

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not 0 <= value <= 1:
                raise ValueError(f"{name}={value}: a probability lies between 0 and 1")


IMAGES = Mix(still=1.0, two=0.0, wall=0.0, camera=0.0)
SINGLES = Mix(two=0.0, wall=0.0, camera=0.0)
EVERYTHING = Mix()


def sample_scene(seed: int, mix: Mix = EVERYTHING, split: str = "train") -> Scene:
    """Draw a valid scene; the same seed, mix and split always give the same one."""
    wanted = choose("split", split, {"train": False, "held_out": True})
    rng = random.Random(seed)
    while True:
        plan = draw_plan(rng, mix)
        for _ in range(64):  # the plan is kept, so that rejection does not distort its probabilities
            scene = draw(rng, mix, plan)
            if is_held_out(scene) == wanted and not table_reason(scene):
                return arrange(scene, rng)


@dataclass(frozen=True)
class Plan:
    """The structure of a scene, before its actors."""

    still: bool
    two: bool
    relation: str | None
    wall: str | None
    camera: str


def draw_plan(rng: random.Random, mix: Mix) -> Plan:
    still, two = rng.random() < mix.still, rng.random() < mix.two
    if still:
        return Plan(still, two, None, None, "still")
    relation = rng.choice(RELATIONS) if two and rng.random() < mix.relation else None
    wall = rng.choice(WALLS) if not two and rng.random() < mix.wall else None
    camera = "still"
    if wall is None and rng.random() < mix.camera:
        camera = rng.choice(CAMERAS[1:3] if two else CAMERAS[1:])
    if two and camera != "still" and relation in ("follows", "passes behind"):
        relation = "left of"  # the only relation that leaves the camera room
    return Plan(still, two, relation, wall, camera)


def draw(rng: random.Random, mix: Mix, plan: Plan) -> Scene:
    """Draw the attributes of a plan's actors; they may not go together."""
    motions = draw_motions(rng, plan)
    kinds = [rng.choice(SWIMMERS if motion == "swims" else ACTORS) for motion in motions]
    actors = []
    for kind, motion in zip(kinds, motions):
        size = "large" if rng.random() < mix.large else "small"
        if plan.relation == "passes behind":
            size = "large" if motion == "spins" else "small"
        elif plan.two and (motion in ("grows", "shrinks", "jumps") or plan.camera != "still"):
            size = "small"  # there is no room for more
        elif plan.relation == "follows" and outline(kind).half_width > 1.05:
            size = "small"  # two large wide ones would have no way to go
        elif (plan.camera != "still" and motion in CRAMPED) or (
            plan.wall == "hides" and outline(kind).half_width > 1.04
        ):
            size = "small"
        stilts = kind == "frog" and motion in STILT_MOTIONS and plan == Plan(plan.still, False, None, None, "still")
        stilts = stilts and rng.random() < mix.stilts and not (size == "large" and motion == "bounces")
        actors.append(Actor(kind, rng.choice(tuple(COLOURS)), size, motion, stilts))
    return Scene(
        background="pond" if "swims" in motions else rng.choice(tuple(BACKGROUNDS)),
        actors=tuple(actors),
        relation=plan.relation,
        wall=plan.wall,
        camera=plan.camera,
        layout=rng.randrange(LAYOUTS),
        start=round(rng.uniform(0, NOMINAL_SECONDS), 3) if plan.still else 0.0,
        still=plan.still,
    )


def draw_motions(rng: random.Random, plan: Plan) -> tuple[str, ...]:
    """The motions of one or two actors, equally likely where the plan leaves a choice."""
    if plan.relation == "follows":
        return (rng.choice(LEVEL),) * 2
    if plan.relation == "passes behind":
        return rng.choice(LEVEL), rng.choice([motion for _, motion in FRONTS])
    if plan.two and (plan.relation == "left of" or plan.camera != "still" or rng.random() < 0.5):
        return rng.choice(IN_PLACE), rng.choice(IN_PLACE)
    if plan.two:  # one above the other: the first in the lower half
        return rng.choice((*LEVEL, "jumps")), rng.choice((*LEVEL, "spins"))
    if plan.wall:
        return (rng.choice(LEVEL),)
    if plan.camera.startswith("zoom"):
        return (rng.choice([motion for motion in MOTIONS if motion not in UNZOOMED]),)
    return (rng.choice(MOTIONS),)


def arrange(scene: Scene, rng: random.Random) -> Scene:
    """Give the actors of a scene places, paces, phases and headings, and a wall its place, so that all can be seen."""
    actors = [
        replace(actor, heading=rng.choice((-1, 1)), phase=round(rng.uniform(0, 6.283), 3)) for actor in scene.actors
    ]
    if scene.wall:
        return arrange_wall(scene, actors[0], rng)
    if scene.relation == "follows":
        return replace(scene, actors=arrange_follows(actors, rng))
    if scene.relation == "passes behind":
        y = round(rng.uniform(-0.15, 0.04), 4)
        front = replace(actors[1], x=round(rng.uniform(-0.02, 0.02), 4), y=y, speed=round(rng.uniform(0.85, 1.25), 4))
        start = round(rng.uniform(0.34, 0.37), 4)
        speed = round(2 * start / (PACE * NOMINAL_SECONDS), 4)
        back = replace(actors[0], x=-actors[0].direction * start, y=y, speed=speed)
        return replace(scene, actors=(back, front))
    if len(actors) == 1:
        return replace(scene, actors=(place(actors[0], rng, *window(scene)),))
    if all(actor.motion in IN_PLACE for actor in actors):
        edge = window(scene)[0][1]
        halves: Sequence[tuple[float, float]] = ((-edge, -0.01), (0.01, edge))
        if scene.relation is None and rng.random() < 0.5:
            halves = halves[::-1]
        return replace(scene, actors=tuple(place(a, rng, h, (-0.5, FLOOR)) for a, h in zip(actors, halves)))
    lower = place(actors[0], rng, (-0.5, 0.5), (0.02, FLOOR))
    top = lower.y - lower.radius * outline(lower.kind).reach[1] - 0.02 if lower.motion != "jumps" else -0.13
    upper = place(actors[1], rng, (-0.5, 0.5), (-0.5, top))
    return replace(scene, actors=(lower, upper))


def window(scene: Scene) -> tuple[tuple[float, float], tuple[float, float]]:
    """The part of the world, left to right and top to bottom, that the camera keeps in sight throughout."""
    if scene.camera.startswith("pan"):
        return (-0.5 + PAN / 2, 0.5 - PAN / 2), (-0.5, FLOOR)
    if scene.camera.startswith("zoom"):
        return (-0.5 / ZOOM, 0.5 / ZOOM), (-0.31, FLOOR)
    return (-0.5, 0.5), (-0.5, FLOOR)


def between(rng: random.Random, low: float, high: float) -> float:
    """Uniform, or the middle where there is no room; rounded so that scenes read well as text."""
    return round(rng.uniform(low, high) if low < high else (low + high) / 2, 4)


def place(actor: Actor, rng: random.Random, across: tuple[float, float], down: tuple[float, float]) -> Actor:
    """Put one actor so that its nominal motion stays in this window, and choose its pace."""
    measured = outline(shape_name(actor.kind, actor.stilts))
    grown = GROWTH if actor.motion in ("grows", "shrinks") else 1.0
    turned = actor.motion in ("spins", "swims", "flies")
    round_reach = max(float(np.hypot(*measured.hull.T).max()), 0.0)
    wide = actor.radius * grown * (round_reach if turned else measured.half_width)
    wide *= 1.24 if actor.motion in ("bounces", "jumps") else 1.0  # pressed flat, it is wider
    foot = actor.radius * grown * (round_reach if actor.motion in ("spins", "swims") else measured.foot)
    left, right = across[0] + wide, across[1] - wide
    top = down[0] + actor.radius * grown * (round_reach if turned else measured.reach[1] if not actor.stilts else 1.0)
    bottom = down[1] - foot
    ground = rest_height(actor)
    speed = rng.uniform(0.85, 1.25)
    match actor.motion:
        case "left" | "right":
            speed = min(speed, (right - left) / (PACE * NOMINAL_SECONDS))
            speed = max(speed, 0.26 / (PACE * NOMINAL_SECONDS))
            travel = PACE * speed * NOMINAL_SECONDS
            x = between(rng, left, right - travel)
            grounded = actor.stilts or actor.kind == "car" or rng.random() < 0.5
            y = ground if grounded and down[1] == FLOOR else between(rng, top, bottom)
            actor = replace(actor, x=x if actor.motion == "right" else -x + left + right, y=y)
        case "up" | "down":
            speed = max(min(speed, (bottom - top) / (PACE * NOMINAL_SECONDS)), 0.26 / (PACE * NOMINAL_SECONDS))
            travel = PACE * speed * NOMINAL_SECONDS
            y = between(rng, top, bottom - travel)
            actor = replace(actor, x=between(rng, left, right), y=y if actor.motion == "down" else bottom + top - y)
        case "bounces":
            actor = replace(actor, x=between(rng, left, right), y=between(rng, max(top, ground - 0.5), ground - 0.34))
        case "jumps":
            jumps = NOMINAL_SECONDS / (CROUCH + AIR + REST)
            speed = min(speed, (right - left) / (JUMP_LENGTH * jumps))
            x = between(rng, left, right - JUMP_LENGTH * jumps * speed)
            actor = replace(actor, x=x if actor.heading > 0 else left + right - x, y=ground)
        case "orbits":
            speed = min(speed, 1.15)
            actor = replace(
                actor, x=between(rng, left + ORBIT, right - ORBIT), y=between(rng, top + ORBIT, bottom - ORBIT)
            )
        case "spins" | "grows" | "shrinks":
            actor = replace(actor, x=between(rng, left, right), y=between(rng, top, bottom))
        case "flies":
            speed = min(speed, 1.1)
            x = between(rng, left, right - 0.36)
            actor = replace(actor, x=x if actor.heading > 0 else left + right - x, y=ground)
        case "swims":
            travel = min(PACE * speed * NOMINAL_SECONDS, right - left)
            speed = travel / (PACE * NOMINAL_SECONDS)
            x = between(rng, left, right - travel)
            x = x if actor.heading > 0 else left + right - x
            actor = replace(actor, x=x, y=between(rng, top + 0.05, bottom - 0.05))
    return replace(actor, speed=round(speed, 4), x=round(actor.x, 4), y=actor.y)


def arrange_follows(actors: list[Actor], rng: random.Random) -> tuple[Actor, ...]:
    """Two actors one behind the other, on one floor, at one pace."""
    widths = [actor.radius * outline(actor.kind).half_width for actor in actors]
    gap = sum(widths) + rng.uniform(0.03, 0.06)
    free = 1 - gap - sum(widths)
    speed = max(min(rng.uniform(0.9, 1.1), free / (PACE * NOMINAL_SECONDS)), 0.26 / (PACE * NOMINAL_SECONDS))
    behind = -0.5 + widths[0] + rng.uniform(0, max(free - PACE * speed * NOMINAL_SECONDS, 0))
    sign = actors[0].direction
    speed = round(speed, 4)
    return tuple(
        replace(actor, x=round(sign * x, 4), y=rest_height(actor), speed=speed)
        for actor, x in zip(actors, (behind, behind + gap))
    )


def arrange_wall(scene: Scene, actor: Actor, rng: random.Random) -> Scene:
    """One actor and a wall: in the middle and wide enough to hide it, or near the end of its way."""
    wide = actor.radius * outline(actor.kind).half_width
    ground = rest_height(actor)
    y = ground if actor.kind == "car" or rng.random() < 0.6 else between(rng, -0.2, ground)
    sign = actor.direction
    if scene.wall == "hides":
        width = 2 * wide + 0.03
        start = min(0.495 - wide, width / 2 + wide + rng.uniform(0.02, 0.08))
        speed = 2 * start / (PACE * NOMINAL_SECONDS)
        actor = replace(actor, x=round(-sign * start, 4), y=y, speed=round(speed, 4))
        return replace(scene, actors=(actor,), wall_x=0.0, wall_width=round(width, 4))
    width = 0.12
    travel = rng.uniform(0.28, 0.36)
    start = -0.5 + wide + rng.uniform(0, 0.05)
    wall_x = start + travel + wide + width / 2
    actor = replace(actor, x=round(sign * start, 4), y=y, speed=round(rng.uniform(0.9, 1.2), 4))
    return replace(scene, actors=(actor,), wall_x=round(sign * wall_x, 4), wall_width=width)
