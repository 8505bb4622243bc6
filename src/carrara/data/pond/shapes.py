"""The actors' shapes as signed distance functions, and how each is painted.

Local coordinates: the actor's centre is the origin, x points where it faces, y down, and its extent is about [-1, 1].
A shape is a list of layers drawn in order. Distances are exact or close to it near the edge, where antialiasing looks
(Quilez, "2D distance functions", gives the star and the heart). Every shape carries a mark that shows which way is up.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

from carrara.data.pond.world import STILTS, Floats

OUTLINE = 0.09  # width of the dark edge, in radii


@dataclass(frozen=True)
class Paint:
    """A colour as parts of the actor's own, of white and of the accent; or the mark, which stands out from its own."""

    body: float = 0.0
    white: float = 0.0
    accent: float = 0.0
    mark: bool = False


BODY = Paint(body=1.0)
DARKER = Paint(body=0.72)
LIGHTER = Paint(body=0.6, white=0.4)
EDGE = Paint(body=0.5)
MARK = Paint(mark=True)  # light on dark actors, dark on light ones
WHITE = Paint(white=0.98)
INK = Paint(white=0.09)
ACCENT = Paint(accent=1.0)

# What each shape means by ACCENT, in [0, 1] sRGB: a bird's beak, a car's windows, a frog's stilts.
ACCENTS: dict[str, tuple[float, float, float]] = {
    "bird": (1.0, 0.66, 0.1),
    "car": (0.72, 0.9, 0.98),
    "frog": (0.66, 0.45, 0.24),
}


@dataclass(frozen=True)
class Layer:
    """One painted region: `distance` in radii, negative inside. Solid ones make the silhouette and have an edge."""

    distance: Tensor
    paint: Paint
    solid: bool = False


Shape = Callable[[Tensor, Tensor, Tensor], list[Layer]]  # (x, y, limb phase) -> layers


def circle(x: Tensor, y: Tensor, cx: float, cy: float, radius: float) -> Tensor:
    return torch.hypot(x - cx, y - cy) - radius


def ellipse(x: Tensor, y: Tensor, rx: float, ry: float) -> Tensor:
    """A first-order distance to an ellipse at the origin: exact on the edge, close near it."""
    u, v = x / rx, y / ry
    k = torch.hypot(u, v)
    return k * (k - 1) / (torch.hypot(u / rx, v / ry) + 1e-6)


def rectangle(x: Tensor, y: Tensor, half_width: float, half_height: float, corner: float) -> Tensor:
    qx, qy = x.abs() - (half_width - corner), y.abs() - (half_height - corner)
    return torch.hypot(qx.clamp(min=0), qy.clamp(min=0)) + torch.maximum(qx, qy).clamp(max=0) - corner


def capsule(x: Tensor, y: Tensor, ax: float, ay: float, bx: Tensor | float, by: float, radius: float) -> Tensor:
    dx, dy = bx - ax, by - ay
    along = (((x - ax) * dx + (y - ay) * dy) / (dx * dx + dy * dy)).clamp(0, 1)
    return torch.hypot(x - ax - along * dx, y - ay - along * dy) - radius


def polygon(x: Tensor, y: Tensor, *corners: tuple[float, float]) -> Tensor:
    """A convex polygon, corners in either order: the largest distance to its sides, so corners stay sharp."""
    distance: Tensor | None = None
    sides = list(zip(corners, corners[1:] + corners[:1]))
    turn = math.copysign(1, sum(ax * by - bx * ay for (ax, ay), (bx, by) in sides))
    for (ax, ay), (bx, by) in sides:
        length = turn * math.hypot(bx - ax, by - ay)
        nx, ny = (by - ay) / length, (ax - bx) / length
        side = x * nx + y * ny - (ax * nx + ay * ny)
        distance = side if distance is None else torch.maximum(distance, side)
    assert distance is not None
    return distance


def both(*distances: Tensor) -> Tensor:
    """The intersection."""
    result = distances[0]
    for other in distances[1:]:
        result = torch.maximum(result, other)
    return result


def either(*distances: Tensor) -> Tensor:
    """The union."""
    result = distances[0]
    for other in distances[1:]:
        result = torch.minimum(result, other)
    return result


