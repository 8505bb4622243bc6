"""The vocabulary of the pond and its values: scenes, which are small enough to write by hand, and their truth.

Not standard: the world knows no pixels. Its origin is the centre of the frame, x points right, y points down, and the
frame's shorter side is 1 long, so a square frame spans [-0.5, 0.5] both ways and a wider one only shows more of the
same world. Time is in seconds. A motion fills `NOMINAL_SECONDS` and goes on sensibly after that, so one scene renders
at any size, frame count and rate.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from carrara.core.config import choose, from_dict

Floats = NDArray[np.float64]

ACTORS = ("ball", "box", "star", "ring", "triangle", "heart", "frog", "bird", "fish", "car")

COLOURS: dict[str, tuple[int, int, int]] = {  # sRGB; pairwise at least 30 CIELAB units apart
    "red": (220, 38, 38),
    "orange": (255, 140, 16),
    "yellow": (255, 222, 40),
    "green": (22, 128, 60),
    "blue": (38, 76, 210),
    "purple": (150, 50, 190),
    "pink": (255, 128, 190),
    "brown": (118, 68, 34),
    "white": (250, 250, 250),
    "black": (24, 24, 28),
}

SIZES: dict[str, float] = {
    "small": 0.18,
    "large": 0.32,
}  # the actor's extent; of one that grows or shrinks, the smallest

MOTIONS = (
    "left",
    "right",
    "up",
    "down",
    "bounces",
    "jumps",
    "orbits",
    "spins",
    "grows",
    "shrinks",
    "flies",  # takes flight: rests, then rises aslant
    "swims",
)

BACKGROUNDS: dict[str, tuple[tuple[int, int, int], tuple[int, int, int]]] = {  # sRGB behind the actors: top, bottom
    "sky": ((90, 165, 235), (126, 192, 242)),
    "pond": ((62, 156, 156), (84, 176, 172)),
    "meadow": ((170, 214, 100), (150, 200, 84)),
    "night": ((26, 30, 72), (48, 52, 104)),
    "sand": ((226, 198, 140), (212, 180, 120)),
    "plain": ((188, 188, 200), (178, 178, 190)),
}

RELATIONS = ("follows", "left of", "passes behind")  # what actor 0 does to actor 1
WALLS = ("hides", "stops")
CAMERAS = ("still", "pan left", "pan right", "zoom in", "zoom out")

FLOOR = 0.36  # y of the line that things stand on
NOMINAL_SECONDS = 2.0  # 17 frames at 8 frames per second, first to last
GRAVITY = 6.0  # per second squared
GROWTH = 1.9  # largest over smallest scale of an actor that grows or shrinks
STILTS = 1.2  # how far stilts lift a frog, in its radii
PAN = 0.25  # how far the camera travels in a pan
ZOOM = 1.35  # the scale of the picture at the near end of a zoom
WALL_TOP = -0.42  # y of a wall's upper edge; the lower one stands on the floor
EVENTS = (
    "bounces",
    "leaves the ground",
    "lands",
    "hidden",
    "reappears",
    "stopped",
)


@dataclass(frozen=True)
class Actor:
    """One actor and how it moves.

    x, y: where the centre is at time 0 (for orbits: the centre of the circle). What starts on the floor (bounces falls
    to it, jumps and flies rest on it) is put there by the simulator, whatever y says, except that bounces starts at y.
    speed: a factor on the motion's own pace; phase: radians, where an orbit, a spin or a wiggle begins;
    heading: 1 to the right, -1 to the left, for what moves sideways (left and right imply theirs) or turns.
    """

    kind: str
    colour: str
    size: str = "small"
    motion: str = "bounces"
    stilts: bool = False
    x: float = 0.0
    y: float = 0.0
    speed: float = 1.0
    phase: float = 0.0
    heading: int = 1

    def __post_init__(self) -> None:
        choose("actor", self.kind, dict.fromkeys(ACTORS))
        choose("colour", self.colour, COLOURS)
        choose("size", self.size, SIZES)
        choose("motion", self.motion, dict.fromkeys(MOTIONS))
        if self.heading not in (-1, 1):
            raise ValueError(f"heading={self.heading}: must be 1 (right) or -1 (left)")
        if not self.speed > 0:
            raise ValueError(f"speed={self.speed}: must be above 0")

    @property
    def radius(self) -> float:
        """Half the extent at scale 1, in world units."""
        return SIZES[self.size] / 2

    @property
    def direction(self) -> int:
        """Which way it faces at time 0: 1 right, -1 left."""
        return {"left": -1, "right": 1}.get(self.motion, self.heading)


@dataclass(frozen=True)
class Scene:
    """Everything that happens in a clip; a pure value that can be written as JSON.

    relation: what actors[0] does to actors[1]. Later actors are drawn in front of earlier ones.
    wall: "hides" stands in front of everything, "stops" halts what moves left or right into it; wall_x is its centre,
    wall_width its width. layout: an integer that varies clouds, stars, grass. start: the time of the first frame in
    seconds. still: time does not run, every frame is the one at `start` (an image; captions leave the motion out).
    """

    background: str
    actors: tuple[Actor, ...]
    relation: str | None = None
    wall: str | None = None
    wall_x: float = 0.0
    wall_width: float = 0.12
    camera: str = "still"
    layout: int = 0
    start: float = 0.0
    still: bool = False

    def __post_init__(self) -> None:
        actors = tuple(from_dict(Actor, a, "actors") if isinstance(a, Mapping) else a for a in self.actors)
        object.__setattr__(self, "actors", actors)  # JSON gives mappings
        choose("background", self.background, BACKGROUNDS)
        choose("camera", self.camera, dict.fromkeys(CAMERAS))
        if self.relation is not None:
            choose("relation", self.relation, dict.fromkeys(RELATIONS))
        if self.wall is not None:
            choose("wall", self.wall, dict.fromkeys(WALLS))
        if not 1 <= len(actors) <= 2:
            raise ValueError(f"{len(actors)} actors: a scene has one or two")
        if self.relation is not None and len(actors) != 2:
            raise ValueError(f"relation {self.relation!r} needs two actors, found {len(actors)}")

    def with_actor(self, index: int, **changes: Any) -> Scene:
        """The same scene with one actor changed."""
        actors = list(self.actors)
        actors[index] = replace(actors[index], **changes)
        return replace(self, actors=tuple(actors))


@dataclass(frozen=True)
class Event:
    """Something that happens at a moment: `name` is one of EVENTS, `time` in seconds, `actor` an index into actors."""

    name: str
    time: float
    actor: int


@dataclass(frozen=True)
class Truth:
    """What truly happens, per actor (a) and frame (t); float64 arrays, lengths in world units, y down.

    times: `t`, seconds. position: `a t 2` world x, y of the centre. angle: `a t` radians, clockwise on the screen.
    scale: `a t`, 1 at the actor's nominal size. heading: `a t`, 1 or -1. squash: `a t 2`, extra factors in x and y.
    limb: `a t`, the phase of wings, tails, legs or wheels in radians. contact: `a t` bool, touches the floor or a wall.
    camera: `t 3`, the world point in the middle of the frame, and the zoom.
    screen: `a t 2`, the centre as the camera sees it, from the frame's middle in units of the frame's shorter side.
    box: `a t 4` left, top, right, bottom on the screen, whole even where hidden. visible: `a t`, the fraction of the
    actor's area inside the frame and not covered by a wall or another actor. events: in order of time.
    """

    times: Floats
    position: Floats
    angle: Floats
    scale: Floats
    heading: Floats
    squash: Floats
    limb: Floats
    contact: NDArray[np.bool_]
    camera: Floats
    screen: Floats
    box: Floats
    visible: Floats
    events: tuple[Event, ...] = ()

    @cached_property
    def frames(self) -> int:
        return len(self.times)

    def plain(self) -> dict[str, Any]:
        """As JSON values: nested lists, rounded to a millionth."""
        values: dict[str, Any] = {
            name: np.round(getattr(self, name).astype(float), 6).tolist()
            for name in ("times", "position", "angle", "scale", "heading", "camera", "screen", "box", "visible")
        }
        values["contact"] = self.contact.tolist()
        values["events"] = [{"name": e.name, "time": round(e.time, 6), "actor": e.actor} for e in self.events]
        return values


def lab(rgb: tuple[int, int, int]) -> Floats:
    """sRGB in 0-255 to CIELAB under D65 (IEC 61966-2-1, CIE 15)."""
    value = np.asarray(rgb, float) / 255
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    matrix = np.array(
        [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
    )
    x, y, z = matrix @ linear / np.array([0.95047, 1.0, 1.08883])
    f = [np.cbrt(v) if v > 216 / 24389 else (24389 / 27 * v + 16) / 116 for v in (x, y, z)]
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def colour_distance(a: tuple[int, int, int], b: tuple[int, int, int]) -> float:
    """CIE 1976 colour difference of two sRGB values."""
    return float(np.linalg.norm(lab(a) - lab(b)))


def contrast(colour: str, background: str) -> float:
    """How far an actor's colour is from the nearest colour that the background has behind it."""
    return min(colour_distance(COLOURS[colour], shade) for shade in BACKGROUNDS[background])
