"""Who is there from frame to frame, and whether anything comes or goes where nothing could have hidden it.

Every region that stands out against the plate is followed from frame to frame. Where a life begins or ends it is asked
what could explain that: the clip itself, the edge of the frame, a wall, or another actor that it touches. What nothing
explains appeared or vanished *in the open*. Not standard: no identity is guessed from appearance; a region that is too
far away to have got there in one frame, at the pace of the fastest thing in the pond, is another one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.optimize import linear_sum_assignment

from carrara.evaluation.reading.colours import Array
from carrara.evaluation.reading.masks import CROSS, actor_alpha, edge_of, pieces
from carrara.evaluation.reading.stage import Stage

FASTEST = (1.4, 3.0)  # world units per second sideways and up or down: an orbit, a fall from the top
CHANGED = 15.0  # CIELAB units over the clip by which a pixel of an actor has changed
MOVES = 0.1  # share of the actors' pixels that change, above which something moves
RESIZED = 0.1  # world units that a change of the area by e is worth when regions are matched
HIDERS = ("wall", "edge", "other")  # what can explain that a body comes or goes
FAR = 1e6  # cost of what cannot be

Mask = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Body:
    """One region in one frame. place: its centroid x, y; box: left, top, right, bottom (world units, y down, edges to
    fractions of a pixel); area: square world units; at_wall, at_edge: it touches a wall, or the edge of the frame."""

    frame: int
    place: tuple[float, float]
    box: tuple[float, float, float, float]
    area: float
    at_wall: bool
    at_edge: bool
    region: Mask = field(repr=False)


@dataclass(frozen=True)
class Life:
    """One body through consecutive frames, and what explains its beginning and its end: "clip", "edge", "wall",
    "other" (an actor that it touches), or "open": nothing does."""

    bodies: tuple[Body, ...]
    born: str
    ended: str

    @property
    def first(self) -> Body:
        return self.bodies[0]

    @property
    def last(self) -> Body:
        return self.bodies[-1]


@dataclass(frozen=True)
class Lives:
    """counts: how many bodies each frame shows, None where it shows too much to be a scene; lives: in order of their
    beginning; moves: whether anything in the clip moves at all."""

    counts: tuple[int | None, ...]
    lives: tuple[Life, ...]
    moves: bool

    @property
    def appeared(self) -> tuple[Body, ...]:
        """The first sight of whatever appeared in the open."""
        return tuple(life.first for life in self.lives if life.born == "open")

    @property
    def vanished(self) -> tuple[Body, ...]:
        """The last sight of whatever vanished in the open."""
        return tuple(life.last for life in self.lives if life.ended == "open")

    def right_counts(self) -> float | None:
        """The share of readable frames that account for as many bodies as the first one: those in sight, and those
        that a wall, another actor or the frame's edge has hidden. None where the first frame cannot be read."""
        if not self.counts or self.counts[0] is None:
            return None
        hidden = np.zeros(len(self.counts), int)
        for life in self.lives:
            hidden[life.last.frame + 1 :] += life.ended in HIDERS
            hidden[life.first.frame :] -= life.born in HIDERS
        hidden -= min(0, int(hidden.min()))  # what comes out of hiding without having gone there was there before
        return float(
            np.mean([n + h == self.counts[0] + hidden[0] for n, h in zip(self.counts, hidden) if n is not None])
        )


def read_lives(stage: Stage, fps: float, alpha: Array | None = None) -> Lives:
    """Follow everything on a stage through its frames. alpha: `actor_alpha` of the stage, if it is at hand."""
    alpha = actor_alpha(stage) if alpha is None else alpha
    open_lives: list[list[Body]] = []
    born: list[str] = []
    done: list[Life] = []
    counts: list[int | None] = []
    before: list[Body] = []
    last_read = -1
    for frame in range(len(alpha)):
        regions = pieces(alpha[frame], stage.unit)
        if regions is None:
            counts.append(None)
            continue
        bodies = [body_of(stage, alpha[frame], frame, region) for region in regions]
        counts.append(len(bodies))
        pairs = matched(open_lives, bodies, (frame - last_read) / fps)
        for number in sorted(set(range(len(open_lives))) - set(pairs), reverse=True):
            life = open_lives.pop(number)
            done.append(Life(tuple(life), born.pop(number), explain(life[-1], bodies)))
            pairs = {old - (old > number): new for old, new in pairs.items()}
        for old, new in pairs.items():
            open_lives[old].append(bodies[new])
        for new in sorted(set(range(len(bodies))) - set(pairs.values())):
            open_lives.append([bodies[new]])
            born.append("clip" if last_read < 0 else explain(bodies[new], before))
        before, last_read = bodies, frame
    done += [Life(tuple(life), origin, "clip") for life, origin in zip(open_lives, born)]
    done.sort(key=lambda life: (life.first.frame, life.first.place))
    return Lives(tuple(counts), tuple(done), moves(stage, alpha))