def ball(x: Tensor, y: Tensor, limb: Tensor) -> list[Layer]:
    """A beach ball: one band off the middle."""
    body = torch.hypot(x, y) - 1
    band = (torch.hypot(x + 1.25, y) - 1.45).abs() - 0.15
    glint = ellipse(x + 0.42, y + 0.5, 0.2, 0.13)
    return [Layer(body, BODY, True), Layer(both(body + OUTLINE, band), MARK), Layer(glint, LIGHTER)]


def box(x: Tensor, y: Tensor, limb: Tensor) -> list[Layer]:
    """A crate: a frame, a diagonal board."""
    body = rectangle(x, y, 0.88, 0.88, 0.1)
    panel = rectangle(x, y, 0.6, 0.6, 0.03)
    board = both(panel, ((x + y) * math.sqrt(0.5)).abs() - 0.13)
    return [Layer(body, BODY, True), Layer(panel, DARKER), Layer(panel + 0.1, BODY), Layer(board, MARK)]


def star(x: Tensor, y: Tensor, limb: Tensor) -> list[Layer]:
    """A five-pointed star with a face (distance: Quilez)."""
    radius, inner = 1.1, 0.5
    c1, s1 = math.cos(math.pi / 5), math.sin(math.pi / 5)
    px, py = x.abs(), -y
    fold = 2 * (px * c1 - py * s1).clamp(min=0)
    px, py = px - fold * c1, py + fold * s1
    fold = 2 * (-px * c1 - py * s1).clamp(min=0)
    px, py = (px + fold * c1).abs(), py + fold * s1 - radius
    bx, by = inner * s1, inner * c1 - radius
    along = ((px * bx + py * by) / (bx * bx + by * by)).clamp(0, 1)
    side = torch.sign(py * bx - px * by)
    body = torch.hypot(px - bx * along, py - by * along) * side - 0.04
    ax = x.abs()
    eyes = ellipse(ax - 0.2, y + 0.08, 0.09, 0.14)
    smile = both((torch.hypot(x, y - 0.06) - 0.24).abs() - 0.05, 0.14 - y)
    return [Layer(body, BODY, True), Layer(either(eyes, smile), MARK)]


def ring(x: Tensor, y: Tensor, limb: Tensor) -> list[Layer]:
    """A ring with one set-off segment."""
    body = (torch.hypot(x, y) - 0.74).abs() - 0.26
    segment = both(body + OUTLINE, x.abs() * 0.9 + y * 0.55 + 0.06)
    return [Layer(body, BODY, True), Layer(segment, MARK)]


def triangle(x: Tensor, y: Tensor, limb: Tensor) -> list[Layer]:
    """An equilateral triangle about its centroid, point up, with a dot near the point."""
    half = math.sqrt(3) / 2
    inradius = 0.54
    body = torch.maximum(y, x.abs() * half - y * 0.5) - inradius
    dot = circle(x, y, 0.0, -0.3, 0.17)
    base = both(body + 0.2, 0.14 - y)
    return [Layer(body, BODY, True), Layer(dot, MARK), Layer(base, MARK)]


def heart(x: Tensor, y: Tensor, limb: Tensor) -> list[Layer]:
    """A heart with a glint (distance: Quilez)."""
    px, py = 0.6 * x.abs(), 0.55 - 0.6 * y
    upper = torch.hypot(px - 0.25, py - 0.75) - math.sqrt(2) / 4
    half = (px + py).clamp(min=0) * 0.5
    lower = torch.minimum(torch.hypot(px, py - 1), torch.hypot(px - half, py - half)) * torch.sign(px - py)
    body = torch.where(px + py > 1, upper, lower) / 0.6
    glint = both((torch.hypot(x + 0.42, y + 0.35) - 0.32).abs() - 0.09, torch.maximum(x + 0.42, y + 0.35))
    return [Layer(body, BODY, True), Layer(glint, MARK)]


