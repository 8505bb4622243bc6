"""What an actor's body does, alone in the world, as functions of time.

Each motion returns a `Track`: position and pose at the given times, and the moments when something happens. A motion
has no memory: any time can be asked for directly, so a clip at any frame rate samples the same movement.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from carrara.data.pond.shapes import Outline, outline, shape_name
from carrara.data.pond.world import FLOOR, GRAVITY, GROWTH, NOMINAL_SECONDS, Actor, Floats

PACE = 0.25  # units per second of what moves straight, at speed 1
ORBIT = 0.24  # radius of an orbit
JUMP_HEIGHT = 0.27
JUMP_LENGTH = 0.26
CROUCH, REST = 0.25, 0.15  # seconds before and after each jump
AIR = math.sqrt(8 * JUMP_HEIGHT / GRAVITY)
PERCH = 0.4  # seconds before taking flight
CLIMB, GLIDE = 0.5, 0.34  # how far up and sideways a flight goes
RESTITUTION = 0.95  # of the speed at each bounce


@dataclass
class Track:
    """Arrays over the times asked for (t), filled in by a motion; see world.Truth for their meaning."""

    x: Floats
    y: Floats
    angle: Floats
    scale: Floats
    heading: Floats
    squash: Floats
    limb: Floats
    contact: np.ndarray
    events: list[tuple[str, float]] = field(default_factory=list)


def rest_height(actor: Actor) -> float:
    """The y of the centre of an actor that stands on the floor at scale 1."""
    return FLOOR - actor.radius * outline(shape_name(actor.kind, actor.stilts)).foot


def reflect(position: Floats, low: float, high: float) -> tuple[Floats, Floats]:
    """Fold a straight path into [low, high]; also the sign of the direction after folding."""
    span = max(high - low, 1e-9)
    turn = np.mod(position - low, 2 * span)
    return low + np.where(turn > span, 2 * span - turn, turn), np.where(turn > span, -1.0, 1.0)


def sideways(actor: Actor, shape: Outline, travel: Floats) -> tuple[Floats, Floats]:
    """x and heading of an actor that goes `travel` far in its direction and turns back at the edges."""
    edge = max(0.5 - actor.radius * shape.half_width, abs(actor.x) + 1e-6)
    x, sign = reflect(actor.x + actor.direction * travel, -edge, edge)
    return x, sign * actor.direction


def stop_time(actor: Actor, wall_x: float, wall_width: float) -> float | None:
    """When something that moves left or right reaches the wall in front of it; None if it never does."""
    if actor.motion not in ("left", "right"):
        return None
    reach = actor.radius * outline(shape_name(actor.kind, actor.stilts)).half_width + wall_width / 2
    gap = (wall_x - actor.x) * actor.direction - reach
    return gap / (PACE * actor.speed) if gap >= 0 else None


def move(actor: Actor, times: Floats) -> Track:
    """The actor's track at these times (seconds, `t`)."""
    shape = outline(shape_name(actor.kind, actor.stilts))
    one = np.ones_like(times)
    track = Track(
        x=actor.x * one,
        y=actor.y * one,
        angle=0 * one,
        scale=one.copy(),
        heading=actor.direction * one,
        squash=np.ones((len(times), 2)),
        limb=0 * one,
        contact=np.zeros(len(times), bool),
    )
    ground = rest_height(actor)
    match actor.motion:
        case "left" | "right":
            straight(actor, shape, times, track, ground)
        case "up" | "down":
            sign = 1 if actor.motion == "down" else -1
            top = min(-0.5 + actor.radius * shape.reach[1], actor.y - 1e-6)
            track.y, _ = reflect(actor.y + sign * PACE * actor.speed * times, top, max(ground, actor.y + 1e-6))
            track.limb = beat(actor, times)
        case "bounces":
            bounce(actor, shape, times, track, ground)
        case "jumps":
            jump(actor, shape, times, track, ground)
        case "orbits":
            turn = actor.phase + actor.heading * math.pi * actor.speed * times
            track.x, track.y = actor.x + ORBIT * np.cos(turn), actor.y + ORBIT * np.sin(turn)
            track.limb = beat(actor, times)
        case "spins":
            track.angle = actor.phase + actor.heading * math.pi * actor.speed * times
        case "grows" | "shrinks":
            part = np.clip(times / NOMINAL_SECONDS, 0, 1)
            track.scale = 1 + (GROWTH - 1) * (part if actor.motion == "grows" else 1 - part)
        case "flies":
            fly(actor, shape, times, track, ground)
        case "swims":
            track.x, track.heading = sideways(actor, shape, PACE * actor.speed * times)
            wave = 2 * math.pi * times + actor.phase
            track.y = actor.y + 0.05 * np.sin(wave)
            slope = 0.05 * 2 * math.pi * np.cos(wave) / (PACE * actor.speed)
            track.angle = 0.35 * np.arctan(slope) * track.heading
            track.limb = 2 * math.pi * 1.75 * times + actor.phase
    return track


