"""The six backgrounds and the walls, painted as functions of world coordinates.

A background is what lies behind the actors in the colours that world.BACKGROUNDS promises, a floor strip below
world.FLOOR, and enough texture that a camera's movement shows. Arrays are `n h w`; x is `n 1 w` and y `n h 1`, so what
depends on one coordinate alone costs nearly nothing. Colours are sRGB in [0, 1], blended as they are (not linear).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from carrara.data.pond.world import BACKGROUNDS, FLOOR, WALL_TOP

Colour = tuple[float, float, float]
DRAWS = 96  # random numbers per layout
REACH = 0.95  # scattered things lie within this far from the middle


class Canvas:
    """Three planes of colour that are painted over; remembers where it is in the world and how big a pixel is."""

    def __init__(self, x: Tensor, y: Tensor, pixel: float, draws: Tensor) -> None:
        self.x, self.y, self.pixel, self.draws = x, y, pixel, draws
        size = (x.shape[0], y.shape[1], x.shape[2])
        self.planes = [x.new_zeros(size) for _ in range(3)]
        self.used = 0

    def draw(self, low: float, high: float) -> Tensor:
        """The next random number of each layout, in [low, high), `n 1 1`."""
        value = self.draws[:, self.used % DRAWS, None, None]
        self.used += 1
        return low + (high - low) * value

    def cover(self, distance: Tensor) -> Tensor:
        """How much of a pixel lies inside, from a distance in world units."""
        return (0.5 - distance / self.pixel).clamp(0, 1)

    def paint(self, coverage: Tensor, colour: Colour, strength: float = 1.0) -> None:
        """Blend one colour over the whole canvas where it covers."""
        coverage = coverage if strength == 1.0 else coverage * strength
        for plane, value in zip(self.planes, colour):
            plane += coverage * (value - plane)

    def gradient(self, background: str) -> None:
        """Lay the ground: the background's two colours from the top of the frame to the floor."""
        part = ((self.y + 0.5) / (FLOOR + 0.5)).clamp(0, 1)
        for plane, top, bottom in zip(self.planes, *BACKGROUNDS[background]):
            plane += (top + (bottom - top) * part) / 255

    def shade(self, amount: Tensor) -> None:
        """Make lighter or darker by a small amount everywhere."""
        for plane in self.planes:
            plane += amount

    def spot(self, x: Tensor, y: Tensor, rx: float | Tensor, ry: float | Tensor) -> Tensor:
        """Coverage of an upright ellipse (the distance is scaled, good enough for something small)."""
        return self.cover((torch.hypot((self.x - x) / rx, (self.y - y) / ry) - 1) * ry)


def wave(x: Tensor, frequency: float, phase: Tensor | float) -> Tensor:
    return torch.sin(x * (2 * math.pi * frequency) + phase)


def blades(canvas: Canvas, spacing: float, height: float, phase: Tensor) -> Tensor:
    """The height of a row of grass blades above its base, along x: `n 1 w`."""
    u = canvas.x / spacing + phase
    saw = (u - torch.floor(u) - 0.5).abs() * 2
    return height * (1 - saw) * (0.65 + 0.35 * wave(canvas.x, 2.3, phase * 7))


def sky(canvas: Canvas) -> None:
    canvas.gradient("sky")
    for index in range(6):
        cx = (index - 2.5) * 0.34 + canvas.draw(-0.1, 0.1)
        cy, size = canvas.draw(-0.42, 0.2), canvas.draw(0.05, 0.09)
        puffs = [
            torch.hypot((canvas.x - cx - dx * size) / 1.15, canvas.y - cy + dy * size) - r * size
            for dx, dy, r in ((-1.1, 0.0, 0.6), (0.0, 0.25, 0.85), (1.1, 0.0, 0.65))
        ]
        cloud = torch.minimum(torch.minimum(puffs[0], puffs[1]), puffs[2])
        canvas.paint((0.5 - cloud / (0.012 + canvas.pixel)).clamp(0, 1), (1, 1, 1), 0.34)
    phase = canvas.draw(0, 6)
    for depth, (colour, lift) in enumerate((((0.8, 0.91, 0.99), 0.035), ((0.95, 0.98, 1.0), 0.0))):
        scallop = 0.045 * wave(canvas.x, 3.1 - depth, phase + 2 * depth).abs() + 0.015 * wave(canvas.x, 1.3, phase)
        canvas.paint(canvas.cover(FLOOR + 0.02 - lift + 0.3 * lift - scallop * 0.7 - canvas.y), colour)