def frog(x: Tensor, y: Tensor, limb: Tensor) -> list[Layer]:
    """A frog from the front; its legs stretch as the limb phase goes from 0 to pi."""
    stretch = 0.5 - 0.5 * torch.cos(limb)
    ax = x.abs()
    body = ellipse(x, y - 0.22, 0.86, 0.62)
    brow = circle(ax, y, 0.44, -0.52, 0.32)
    head = ellipse(x, y + 0.18, 0.76, 0.5)
    thigh = circle(ax, y - 0.1 * stretch, 0.7, 0.52, 0.3)
    foot = ellipse(ax - 0.74, y - 0.82 - 0.22 * stretch, 0.34, 0.16)
    shin = torch.maximum((ax - 0.74).abs() - 0.13, torch.maximum(0.5 - y, y - 0.82 - 0.22 * stretch))
    belly = ellipse(x, y - 0.36, 0.5, 0.36)
    eye = circle(ax, y, 0.44, -0.54, 0.2)
    pupil = circle(ax, y, 0.42, -0.52, 0.11)
    mouth = torch.maximum((y + 0.02 + 0.3 * x * x).abs() - 0.045, ax - 0.42)
    return [
        Layer(either(foot, shin, thigh), DARKER, True),
        Layer(either(body, head, brow), BODY, True),
        Layer(belly, LIGHTER),
        Layer(eye, WHITE),
        Layer(pupil, INK),
        Layer(mouth, EDGE),
    ]


def frog_on_stilts(x: Tensor, y: Tensor, limb: Tensor) -> list[Layer]:
    """The same frog; the stilts swing with the limb phase instead of the legs."""
    swing = 0.3 * torch.sin(limb)
    bottom = 0.98 + STILTS
    stilts = either(
        capsule(x, y, 0.7, 0.5, 0.7 + swing, bottom - 0.1, 0.1),
        capsule(x, y, -0.7, 0.5, -0.7 + swing, bottom - 0.1, 0.1),
    )
    return [Layer(stilts, ACCENT, True), *frog(x, y, torch.zeros_like(limb))]


def bird(x: Tensor, y: Tensor, limb: Tensor) -> list[Layer]:
    """A bird from the side; the wing beats with the limb phase and is folded at phase 0."""
    body = ellipse(x + 0.08, y - 0.18, 0.72, 0.57)
    head = circle(x, y, 0.5, -0.33, 0.41)
    beak = polygon(x, y, (0.78, -0.5), (1.14, -0.27), (0.78, -0.08))
    tail = polygon(x, y, (-0.55, -0.06), (-1.08, -0.42), (-1.12, 0.02), (-0.5, 0.36))
    beat = torch.sin(limb) * 1.15
    c, s = torch.cos(beat), torch.sin(beat)
    wx, wy = x - 0.12, y - 0.06  # the shoulder
    along, across = -(wx * c + wy * s), wy * c - wx * s
    wing = ellipse(along - 0.42, across, 0.56, 0.27)
    eye = circle(x, y, 0.6, -0.4, 0.13)
    return [
        Layer(beak, ACCENT, True),
        Layer(tail, DARKER, True),
        Layer(either(body, head), BODY, True),
        Layer(wing, EDGE, True),
        Layer(wing + OUTLINE, LIGHTER),
        Layer(eye, WHITE),
        Layer(circle(x, y, 0.63, -0.4, 0.075), INK),
    ]


def fish(x: Tensor, y: Tensor, limb: Tensor) -> list[Layer]:
    """A fish from the side; the tail sways with the limb phase."""
    y = y + 0.55 * torch.sin(limb) * (-0.3 - x).clamp(min=0)
    body = ellipse(x - 0.2, y, 0.84, 0.58)
    tail = both(
        polygon(x, y, (-0.4, 0.0), (-1.05, -0.62), (-1.05, 0.62)),
        -polygon(x, y, (-0.84, 0.0), (-1.2, -0.3), (-1.2, 0.3)),
    )
    fin = polygon(x, y, (-0.28, -0.78), (0.3, -0.74), (0.5, -0.3), (-0.2, -0.3))
    stripes = both(body + OUTLINE, either((x - 0.2).abs() - 0.08, (x + 0.16).abs() - 0.08))
    eye = circle(x, y, 0.64, -0.12, 0.15)
    return [
        Layer(either(tail, fin), DARKER, True),
        Layer(body, BODY, True),
        Layer(stripes, MARK),
        Layer(eye, WHITE),
        Layer(circle(x, y, 0.68, -0.12, 0.085), INK),
    ]