def body_of(stage: Stage, alpha: Array, frame: int, region: Mask) -> Body:
    """Measure one region of a frame."""
    soft = alpha * ndimage.binary_dilation(region, structure=CROSS)
    rows, columns = np.arange(soft.shape[0]) + 0.5, np.arange(soft.shape[1]) + 0.5
    total = float(soft.sum())
    x = (float(soft.sum(axis=0) @ columns) / total - stage.origin[0]) / stage.unit
    y = (float(soft.sum(axis=1) @ rows) / total - stage.origin[1]) / stage.unit
    (left, right), (top, bottom) = extent(soft.max(axis=0)), extent(soft.max(axis=1))
    box = tuple(
        (edge - origin) / stage.unit for edge, origin in zip((left, top, right, bottom), (*stage.origin, *stage.origin))
    )
    wide = ndimage.binary_dilation(region, structure=CROSS)
    return Body(
        frame=frame,
        place=(x, y),
        box=(box[0], box[1], box[2], box[3]),
        area=total / stage.unit**2,
        at_wall=bool((wide & stage.wall).any()),
        at_edge=bool((region & edge_of(stage.valid[frame])).any()),
        region=region,
    )


def extent(profile: Array) -> tuple[float, float]:
    """Where a profile of coverages first and last crosses a half, between pixels; pixel n spans [n, n + 1]."""
    padded = np.concatenate([[0.0], profile, [0.0]])  # entry n is the pixel whose middle is at n - 0.5
    over = np.flatnonzero(padded > 0.5)
    first, last = int(over[0]), int(over[-1])
    rise = (padded[first] - 0.5) / (padded[first] - padded[first - 1])
    fall = (padded[last] - 0.5) / (padded[last] - padded[last + 1])
    return first - 0.5 - float(rise), last - 0.5 + float(fall)


def matched(lives: list[list[Body]], bodies: list[Body], seconds: float) -> dict[int, int]:
    """Which life goes on as which body, at the least total cost: distance from where it was heading, and resizing."""
    if not lives or not bodies:
        return {}
    cost = np.full((len(lives), len(bodies)), FAR)
    for i, life in enumerate(lives):
        x, y = life[-1].place
        dx, dy = (x - life[-2].place[0], y - life[-2].place[1]) if len(life) > 1 else (0.0, 0.0)
        for j, body in enumerate(bodies):
            if abs(body.place[0] - x) > FASTEST[0] * seconds or abs(body.place[1] - y) > FASTEST[1] * seconds:
                continue
            away = min(math.dist(body.place, (x, y)), math.dist(body.place, (x + dx, y + dy)))
            cost[i, j] = away + RESIZED * abs(math.log(body.area / life[-1].area))
    rows, columns = linear_sum_assignment(cost)
    return {int(i): int(j) for i, j in zip(rows, columns) if cost[i, j] < FAR}


def explain(body: Body, others: list[Body]) -> str:
    """What explains that a body is seen for the last (or first) time, given the next (or previous) frame's bodies."""
    if body.at_wall:
        return "wall"
    if body.at_edge:
        return "edge"
    near = ndimage.binary_dilation(body.region, structure=CROSS, iterations=2)
    return "other" if any((near & other.region).any() for other in others) else "open"


def moves(stage: Stage, alpha: Array) -> bool:
    """Whether anything moves, turns or grows: actors' pixels change over the clip."""
    own = (alpha > 0.5).any(axis=0)
    if not own.any():
        return False
    pixels = stage.lab[:, own]
    return bool((np.ptp(pixels, axis=0).max(axis=-1) > CHANGED).mean() > MOVES)
