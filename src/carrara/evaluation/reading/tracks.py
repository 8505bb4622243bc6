"""What an actor does, read from its track: position, size and turning over time, in world units and seconds.

Each rule looks for what defines a motion in the pond (`data/pond/motions.py`): a parabola and its hits, a circle, a
straight path, a wave on it, a rise from rest, a growth. Thresholds lie about halfway between what the two motions
that they part show on fresh renders, never on generated clips.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from carrara.evaluation.reading.colours import Array

Floats = NDArray[np.float64]

FEWEST = 3  # frames with a position, below which there is no motion to read; they must span half of the clip
FEW_LOOKS = 6  # frames below which neither a circle nor a turn can be told
STILL = 0.055  # world units of travel below which an actor stays in its place
GROWN = 1.33  # last size over first above which it grows, or below whose inverse it shrinks (the pond's: 1.9)
WAVE = 0.024  # amplitude of a swimmer's wave (the pond's: 0.05)
ACROSS = 0.1  # sideways travel above which a motion is not merely up or down
HOP = 0.12  # height above which a path has left the ground
FALL = 2.4  # downward acceleration above which something is in free fall (the pond's: 6)
QUIET = 1.0  # CIELAB units about the middle over time, below which an appearance does not change
TURNED = 0.45  # correlation from frame to frame, turned back, above which a change is a turn
RINGS, SPOKES = 8, 72  # samples of an appearance around its centre


@dataclass(frozen=True)
class Track:
    """times: seconds `t`; x, y (down), radius: world units `t`, NaN where not seen; turning: radians per frame, NaN if
    it cannot be told; origin of x and y is the world's."""

    times: Floats
    x: Floats
    y: Floats
    radius: Floats
    turning: float = math.nan


def smooth(values: Floats) -> Floats:
    """A running median of three that keeps the ends."""
    return ndimage.median_filter(values, size=3, mode="nearest") if len(values) >= 3 else values


def read_motion(track: Track) -> str | None:
    """The motion of a track, None if none of the twelve fits."""
    seen = np.isfinite(track.x) & np.isfinite(track.y) & np.isfinite(track.radius)
    t = track.times[seen]
    if len(t) < FEWEST or t[-1] - t[0] < 0.5 * (track.times[-1] - track.times[0]):
        return None
    x, y, radius = track.x[seen], track.y[seen], smooth(track.radius[seen])
    wide, high = float(np.ptp(x)), float(np.ptp(y))
    if grown := read_growth(t, radius, wide, high):
        return grown
    if max(wide, high) < STILL:
        return "spins" if abs(track.turning) > math.radians(7) else None
    if is_orbit(x, y):
        return "orbits"
    if wide < ACROSS and high > STILL:
        return read_vertical(t, y)
    return read_sideways(t, x, y)


def read_growth(t: Floats, radius: Floats, wide: float, high: float) -> str | None:
    if max(wide, high) > 0.16:
        return None
    slope, start = np.polyfit(t, np.log(radius), 1)
    ratio = math.exp(slope * (t[-1] - t[0]))
    steady = np.std(np.log(radius) - (slope * t + start)) < 0.5 * abs(math.log(ratio)) + 1e-9
    if not steady:
        return None
    return "grows" if ratio > GROWN else "shrinks" if ratio < 1 / GROWN else None


def is_orbit(x: Floats, y: Floats) -> bool:
    """Points on a circle that is gone round in one direction: fitted by Kasa's least squares."""
    if len(x) < FEW_LOOKS:
        return False
    matrix = np.stack([x, y, np.ones_like(x)], axis=1)
    (a, b, c), *_ = np.linalg.lstsq(matrix, x**2 + y**2, rcond=None)
    radius = math.sqrt(max(c + a * a / 4 + b * b / 4, 0))
    if not 0.12 < radius < 0.36:
        return False
    off = np.hypot(x - a / 2, y - b / 2) - radius
    turn = np.unwrap(np.arctan2(y - b / 2, x - a / 2))
    steps = np.diff(turn)
    onward = np.mean(np.sign(steps) == np.sign(turn[-1] - turn[0]))
    return bool(np.sqrt(np.mean(off**2)) < 0.16 * radius and abs(turn[-1] - turn[0]) > 2.4 and onward > 0.8)