def car(x: Tensor, y: Tensor, limb: Tensor) -> list[Layer]:
    """A car from the side; the limb phase turns its wheels."""
    body = rectangle(x, y - 0.22, 1.0, 0.36, 0.18)
    cabin = polygon(x, y, (-0.5, -0.82), (0.3, -0.82), (0.68, 0.0), (-0.76, 0.0))
    window = both(cabin + 0.17, y + 0.1, 0.06 - (x + 0.06).abs())
    ax = x.abs() - 0.54
    wheel = torch.hypot(ax, y - 0.56) - 0.32
    wx = torch.where(x > 0, x - 0.54, x + 0.54)
    hub = torch.hypot(wx - 0.14 * torch.cos(limb), y - 0.56 - 0.14 * torch.sin(limb)) - 0.1
    lamp = circle(x, y, 0.88, 0.14, 0.1)
    return [
        Layer(either(body, cabin), BODY, True),
        Layer(window, ACCENT),
        Layer(lamp, WHITE),
        Layer(wheel, INK, True),
        Layer(hub, WHITE),
    ]


SHAPES: dict[str, Shape] = {
    "ball": ball,
    "box": box,
    "star": star,
    "ring": ring,
    "triangle": triangle,
    "heart": heart,
    "frog": frog,
    "bird": bird,
    "fish": fish,
    "car": car,
    "frog on stilts": frog_on_stilts,
}


def shape_name(kind: str, stilts: bool) -> str:
    """The key in SHAPES."""
    return f"{kind} on stilts" if stilts else kind


def silhouette(layers: list[Layer]) -> Tensor:
    """The signed distance to the union of the solid layers."""
    return either(*(layer.distance for layer in layers if layer.solid))


STEP = 0.02  # of the raster that measures shapes, in radii
SIDE = 2.5  # the raster spans [-SIDE, SIDE]


@dataclass(frozen=True)
class Outline:
    """A shape at rest in numbers, all in radii.

    points: inside it (p 2), evenly spread; hull: those that span its convex hull (q 2); foot: how far down it goes;
    half_width: how far to either side; reach: the largest |x| and |y| that its limbs ever get to.
    """

    points: Floats
    hull: Floats
    foot: float
    half_width: float
    reach: tuple[float, float]
    raster: np.ndarray

    def contains(self, x: Floats, y: Floats) -> np.ndarray:
        """Whether local points lie inside, to within a raster step."""
        last = len(self.raster) - 1
        column, row = (np.rint((v.clip(-SIDE, SIDE) + SIDE) / STEP).astype(int).clip(0, last) for v in (x, y))
        return self.raster[row, column]


@cache
def outline(name: str) -> Outline:
    """Measure a shape on a raster."""
    side = torch.arange(-SIDE, SIDE + STEP / 2, STEP, dtype=torch.float64)
    y, x = torch.meshgrid(side, side, indexing="ij")
    raster = (silhouette(SHAPES[name](x, y, torch.zeros_like(x))) < 0).numpy()
    reach = np.zeros(2)
    for phase in torch.arange(0, 2 * math.pi, math.pi / 8):
        held = silhouette(SHAPES[name](x, y, phase * torch.ones_like(x))) < 0
        reach = np.maximum(reach, [float(x[held].abs().max()), float(y[held].abs().max())])
    points = np.stack([x.numpy()[raster], y.numpy()[raster]], axis=1)
    angles = np.linspace(0, 2 * np.pi, 96, endpoint=False)
    hull = np.unique(points[(points @ np.stack([np.cos(angles), np.sin(angles)])).argmax(axis=0)], axis=0)
    coarse = np.zeros_like(raster)
    coarse[2::5, 2::5] = True
    kept = raster & coarse
    return Outline(
        points=np.stack([x.numpy()[kept], y.numpy()[kept]], axis=1),
        hull=hull,
        foot=float(points[:, 1].max()),
        half_width=float(np.abs(points[:, 0]).max()),
        reach=(float(reach[0]), float(reach[1])),
        raster=raster,
    )