def beat(actor: Actor, times: Floats) -> Floats:
    """The limb phase of something in the air: wings and tails keep beating, the rest hangs still."""
    return 2 * math.pi * 2.25 * times + actor.phase if actor.kind in ("bird", "fish") else 0 * times


def straight(actor: Actor, shape: Outline, times: Floats, track: Track, ground: float) -> None:
    travel = PACE * actor.speed * times
    track.x, track.heading = sideways(actor, shape, travel)
    track.contact[:] = abs(actor.y - ground) < 1e-3
    if actor.kind == "car":
        track.limb = travel / (0.32 * actor.radius)
    elif actor.kind in ("bird", "fish"):
        track.limb = beat(actor, times)
    elif actor.kind == "frog":
        track.limb = 2 * math.pi * 1.5 * times
    elif actor.kind == "ball" and track.contact.any():
        track.angle = (track.x - actor.x) / actor.radius  # it rolls


def impacts(height: float, until: float) -> list[float]:
    """When something dropped from this height hits the floor, up to a time; the bounces die out in the end."""
    fall = math.sqrt(2 * height / GRAVITY)
    moments, flight = [fall], 2 * fall * RESTITUTION
    while moments[-1] <= until and flight > 0.1:
        moments.append(moments[-1] + flight)
        flight *= RESTITUTION
    return moments


def bounce(actor: Actor, shape: Outline, times: Floats, track: Track, ground: float) -> None:
    height = max(ground - actor.y, 1e-3)
    hits = np.array(impacts(height, float(times.max(initial=0.0)) + 1.0))
    last = np.searchsorted(hits, times, side="right") - 1  # the hit that this flight began with; -1 while falling
    since = times - np.where(last < 0, -hits[0], hits[np.maximum(last, 0)])  # as if it had come up from the floor
    speed = GRAVITY * hits[0] * RESTITUTION ** (last + 1)
    lift = np.maximum(speed * since - GRAVITY * since**2 / 2, 0.0)
    nearest = np.abs(times[:, None] - hits[None, :]).min(axis=1)
    press = 0.24 * np.clip(1 - nearest / 0.06, 0, 1)
    track.squash = np.stack([1 + press, 1 - press], axis=1)
    track.y = ground - lift + press * shape.foot * actor.radius  # pressed flat, it keeps its foot on the floor
    track.contact = nearest < 0.06
    track.limb = beat(actor, times) * (lift > 0.02)
    track.events = [("bounces", float(hit)) for hit in hits]


def jump(actor: Actor, shape: Outline, times: Floats, track: Track, ground: float) -> None:
    period = CROUCH + AIR + REST
    count = np.floor(times / period)
    clock = times - count * period
    part = np.clip((clock - CROUCH) / AIR, 0, 1)
    flight = np.clip(clock - CROUCH, 0, AIR)
    there, sign = reflect(count + part, 0, 2)  # two jumps there, two back
    track.x = actor.x + actor.direction * JUMP_LENGTH * actor.speed * there
    track.heading = sign * actor.direction
    lift = GRAVITY * flight * (AIR - flight) / 2
    crouch = np.where(clock < CROUCH, np.sin(math.pi * np.clip(clock / CROUCH, 0, 1)), 0)
    landing = np.where(clock > CROUCH + AIR, 1 - (clock - CROUCH - AIR) / REST, 0)
    press = 0.3 * crouch + 0.15 * landing
    track.squash = np.stack([1 + 0.6 * press, 1 - press], axis=1)
    track.y = ground - lift + press * shape.foot * actor.radius
    track.contact = (part <= 0) | (part >= 1)
    track.limb = math.pi * np.sin(math.pi * part)
    for n in range(int(float(times.max(initial=0.0)) / period) + 1):
        track.events.append(("leaves the ground", n * period + CROUCH))
        track.events.append(("lands", n * period + CROUCH + AIR))


def fly(actor: Actor, shape: Outline, times: Floats, track: Track, ground: float) -> None:
    climb = (NOMINAL_SECONDS - PERCH) / actor.speed
    part = np.clip((times - PERCH) / climb, 0, 1)
    after = np.maximum(times - PERCH - climb, 0)  # at the top it cruises to and fro
    travel = GLIDE * (part**1.5 + 1.5 / climb * after)
    track.x, track.heading = sideways(actor, shape, travel)
    track.y = ground - CLIMB * part**1.5 + 0.02 * np.sin(2 * math.pi * 0.8 * after)
    track.angle = -0.4 * np.sin(math.pi * np.clip(part, 0, 1)) * track.heading
    airborne = times > PERCH
    track.limb = np.where(airborne, 2 * math.pi * 2.25 * (times - PERCH), 0.0)
    if actor.kind == "frog":
        track.limb = np.where(airborne, math.pi, 0.0)  # it trails its legs
    track.contact = ~airborne
    track.events = [("leaves the ground", PERCH)]