def pond(canvas: Canvas) -> None:
    canvas.gradient("pond")
    p, q = canvas.draw(0, 6), canvas.draw(0, 6)
    depth = 1.6 / (canvas.y + 1.1)  # ripples lie closer together far away
    ripple = torch.sin(depth * 34 + 1.3 * wave(canvas.x, 1.1, p) + p) * torch.sin(canvas.x * 9 + depth * 6 + q)
    canvas.shade(0.05 * (ripple.clamp(min=0.35) - 0.35) * 1.5)
    for index in range(6):
        x = (index - 2.5) * 0.31 + canvas.draw(-0.09, 0.09)
        y, size = canvas.draw(-0.36, 0.22), canvas.draw(0.04, 0.065)
        canvas.paint(canvas.spot(x, y + 0.01, size, size * 0.42), (0.2, 0.5, 0.5))
        notch = (canvas.x - x) * 0.5 - (canvas.y - y).abs()
        pad = canvas.spot(x, y, size, size * 0.42) * (1 - canvas.cover(-notch))
        canvas.paint(pad, (0.42, 0.72, 0.46))
        if index in (1, 4):
            canvas.paint(canvas.spot(x - 0.3 * size, y - 0.012, size * 0.3, size * 0.26), (1.0, 0.86, 0.93))
    bank = -0.43 + 0.012 * wave(canvas.x, 1.4, q)
    reeds = blades(canvas, 0.043, 0.05, q)
    canvas.paint(canvas.cover(canvas.y - bank), (0.66, 0.83, 0.9))
    canvas.paint(
        canvas.cover((canvas.y - bank + 0.012 + reeds).neg()) * canvas.cover(canvas.y - bank), (0.35, 0.58, 0.36)
    )
    shore = FLOOR + 0.006 * wave(canvas.x, 2.2, p)
    canvas.paint(canvas.cover(shore - 0.014 - canvas.y), (0.62, 0.82, 0.8))
    canvas.paint(canvas.cover(shore - canvas.y), (0.6, 0.56, 0.4))
    canvas.paint(canvas.cover(shore + 0.05 - canvas.y), (0.53, 0.49, 0.34))


def meadow(canvas: Canvas) -> None:
    canvas.gradient("meadow")
    p, q = canvas.draw(0, 6), canvas.draw(0, 6)
    hills = -0.36 + 0.03 * wave(canvas.x, 0.8, p) + 0.015 * wave(canvas.x, 1.9, q)
    canvas.paint(canvas.cover(canvas.y - hills), (0.75, 0.9, 0.98))
    far = hills - 0.03 - 0.025 * wave(canvas.x, 0.6, q)
    canvas.paint(canvas.cover(canvas.y - hills) * canvas.cover(far - canvas.y), (0.52, 0.74, 0.5))
    row = torch.floor((canvas.y + 0.36) / 0.12)
    tuft = blades(canvas, 0.075, 1.0, q) * wave(canvas.x + 0.37 * row, 3.1, q).clamp(min=0)
    height = (canvas.y + 0.36) / 0.12 - row
    canvas.shade(-0.075 * (tuft > 1.35 - height).to(canvas.x.dtype) * canvas.cover(hills + 0.04 - canvas.y))
    for index in range(10):
        x, y = (index - 4.5) * 0.19 + canvas.draw(-0.07, 0.07), canvas.draw(-0.26, 0.3)
        petals = ((1.0, 0.98, 0.92), (1.0, 0.9, 0.62), (0.98, 0.84, 0.92))[index % 3]
        canvas.paint(canvas.spot(x, y, 0.013, 0.012), petals)
        canvas.paint(canvas.spot(x, y, 0.005, 0.005), (0.95, 0.72, 0.25))
    for depth, colour in ((0.0, (0.38, 0.62, 0.27)), (0.05, (0.31, 0.54, 0.23)), (0.1, (0.25, 0.46, 0.2))):
        edge = FLOOR + depth - blades(canvas, 0.03 + 0.2 * depth, 0.03, q + 9 * depth)
        canvas.paint(canvas.cover(edge - canvas.y), colour)


