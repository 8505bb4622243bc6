"""Which scenes can be seen at all, and which are held out.

A scene that breaks one of these rules is never drawn, and `validity` says which one:

- An actor's colour is at least 36 CIELAB units from what its background has behind it (no black at night, no white on
  plain). The backgrounds' colours were chosen so that this excludes little.
- Swims only in the pond, and only fish, frog, bird and star: elsewhere it would look like left or right.
- Only a frog stands on stilts, and goes left or right, jumps or bounces on them.
- Two actors differ in kind or in colour; where a relation names them, in colour.
- Follows: both go left or both go right. Left of: both stay in their half.
- Passes behind: the first goes left or right; the second is large and spins, or is small and grows or shrinks.
- A wall stands alone with one actor that goes left or right, under a still camera.
- No zoom with grows or shrinks: one would be taken for the other.
- In its nominal clip every actor stays in sight, at least nine tenths of it (behind a wall or an actor excepted).
- Left, right, up and down cover at least a quarter of the frame (a wall that stops excepted).

Every actor is painted with a mark, so anything may spin.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np

from carrara.data.pond.simulate import simulate
from carrara.data.pond.world import Scene, contrast

MIN_CONTRAST = 36.0
SWIMMERS = ("fish", "frog", "bird", "star")
STILT_MOTIONS = ("left", "right", "jumps", "bounces")
IN_PLACE = ("up", "down", "bounces", "spins", "grows", "shrinks")  # what stays in its half of the frame
LEVEL = ("left", "right")
FRONTS = (("large", "spins"), ("small", "grows"), ("small", "shrinks"))  # what something can pass behind

# Held out: of each eligible colour one kind, of each kind one motion, of each background one motion. 8 + 10 + 6 pairs.
HELD_OUT: frozenset[tuple[str, str]] = frozenset(
    {
        ("red", "heart"),
        ("orange", "fish"),
        ("yellow", "star"),
        ("green", "car"),
        ("blue", "bird"),
        ("purple", "frog"),
        ("pink", "ring"),
        ("white", "box"),
    }
    | {
        ("ball", "orbits"),
        ("box", "up"),
        ("star", "bounces"),
        ("ring", "left"),
        ("triangle", "flies"),
        ("heart", "right"),
        ("frog", "grows"),
        ("bird", "spins"),
        ("fish", "down"),
        ("car", "shrinks"),
    }
    | {
        ("sky", "jumps"),
        ("pond", "grows"),
        ("meadow", "up"),
        ("night", "right"),
        ("sand", "orbits"),
        ("plain", "spins"),
    }
)


@cache
def pair_reason(background: str, kind: str, colour: str, motion: str, stilts: bool = False) -> str | None:
    """Why one actor cannot be drawn like this, whatever its place; None if it can."""
    seen = contrast(colour, background)
    if seen < MIN_CONTRAST:
        return f"{colour} is too close to the {background}: {seen:.0f} CIELAB units, {MIN_CONTRAST:.0f} are needed"
    if motion == "swims" and (background != "pond" or kind not in SWIMMERS):
        return f"a {kind} does not swim in the {background}; {', '.join(SWIMMERS)} do, in the pond"
    if stilts and (kind != "frog" or motion not in STILT_MOTIONS):
        return f"a {kind} that {motion} has no stilts; only a frog with {', '.join(STILT_MOTIONS)}"
    return None


def table_reason(scene: Scene) -> str | None:
    """Why the attributes of a scene do not go together, places aside; None if they do."""
    actors = scene.actors
    motions = tuple(actor.motion for actor in actors)
    for actor in actors:
        reason = pair_reason(scene.background, actor.kind, actor.colour, actor.motion, actor.stilts)
        if reason:
            return reason
    if len(actors) == 2:
        first, second = actors
        if first.kind == second.kind and (first.colour == second.colour or scene.relation):
            return f"two {first.colour} {first.kind}s cannot be told apart; change a kind or a colour"
        if scene.relation and first.colour == second.colour:
            return f"both actors of {scene.relation!r} are {first.colour}; give them two colours"
    if scene.relation == "follows" and (motions[0] != motions[1] or motions[0] not in LEVEL):
        return f"follows: both actors go left or both go right, found {motions[0]} and {motions[1]}"
    if scene.relation == "left of" and not set(motions) <= set(IN_PLACE):
        return f"left of: both actors stay in their half ({', '.join(IN_PLACE)}), found {motions[0]} and {motions[1]}"
    if scene.relation == "passes behind" and (motions[0] not in LEVEL or (actors[1].size, motions[1]) not in FRONTS):
        return "passes behind: one goes left or right, the other is large and spins or is small and grows or shrinks"
    if scene.wall and (len(actors) != 1 or motions[0] not in LEVEL or scene.camera != "still"):
        return "a wall stands alone with one actor that goes left or right, under a still camera"
    if scene.camera.startswith("zoom") and {"grows", "shrinks"} & set(motions):
        return f"{scene.camera} cannot be told from an actor that {motions[0]}"
    return None


def validity(scene: Scene) -> str | None:
    """Why a scene cannot be seen as described (see the table at the top), or None: it can."""
    reason = table_reason(scene)
    if reason:
        return reason
    truth = simulate(replace(scene, still=False, start=0.0) if not scene.still else scene)
    least = truth.visible.min(axis=1)
    for index, actor in enumerate(scene.actors):
        excepted = scene.wall == "hides" or (scene.relation == "passes behind" and index == 0)
        ends = truth.visible[index, [0, -1]].min()
        if (ends if excepted else least[index]) < 0.9:
            return f"the {actor.kind} is not all in sight ({least[index]:.0%} at its least); move it or make it smaller"
        path = np.ptp(truth.position[index], axis=0)
        axis = {"left": 0, "right": 0, "up": 1, "down": 1}.get(actor.motion)
        if axis is not None and not scene.still and scene.wall != "stops" and path[axis] < 0.25:
            return f"the {actor.kind} goes {actor.motion} only {path[axis]:.2f} of the frame; 0.25 is needed"
    names = {event.name for event in truth.events}
    if scene.wall == "hides" and not {"hidden", "reappears"} <= names:
        return f"the {scene.actors[0].kind} does not vanish behind the wall and come back; widen the wall or go faster"
    if scene.wall == "stops" and "stopped" not in names:
        return f"the {scene.actors[0].kind} does not reach the wall; put the wall in its way"
    if scene.relation == "passes behind" and truth.visible[0].min() > 0.6:
        return "the first actor is hardly covered; put both at the same height"
    return None


def is_held_out(scene: Scene) -> bool:
    """Whether a scene shows a pair of attributes that training never shows together; an image shows no motion."""
    for actor in scene.actors:
        pairs = [(actor.colour, actor.kind)]
        if not scene.still:
            pairs += [(actor.kind, actor.motion), (scene.background, actor.motion)]
        if not HELD_OUT.isdisjoint(pairs):
            return True
    return False
