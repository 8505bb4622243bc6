"""Permanence: an actor goes behind a wall; does it come out again, as the same one, where and when it should?

Everything is read from the pixels: the wall, the actor's path before it (a straight line, fitted to its centre while it
is whole and to the edge that is still seen while the wall takes it), and from that when it is wholly hidden and when
and where it is due on the other side. What comes out is compared with what went in. Not standard: time and place are
two errors, not one. Along the path an actor can only be early or late (frames); off the path it is misplaced (widths).
A clip that shows no such crossing is no failure and no success: it says why it cannot be judged.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from carrara.data.pond.shapes import outline
from carrara.evaluation.permanence.tracks import Body, Life, Lives, read_lives
from carrara.evaluation.reading.clip import ActorReading, read_actor
from carrara.evaluation.reading.masks import Sights, actor_alpha, sight
from carrara.evaluation.reading.stage import RIM, Stage, read_stage

PLACE = 0.35  # widths off the path, beyond which an actor comes out at another place
TIME = 2.0  # frames early or late, beyond which an actor is not in time
UNSTEADY = 0.2  # widths about a straight path (root mean square), beyond which there is none to extrapolate
SLOWEST = 0.1  # widths per frame below which an actor does not go anywhere
LEANS = 0.2  # of the pace, above which a path's slope is a slope and not the beat of a wing
DUE = 0.6  # of its width past the wall, when an actor that should come out must be seen
NEARLY = 0.02  # intersection over union behind the best shape, within which another one may be it as well
RESIZED = 0.2  # logarithm of the ratio of two areas, above which they are not of one actor that does not grow
WHOLE = 0.95  # of the area of an actor that is clear of the wall, above which it is not hidden yet
PARTLY = 0.35  # weight of a place that is known by one edge only
FEWEST = 3  # frames that a path is fitted to
VERDICTS = ("emerges", "same colour", "same shape", "in place", "in time")


@dataclass(frozen=True)
class Wall:
    """left, top, right, bottom: a wall's edges, world units, y down."""

    left: float
    top: float
    right: float
    bottom: float


@dataclass(frozen=True)
class Path:
    """x(t) = x + pace t and y(t) = y + lean t over frame numbers t, of an actor's centre; width: its extent sideways;
    off: root mean square distance of what was fitted from the line, along x. World units."""

    x: float
    pace: float
    y: float
    lean: float
    width: float
    off: float

    def at(self, frame: float) -> tuple[float, float]:
        return self.x + self.pace * frame, self.y + self.lean * frame

    def when(self, x: float) -> float:
        """The moment (a frame number with a fraction) at which the centre is at x."""
        return (x - self.x) / self.pace


@dataclass(frozen=True)
class Crossing:
    """One actor's way behind a wall.

    occlusion: frames for which it is wholly hidden, by its pace before and the wall's width (0: never wholly).
    due: the frame in which it should be seen again. emerges, same_colour, same_shape: verdicts, None where nothing came
    out, or what went in cannot be read, or (the shape) what came out is never seen whole. off_path: distance of the
    place where it comes out from the extrapolated path, in widths of the actor; delay: frames too late (negative:
    early); off_time: along the path, in widths. bodies: what was seen of it before and after.
    """

    wall: Wall
    path: Path
    before: ActorReading
    after: ActorReading | None
    occlusion: float
    due: float
    emerges: bool
    same_colour: bool | None = None
    same_shape: bool | None = None
    off_path: float | None = None
    delay: float | None = None
    off_time: float | None = None
    bodies: tuple[tuple[Body, ...], tuple[Body, ...]] = field(default=((), ()), repr=False)

    def verdicts(self) -> dict[str, bool]:
        """Of VERDICTS those that could be judged."""
        found: dict[str, bool | None] = {
            "emerges": self.emerges,
            "same colour": self.same_colour,
            "same shape": self.same_shape,
            "in place": None if self.off_path is None else self.off_path <= PLACE,
            "in time": None if self.delay is None else abs(self.delay) <= TIME,
        }
        return {name: value for name, value in found.items() if value is not None}


@dataclass(frozen=True)
class Permanence:
    """What a clip shows of it. crossing: None where no actor crosses behind a wall, and `reason` says why."""

    lives: Lives
    crossing: Crossing | None
    reason: str = ""

    def verdicts(self) -> dict[str, bool]:
        """Those of the crossing; "nothing comes or goes" in the open, if something moves; and "permanent": the clip
        shows a crossing, and everything that can be judged is right."""
        found = self.crossing.verdicts() if self.crossing else {}
        steady = not self.lives.appeared and not self.lives.vanished
        if self.lives.moves:
            found["nothing comes or goes"] = steady
        found["permanent"] = self.crossing is not None and all(found.values())
        return found

    def plain(self) -> dict[str, Any]:
        """As JSON values."""
        values: dict[str, Any] = {
            "verdicts": self.verdicts(),
            "counts": list(self.lives.counts),
            "right counts": rounded(self.lives.right_counts()),
            "appeared": [body.frame for body in self.lives.appeared],
            "vanished": [body.frame for body in self.lives.vanished],
        }
        if self.crossing is None:
            return values | {"reason": self.reason}
        c = self.crossing
        numbers = {"occlusion": c.occlusion, "due": c.due, "off path": c.off_path, "delay": c.delay}
        return values | {name: rounded(value) for name, value in (numbers | {"off in time": c.off_time}).items()}


def rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def read_permanence(frames: NDArray[np.uint8], fps: float) -> Permanence:
    """Read uint8 `t h w 3` at `fps`; deterministic."""
    stage = read_stage(np.ascontiguousarray(frames), fps)
    alpha = actor_alpha(stage)
    lives = read_lives(stage, fps, alpha)
    found = read_crossing(stage, alpha, lives, fps)
    return Permanence(lives, None, found) if isinstance(found, str) else Permanence(lives, found)


def read_wall(stage: Stage) -> Wall | None:
    """The largest wall on a stage."""
    labels, count = ndimage.label(stage.wall)
    if not count:
        return None
    region = labels == 1 + int(np.bincount(labels.reshape(-1))[1:].argmax())
    edges = []
    for axis, origin in ((0, stage.origin[0]), (1, stage.origin[1])):
        along = np.flatnonzero(region.any(axis=axis))
        size = region.shape[1 - axis]
        # Its blended rim was added, of which half a pixel is its own; there is none at the frame's edge.
        low = 0 if along[0] == 0 else along[0] + RIM - 0.5
        high = size if along[-1] == size - 1 else along[-1] + 1 - RIM + 0.5
        edges.append((float(low - origin) / stage.unit, float(high - origin) / stage.unit))
    (left, right), (top, bottom) = edges
    return Wall(left, top, right, bottom)


def read_crossing(stage: Stage, alpha: NDArray[np.float32], lives: Lives, fps: float) -> Crossing | str:
    """The crossing that a clip shows, or why there is none to judge."""
    wall = read_wall(stage)
    if wall is None:
        return "there is no wall"
    middle, last = (wall.left + wall.right) / 2, len(alpha) - 1
    going = [life for life in lives.lives if life.born == "clip" and life.ended == "wall"]
    if not going:
        return "no actor of the first frame goes behind the wall"
    life = max(going, key=lambda each: max(body.area for body in each.bodies))
    sign = 1 if life.last.place[0] < middle else -1  # the way it should go
    near, far = (wall.left, wall.right) if sign > 0 else (wall.right, wall.left)
    before = read_side(stage, alpha, life.bodies, fps)
    path = fit_path(located(life.bodies, before, -sign), actor_width(life.bodies, before))
    if path is None:
        return "the actor is seen too briefly before the wall"
    if path.pace * sign < SLOWEST * path.width:
        return "the actor does not go towards the wall"
    if path.off > UNSTEADY * path.width:
        return "the actor's path to the wall is not straight and steady"
    reach = sign * path.width / 2
    hides, shows = path.when(near + reach), path.when(far - reach)
    due = path.when(far - reach + DUE * 2 * reach)
    if due > last:
        return "the clip ends before the actor is due on the other side"
    found = Crossing(wall, path, before, None, max(0.0, shows - hides), due, False, bodies=(life.bodies, ()))
    out = coming_out(lives, life, middle, sign)
    return found if out is None else judged(found, stage, alpha, out, sign, fps)


def coming_out(lives: Lives, life: Life, middle: float, sign: int) -> Life | None:
    """What is seen to come out of the wall on its far side after `life` began to vanish: the first, if any does."""
    for other in lives.lives:
        late = other.first.frame > life.first.frame and other.last.frame > life.last.frame
        if other.born == "wall" and late and (other.first.place[0] - middle) * sign > 0:
            return other
    return None


def judged(found: Crossing, stage: Stage, alpha: NDArray[np.float32], out: Life, sign: int, fps: float) -> Crossing:
    """The crossing with what came out compared with what went in."""
    before, path = found.before, found.path
    full = clear_area(found.bodies[0])
    after = read_side(stage, alpha, out.bodies, fps, full)
    shape: bool | None = None
    if before.kind is not None and (whole := clear(out.bodies, full)).any():
        areas = clear_size(found.bodies[0], clear(found.bodies[0]), before), clear_size(out.bodies, whole, after)
        shape = after.kind is not None and alike(before, after, areas)
    seen = located(out.bodies, after, sign, full, path.width)
    expected = np.array([path.at(frame) for frame in seen[:, 0]])
    ahead = float(np.median(seen[:, 1] - expected[:, 0])) * sign
    aside = float(np.nanmedian(seen[:, 2] - expected[:, 1])) if np.isfinite(seen[:, 2]).any() else None
    return replace(
        found,
        after=after,
        emerges=True,
        same_colour=None if before.colour is None else before.colour == after.colour,
        same_shape=shape,
        off_path=None if aside is None else abs(aside) / path.width,
        delay=-ahead / abs(path.pace),
        off_time=abs(ahead) / path.width,
        bodies=(found.bodies[0], out.bodies),
    )