def night(canvas: Canvas) -> None:
    canvas.gradient("night")
    for index in range(26):
        x = (index - 12.5) * 0.074 + canvas.draw(-0.03, 0.03)
        y, size = canvas.draw(-0.48, 0.26), 0.004 + 0.005 * ((index * 7) % 5) / 4
        canvas.paint(canvas.spot(x, y, size, size), (0.93, 0.94, 1.0), min(1.0, 0.5 + 60 * size))
    side = torch.where(canvas.draw(0, 1) < 0.5, -1.0, 1.0)
    x, y = side * canvas.draw(0.26, 0.36), canvas.draw(-0.37, -0.31)
    moon = canvas.spot(x, y, 0.068, 0.068)
    canvas.paint((1 - torch.hypot(canvas.x - x, canvas.y - y) / 0.2).clamp(0, 1) ** 2, (0.62, 0.64, 0.8), 0.5)
    canvas.paint(moon * (1 - canvas.spot(x + 0.034, y - 0.014, 0.058, 0.058)), (0.98, 0.95, 0.8))
    p = canvas.draw(0, 6)
    hills = FLOOR - 0.055 - 0.03 * wave(canvas.x, 0.9, p) - 0.012 * wave(canvas.x, 2.1, p)
    canvas.paint(canvas.cover(hills - canvas.y), (0.16, 0.17, 0.34))
    canvas.paint(canvas.cover(FLOOR - blades(canvas, 0.04, 0.022, p) - canvas.y), (0.07, 0.16, 0.19))
    canvas.paint(canvas.cover(FLOOR + 0.06 - blades(canvas, 0.05, 0.02, p) - canvas.y), (0.05, 0.12, 0.15))


def sand(canvas: Canvas) -> None:
    canvas.gradient("sand")
    p, q = canvas.draw(0, 6), canvas.draw(0, 6)
    for depth in range(4):
        crest = -0.3 + 0.17 * depth + 0.05 * wave(canvas.x, 0.55 + 0.1 * depth, p + 2.1 * depth)
        below = canvas.y - crest
        slope = (1 - below / 0.17).clamp(0, 1) * canvas.cover(-below)
        canvas.shade(-0.045 * slope)
    ridge = wave(canvas.y + 0.016 * wave(canvas.x, 1.7, q) + 0.05 * canvas.x, 24.0, q)
    canvas.shade(0.014 * ridge)
    horizon = -0.38 + 0.03 * wave(canvas.x, 0.7, p) + 0.012 * wave(canvas.x, 1.7, q)
    canvas.paint(canvas.cover(canvas.y - horizon), (0.99, 0.93, 0.83))
    for _ in range(7):
        x, y, size = canvas.draw(-REACH, REACH), canvas.draw(-0.2, 0.32), canvas.draw(0.007, 0.014)
        canvas.paint(canvas.spot(x + 0.3 * size, y + 0.5 * size, size * 1.3, size * 0.8), (0.66, 0.54, 0.34))
        canvas.paint(canvas.spot(x, y, size, size * 0.75), (0.93, 0.86, 0.72))
    canvas.paint(canvas.cover(FLOOR + 0.008 * wave(canvas.x, 1.5, q) - canvas.y), (0.74, 0.59, 0.36))
    canvas.paint(canvas.cover(FLOOR + 0.07 + 0.012 * wave(canvas.x, 1.1, p) - canvas.y), (0.68, 0.53, 0.31))


