"""Balls on a plain: uniform motion, elastic collision and parabola, as in PhyWorld (Kang et al. 2024, 2411.02385).

The units and ranges are theirs, so that errors compare: a world 10 x 10 seen whole, x to the right and y up, a frame
every 0.1 s, discs of mass radius squared, gravity 2.5 where there is any, one red ball or a red and a blue one, on
white. Not as there: the motion is solved in closed form instead of by Box2D, the edge of a ball is one pixel wide
whatever its size, and a clip has 33 frames (1 + 4k, for causal latents) instead of 32. A scene is a pure function of
its seed, kind and split, a clip one of its scene.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray
from torch import Tensor

from carrara.core.config import choose, from_dict
from carrara.core.types import VideoShape

Floats = NDArray[np.float64]

WORLD = 10.0
FPS = 10.0
FRAMES = 33
GRAVITY = 2.5
COLOURS = ((255, 0, 0), (0, 0, 255))  # of the first ball and the second
BACKGROUND = (255, 255, 255)
KINDS = ("uniform", "collision", "parabola")
SPLITS = ("in", "out")  # of the distribution that training draws from
OUTSIDE = ("radius", "velocity", "both")  # what lies outside, in the split "out"

RADII, SPEEDS = (0.7, 1.5), (1.0, 4.0)
OUTER_RADII, OUTER_SPEEDS = ((0.3, 0.6), (1.5, 2.0)), ((0.0, 0.8), (4.5, 6.0))
MARGIN = 0.5  # between a ball's edge and the world's at the start, above and below
INSIDE_FRAMES = 24  # a single ball starts where it stays inside for so long, if there is such a place
BEFORE_FRAMES, AFTER_FRAMES = 8, 8  # frames before a collision; frames of the clip after it
SEEN_AFTER = 3  # frames after a collision in which both balls are still wholly inside


@dataclass(frozen=True)
class Ball:
    """Radius, centre and velocity at time 0, in world units and world units per second, y up."""

    radius: float
    x: float
    y: float
    vx: float = 0.0
    vy: float = 0.0


@dataclass(frozen=True)
class BallScene:
    """One or two balls; those of a collision meet on a horizontal line. outside: one of OUTSIDE, "" for none."""

    kind: str
    balls: tuple[Ball, ...]
    outside: str = ""

    def __post_init__(self) -> None:
        choose("kind", self.kind, dict.fromkeys(KINDS))
        balls = tuple(from_dict(Ball, ball, "balls") if isinstance(ball, dict) else ball for ball in self.balls)
        object.__setattr__(self, "balls", balls)  # JSON gives mappings
        wanted = 2 if self.kind == "collision" else 1
        if len(balls) != wanted:
            raise ValueError(f"{len(balls)} balls: a {self.kind} has {wanted}")

    @property
    def contact(self) -> float:
        """When the balls of a collision touch, seconds; infinite where they never do."""
        if self.kind != "collision":
            return np.inf
        left, right = self.balls
        closing = left.vx - right.vx
        gap = right.x - left.x - left.radius - right.radius
        return gap / closing if closing > 0 else np.inf


@dataclass(frozen=True)
class BallTruth:
    """What truly happens: times `t` in seconds, radius `a`, position and velocity `a t 2`, contact in seconds."""

    times: Floats
    radius: Floats
    position: Floats
    velocity: Floats
    contact: float = np.inf

    @cached_property
    def inside(self) -> NDArray[np.bool_]:
        """`a t`: the whole ball is within the world."""
        reach = self.radius[:, None, None]
        within: NDArray[np.bool_] = np.all((self.position >= reach) & (self.position <= WORLD - reach), axis=-1)
        return within


# --- scenes --------------------------------------------------------------------------------------------------------


def sample_balls(seed: int, kind: str, split: str = "in") -> BallScene:
    """Draw a scene; the same arguments always give the same one.

    In the split "out", radii, velocities or both of all balls come from PhyWorld's outer ranges, below or above. Pairs
    that have no room for `BEFORE_FRAMES` before they meet, or whose impact cannot be seen, are drawn again.
    """
    choose("kind", kind, dict.fromkeys(KINDS))
    choose("split", split, dict.fromkeys(SPLITS))
    if seed < 0:
        raise ValueError(f"seed={seed}: must be a whole number from 0")
    rng = np.random.default_rng((seed, KINDS.index(kind), SPLITS.index(split)))
    outside = str(rng.choice(OUTSIDE)) if split == "out" else ""

    def draw(inner: tuple[float, float], outer: Sequence[tuple[float, float]], beyond: bool) -> float:
        return float(rng.uniform(*(outer[int(rng.integers(2))] if beyond else inner)))

    balls: tuple[Ball, ...] | None
    while True:
        count = 2 if kind == "collision" else 1
        radii = [draw(RADII, OUTER_RADII, outside in ("radius", "both")) for _ in range(count)]
        speeds = [draw(SPEEDS, OUTER_SPEEDS, outside in ("velocity", "both")) for _ in range(count)]
        if kind == "collision":
            balls = _colliding(rng, radii, speeds)
        else:
            balls = (_single(rng, radii[0], speeds[0], kind == "parabola"),)
        if balls is None:
            continue
        scene = BallScene(kind, balls, outside)
        if kind != "collision" or _impact_is_seen(scene):
            return scene


def _single(rng: np.random.Generator, radius: float, speed: float, thrown: bool) -> Ball:
    last = WORLD - INSIDE_FRAMES / FPS * speed - radius
    x = rng.uniform(radius, last if last >= radius else radius + 0.5)
    top = WORLD - MARGIN - radius
    y = rng.uniform(top - 1.0 if thrown else radius + MARGIN, top)
    return Ball(radius, float(x), float(y), speed)


def _colliding(rng: np.random.Generator, radii: Sequence[float], speeds: Sequence[float]) -> tuple[Ball, Ball] | None:
    touching, closing = sum(radii), sum(speeds)
    near = touching + BEFORE_FRAMES / FPS * closing
    far = min(touching + (FRAMES - AFTER_FRAMES) / FPS * closing, WORLD - touching)
    if near > far:
        return None
    apart = rng.uniform(near, far)
    x = rng.uniform(radii[0], WORLD - radii[1] - apart)
    reach = max(radii) + MARGIN
    y = float(rng.uniform(reach, WORLD - reach))
    return Ball(radii[0], float(x), y, speeds[0]), Ball(radii[1], float(x + apart), y, -speeds[1])


def _impact_is_seen(scene: BallScene) -> bool:
    truth = simulate_balls(scene)
    return bool((truth.inside.all(0) & (truth.times > truth.contact)).sum() >= SEEN_AFTER)


def caption(scene: BallScene) -> str:
    """A plain sentence, the same for all scenes of a kind: what happens is told by the known frames."""
    return {
        "uniform": "a red ball moves steadily to the right",
        "collision": "a red ball and a blue ball collide",
        "parabola": "a red ball is thrown to the right and falls",
    }[scene.kind]


# --- motion --------------------------------------------------------------------------------------------------------


def simulate_balls(scene: BallScene, frames: int = FRAMES, fps: float = FPS, through: bool = False) -> BallTruth:
    """The exact tracks. `through` lets the balls of a collision pass through each other: not physics, but a control."""
    if frames < 1 or not fps > 0:
        raise ValueError(f"frames={frames}, fps={fps}: both must be above 0")
    times = np.arange(frames) / fps
    start = np.array([(ball.x, ball.y) for ball in scene.balls])[:, None]
    before = np.array([(ball.vx, ball.vy) for ball in scene.balls])
    after, contact = before, scene.contact
    if np.isfinite(contact) and not through:
        after = before.copy()
        after[:, 0] = elastic([ball.radius**2 for ball in scene.balls], before[:, 0])
    since = np.clip(times - contact, 0, None)[:, None]  # seconds after the collision
    fall = np.array([0.0, -GRAVITY if scene.kind == "parabola" else 0.0])
    clock = times[:, None]
    position = start + before[:, None] * (clock - since) + after[:, None] * since + fall * clock**2 / 2
    velocity = np.where(since > 0, after[:, None], before[:, None]) + fall * clock
    return BallTruth(times, np.array([ball.radius for ball in scene.balls]), position, velocity, contact)


def elastic(mass: Sequence[float], velocity: Floats) -> Floats:
    """The velocities of two bodies on a line after an elastic impact: momentum and energy stay."""
    common = float(np.dot(mass, velocity)) / sum(mass)
    return 2 * common - velocity


# --- pictures ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RenderedBalls:
    """video: uint8 `b t h w 3`; mask: uint8 `b t h w`, 1 + the number of the ball seen there, 0 for none."""

    video: Tensor
    mask: Tensor
    truths: tuple[BallTruth, ...]


def render_balls(
    scenes: Sequence[BallScene], shape: VideoShape, fps: float = FPS, device: str | torch.device = "cpu", first: int = 0
) -> RenderedBalls:
    """Render a batch from frame number `first` on; the truths are of the frames shown."""
    if not scenes:
        raise ValueError("no scenes to render; give at least one")
    truths = [cut(simulate_balls(scene, first + shape.frames, fps), first) for scene in scenes]
    video, mask = draw_balls(truths, shape.height, shape.width, device=device)
    return RenderedBalls(video, mask, tuple(truths))


def cut(truth: BallTruth, first: int) -> BallTruth:
    """The truth from frame number `first` on."""
    rest = slice(first, None)
    return BallTruth(truth.times[rest], truth.radius, truth.position[:, rest], truth.velocity[:, rest], truth.contact)


def draw_balls(
    truths: Sequence[BallTruth],
    height: int,
    width: int,
    colours: Floats | None = None,
    device: str | torch.device = "cpu",
) -> tuple[Tensor, Tensor]:
    """Video uint8 `b t h w 3` and mask uint8 `b t h w` of balls where their tracks say; NaN where one is absent.

    The world fills the frame's shorter side and stands in the middle of the longer one. colours: `a t 3` in 0 to 255
    for all clips, COLOURS if None. A pixel on the edge is covered as far as the ball reaches into it.
    """
    if min(height, width) < 16:
        raise ValueError(f"{width}x{height}: too small to show anything; 16 pixels a side at least")
    unit = min(height, width) / WORLD
    frames = len(truths[0].times)
    x = (torch.arange(width, device=device) + 0.5 - width / 2) / unit + WORLD / 2
    y = WORLD / 2 - (torch.arange(height, device=device) + 0.5 - height / 2) / unit
    size = (len(truths), frames, height, width)
    mask = torch.zeros(size, dtype=torch.uint8, device=device)
    channels = [torch.full(size, float(value), device=device) for value in BACKGROUND]
    for number in range(max(len(truth.radius) for truth in truths)):
        absent = np.full((frames, 2), np.nan)
        tracks = np.stack([t.position[number] if len(t.radius) > number else absent for t in truths])
        radii = [t.radius[number] if len(t.radius) > number else 1.0 for t in truths]
        centre = torch.from_numpy(tracks).to(device, torch.float32)
        radius = rearrange(torch.tensor(radii, dtype=torch.float32, device=device), "b -> b 1 1 1")
        across = rearrange((centre[..., :1] - x).square(), "b t w -> b t 1 w")
        down = rearrange((centre[..., 1:] - y).square(), "b t h -> b t h 1")
        cover = (across + down).sqrt_().sub_(radius).mul_(-unit).add_(0.5).nan_to_num_(0).clamp_(0, 1)
        chosen = np.broadcast_to(COLOURS[number], (frames, 3)) if colours is None else colours[number]
        for channel, ink in zip(channels, torch.tensor(np.asarray(chosen, np.float32).T, device=device)):
            channel.add_(cover * (rearrange(ink, "t -> t 1 1") - channel))
        mask.masked_fill_(cover > 0.5, number + 1)
    return torch.stack([channel.round_().to(torch.uint8) for channel in channels], dim=-1), mask