def read_vertical(t: Floats, y: Floats) -> str | None:
    """Up, down or bounces: what is in free fall bends its path, what goes up or down turns only at an edge."""
    step = np.diff(y) / np.diff(t)
    bend = np.diff(step) / ((t[2:] - t[:-2]) / 2)
    falling = np.mean(bend > FALL)
    hits = np.mean(bend < -2 * FALL)
    if falling > 0.4 or (falling > 0.3 and hits > 0.08):
        return "bounces"
    early = step[: max(3, len(step) // 3)]
    if abs(np.median(early)) < 0.04:
        return None
    return "down" if np.median(early) > 0 else "up"


def read_sideways(t: Floats, x: Floats, y: Floats) -> str | None:
    """Left, right, swims, jumps or flies."""
    climb = float(np.median(y[:2]) - np.median(y[-2:]))
    floor = float(max(np.median(y[:3]), np.median(y[-3:])))
    peak = floor - float(np.min(y))
    high = np.flatnonzero(y < floor - HOP)
    landed = bool(len(high)) and bool((y[high[0] :] > floor - HOP / 2).any())
    if climb > 0.2 and not landed:
        back = float(np.min(y)) - float(np.median(y[-2:]))  # how far it has come down again: 0 or below
        return "flies" if back > -0.12 else "jumps"
    if peak > HOP:
        down = np.mean(np.diff(np.diff(y)) / np.mean(np.diff(t)) ** 2 > FALL)
        return "jumps" if down > 0.25 else None
    if len(t) >= FEW_LOOKS and wave_amplitude(t, y) > WAVE:
        return "swims"
    step = np.diff(x)
    early = step[: max(4, len(step) // 2)]
    way = float(np.median(early))
    if abs(way) < 0.004:
        way = float(x[-1] - x[0])
    return "right" if way > 0 else "left"


def wave_amplitude(t: Floats, y: Floats) -> float:
    """Of a sine of about 1 Hz on a straight line, world units: the largest over frequencies near it."""
    best, amplitude = math.inf, 0.0
    for frequency in (0.8, 0.9, 1.0, 1.1, 1.2):
        turn = 2 * math.pi * frequency * t
        matrix = np.stack([np.ones_like(t), t, np.sin(turn), np.cos(turn)], axis=1)
        found, *_ = np.linalg.lstsq(matrix, y, rcond=None)
        rest = float(np.sum((matrix @ found - y) ** 2))
        if rest < best:
            best, amplitude = rest, float(np.hypot(found[2], found[3]))
    return amplitude


def polar(picture: Array, row: float, column: float, radius: float) -> Array:
    """An appearance `h w c` around a point as `rings spokes c`, out to a radius in pixels."""
    angle = np.arange(SPOKES) * 2 * math.pi / SPOKES
    out = (np.arange(RINGS) + 0.5) / RINGS * radius
    at = [row + out[:, None] * np.sin(angle), column + out[:, None] * np.cos(angle)]
    channels = [ndimage.map_coordinates(picture[..., c], at, order=1, mode="nearest") for c in range(picture.shape[-1])]
    return np.stack(channels, axis=-1)


def turning(looks: list[Array]) -> float:
    """Radians per frame (clockwise on the screen) by which polar appearances `rings spokes c` turn; 0 if they stay.

    What never changes (a ball's shading, the ground behind a ring) is taken out as the middle over time; of the rest,
    the shift of the spokes that best carries every frame to the next. The last channel says how much is the actor's.
    """
    if len(looks) < FEW_LOOKS:
        return math.nan
    stack = np.stack(looks)
    moving, own = stack[..., :-1] - np.median(stack[..., :-1], axis=0), stack[..., -1:]
    moving = moving * np.sqrt(np.minimum(own, 1) * (np.arange(RINGS) + 0.5)[:, None, None] / RINGS)
    if float(np.median(np.linalg.norm(moving, axis=-1).mean(axis=(1, 2)))) < QUIET:
        return 0.0
    energy = np.maximum((moving**2).sum(axis=(1, 2, 3)), 1e-6)
    reach = SPOKES // 6  # 60 degrees a frame
    alike = []
    for shift in range(-reach, reach + 1):
        product = (np.roll(moving[:-1], shift, axis=2) * moving[1:]).sum(axis=(1, 2, 3))
        alike.append(float(np.median(product / np.sqrt(energy[:-1] * energy[1:]))))
    best = int(np.argmax(alike))
    if alike[best] < TURNED or alike[best] < alike[reach] + 0.05:  # turning does not explain what changes
        return 0.0
    return (best - reach) * 2 * math.pi / SPOKES