def plain(canvas: Canvas) -> None:
    canvas.gradient("plain")
    u, v = canvas.x / 0.125 + canvas.draw(0, 1), canvas.y / 0.125
    row = torch.floor(v)
    u = u + 0.5 * torch.remainder(row, 2)
    dots = torch.hypot((u - torch.floor(u) - 0.5) * 0.125, (v - row - 0.5) * 0.125) - 0.021
    canvas.paint(canvas.cover(dots), (0.81, 0.81, 0.86))
    canvas.paint(canvas.cover(FLOOR - canvas.y), (0.58, 0.57, 0.63))
    board = canvas.x / 0.22 + canvas.draw(0, 1) - (canvas.y - FLOOR) * canvas.x * 3
    seam = ((board - torch.floor(board) - 0.5).abs() - 0.02) * 0.22
    canvas.paint(canvas.cover(seam) * canvas.cover(FLOOR - canvas.y), (0.52, 0.51, 0.57))
    canvas.paint(canvas.cover((canvas.y - FLOOR).abs() - 0.006), (0.9, 0.9, 0.93))


PAINTERS: dict[str, Callable[[Canvas], None]] = {
    "sky": sky,
    "pond": pond,
    "meadow": meadow,
    "night": night,
    "sand": sand,
    "plain": plain,
}


def wall(canvas: Canvas, centre: Tensor, width: Tensor) -> None:
    """Paint a brick wall; one of width 0 leaves no trace."""
    off = canvas.x - centre
    inside = canvas.cover(off.abs() - width / 2) * (width > 0)
    bottom = FLOOR + 0.012
    body = inside * canvas.cover(torch.maximum(WALL_TOP - canvas.y, canvas.y - bottom))
    canvas.paint(body, (0.43, 0.4, 0.43))
    row = torch.floor((canvas.y - WALL_TOP) / 0.065)
    v = (canvas.y - WALL_TOP) / 0.065 - row
    u = off / 0.13 + 0.5 * torch.remainder(row, 2)
    brick = torch.maximum(((u - torch.floor(u) - 0.5).abs() - 0.455) * 0.13, ((v - 0.5).abs() - 0.41) * 0.065)
    inner = canvas.cover(torch.maximum(off.abs() - width / 2 + 0.012, canvas.y - bottom + 0.01)) * (width > 0)
    shade = 0.03 * torch.sin(torch.floor(u) * 12.7 + row * 4.1)
    brick = canvas.cover(brick) * inner * canvas.cover(WALL_TOP + 0.02 - canvas.y)
    for plane, value in zip(canvas.planes, (0.6, 0.55, 0.56)):
        plane += brick * (value + shade - plane)


@lru_cache(maxsize=65536)
def layout_draws(layout: int) -> np.ndarray:
    """The random numbers of a layout, float32 in [0, 1)."""
    return np.random.default_rng(abs(layout)).random(DRAWS, dtype=np.float32)


def paint_background(
    name: str, x: Tensor, y: Tensor, pixel: float, layouts: Sequence[int], walls: Tensor | None
) -> Tensor:
    """Backgrounds of one kind, `n 3 h w` in [0, 1].

    x `n 1 w` and y `n h 1` are the pixels' world coordinates, `pixel` their spacing; walls `n 2` are centre and width.
    """
    draws = torch.from_numpy(np.stack([layout_draws(layout) for layout in layouts])).to(x.device)
    canvas = Canvas(x, y, pixel, draws)
    PAINTERS[name](canvas)
    if walls is not None:
        wall(canvas, walls[:, 0, None, None], walls[:, 1, None, None])
    return torch.stack(canvas.planes, dim=1).clamp(0, 1)