def alike(before: ActorReading, after: ActorReading, areas: tuple[float, float]) -> bool:
    """Whether one shape of one size may be what both sides show: it fits each of them as well as the best, or nearly,
    and they are equally large. areas: of both, where they are clear."""
    best = max(after.shapes.values()), max(before.shapes.values())
    behind = [max(best[0] - after.shapes[name], best[1] - before.shapes[name]) for name in after.shapes]
    return min(behind) < NEARLY and abs(math.log(areas[1] / areas[0])) < RESIZED


def read_side(
    stage: Stage, alpha: NDArray[np.float32], bodies: tuple[Body, ...], fps: float, full: float | None = None
) -> ActorReading:
    """What an actor is seen to be on one side of the wall. full: see `clear`."""
    sights: Sights = [None] * len(alpha)
    for body, whole in zip(bodies, clear(bodies, full)):
        sights[body.frame] = replace(sight(stage, alpha, body.frame, body.region, True), whole=bool(whole))
    return read_actor(stage, sights, np.arange(len(alpha)) / fps)


def clear(bodies: tuple[Body, ...], full: float | None = None) -> NDArray[np.bool_]:
    """Which of a life's bodies show the actor whole: free of wall and edge, or as large as it is there.

    full: the area that it is known to have; else, where it is never free, its largest counts as whole.
    """
    areas = np.array([body.area for body in bodies])
    free = np.array([not (body.at_wall or body.at_edge) for body in bodies])
    if free.any():
        full = float(np.median(areas[free]))
    return free | (areas >= WHOLE * (areas.max() if full is None else full))


def clear_area(bodies: tuple[Body, ...]) -> float:
    """An actor's area where it is clear."""
    return float(np.median([body.area for body, good in zip(bodies, clear(bodies)) if good]))


def clear_size(bodies: tuple[Body, ...], whole: NDArray[np.bool_], actor: ActorReading) -> float:
    """The area of an actor's outline where it is clear, square world units."""
    return float(np.median(actor.area[[body.frame for body, good in zip(bodies, whole) if good]]))


def actor_width(bodies: tuple[Body, ...], actor: ActorReading) -> float:
    """An actor's extent sideways: that of its shape at its size, or of its box where it is clear."""
    radius = actor.track.radius[[body.frame for body in bodies]]
    if actor.kind is not None and np.isfinite(radius).any():
        return 2 * outline(actor.kind).half_width * float(np.nanmedian(radius))
    return float(np.median([body.box[2] - body.box[0] for body, good in zip(bodies, clear(bodies)) if good]))


def located(
    bodies: tuple[Body, ...], actor: ActorReading, outer: int, full: float | None = None, width: float = math.nan
) -> NDArray[np.float64]:
    """Rows of frame, x, y of an actor's centre, world units: where it is clear, that of the shape that fits; else x by
    the edge away from the wall (outer: -1 its left, 1 its right) and NaN for y, since a wall takes its middle along.

    full: see `clear`; width: of the actor, for one that is never clear.
    """
    frames = [body.frame for body in bodies]
    box, good = np.array([body.box for body in bodies]), clear(bodies, full)
    middle = (box[:, :2] + box[:, 2:]) / 2
    edge = box[:, 2] if outer > 0 else box[:, 0]
    if not good.any():
        return np.stack([frames, edge - outer * width / 2, np.full(len(frames), math.nan)], axis=1)
    found = np.stack([frames, actor.track.x[frames], actor.track.y[frames]], axis=1)
    known = np.isfinite(found).all(axis=1) & good
    off = np.median((found[:, 1:] - middle)[known], axis=0) if known.any() else np.zeros(2)
    found[:, 1:] = np.where(known[:, None], found[:, 1:], middle + off)
    found[~good, 1] = edge[~good] + np.median(found[good, 1] - edge[good])
    found[~good, 2] = math.nan
    return found


def fit_path(seen: NDArray[np.float64], width: float) -> Path | None:
    """The straight path through rows of frame, x, y, those without y counting less; None for too few."""
    if len(seen) < FEWEST:
        return None
    frame, x, y = seen.T
    known = np.isfinite(y)
    pace, start = map(float, np.polyfit(frame, x, 1, w=np.where(known, 1.0, PARTLY)))
    off = float(np.sqrt(np.mean((x - start - pace * frame) ** 2)))
    lean, height = 0.0, float(np.median(y[known]))
    if known.sum() > FEWEST:
        slope = float(np.polyfit(frame[known], y[known], 1)[0])
        if abs(slope) > LEANS * abs(pace):
            lean, height = slope, float(np.median(y[known] - slope * frame[known]))
    return Path(start, pace, height, lean, width, off)
