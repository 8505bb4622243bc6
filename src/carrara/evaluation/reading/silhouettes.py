"""Which actor a mask shows, how large it is and how it is turned: matching against the pond's own shapes.

Templates are the shapes' signed distances sampled on a small grid, in every pose the pond puts them in (limb phases,
squash, turns, both headings). Observed and template masks are put in the same frame by centroid and square root of
area, so only the form is compared. Two forms are: the silhouette, and the part that looks like the actor's own plain
colour (without what wheels, windows, eyes, stripes and edges take of it, in that colour). The score is a weighted mean
of their soft intersections over unions.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import cache, lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch.nn.functional import grid_sample

from carrara.data.pond.shapes import (
    ACCENT,
    ACCENTS,
    BODY,
    DARKER,
    EDGE,
    INK,
    LIGHTER,
    MARK,
    OUTLINE,
    SHAPES,
    WHITE,
    Layer,
    Paint,
    silhouette,
)
from carrara.data.pond.world import COLOURS
from carrara.evaluation.reading.colours import NAMES, Array, shades, to_lab

GRID = 24  # samples per side of a normalised mask
SPAN = 1.12  # half the side of a normalised mask, in square roots of the area
SHARP = 9.0  # samples per radius that the templates' antialiasing is made for
FINE = 0.04  # step in radii of the raster on which areas and centroids are measured
LIMBS = {"frog": 3, "bird": 6, "fish": 4, "frog on stilts": 3}  # phases over half (frog) or all of a beat
TURNS = {"ball": 1, "ring": 1, "box": 4, "star": 4, "triangle": 8}  # turns before the outline repeats; else 24
REPEATS = {"box": 4, "star": 5, "triangle": 3}  # how often the outline repeats in a whole turn
UPRIGHT = ("ball", "ring", "box", "star", "triangle", "heart", "frog")  # these look alike from both sides
SQUASHES = ((1.0, 1.0), (1.18, 0.82))
TILT = 0.53  # radians by which a swimmer, a flyer or a roller may lean
BLUR = 0.4  # standard deviation, in samples, of the templates' blur
OUTER = 0.75  # weight of the silhouette; the rest is for the plain part
PAINTS = (BODY, DARKER, LIGHTER, EDGE, MARK, WHITE, INK, ACCENT)
FAR, FADE = 32.0, 18.0  # CIELAB units from the own colour at which nothing is plain any more; over which it fades


@dataclass(frozen=True)
class Templates:
    """masks: `n p`, p pixels; shown: `n paints p`, how much of a pixel shows each of PAINTS; per template its
    name (a key of SHAPES), area in squared radii, turn in radians and centroid in radii from the shape's centre."""

    masks: Array
    shown: NDArray[np.float16]
    names: NDArray[np.str_]
    areas: NDArray[np.float64]
    turns: NDArray[np.float64]
    centres: NDArray[np.float64]

    def beside(self, others: Templates) -> Templates:
        """These and others, in this order."""
        both = (np.concatenate([getattr(self, f.name), getattr(others, f.name)]) for f in fields(self))
        return Templates(*both)


def poses(name: str) -> Iterator[tuple[float, float, float, int, float]]:
    """Limb phase, extra width and height, heading and turn of every pose of a shape that looks different."""
    beats = LIMBS.get(name, 1)
    swing = math.pi / (beats - 1) if name == "frog" else 2 * math.pi / beats
    turns = TURNS.get(name, 24)
    for limb in range(beats):
        for wide, high in SQUASHES:
            for heading in (1,) if name in UPRIGHT else (1, -1):
                # only what stands upright is pressed flat
                for turn in range(turns if wide == high else 1):
                    part = (turn / turns + 0.5) % 1 - 0.5  # the same outline, turned as little as can be
                    yield limb * swing, wide, high, heading, part * 2 * math.pi / REPEATS.get(name, 1)


@lru_cache(maxsize=1)
def templates() -> Templates:
    """All shapes in all poses; made once."""
    masks, shown, names, areas, turns, centres = [], [], [], [], [], []
    side = torch.arange(-1.6, 1.6, FINE)
    fine_y, fine_x = torch.meshgrid(side, side, indexing="ij")
    grid = torch.linspace(-SPAN, SPAN, GRID)
    gy, gx = torch.meshgrid(grid, grid, indexing="ij")
    for name, shape in SHAPES.items():
        for limb, wide, high, heading, turn in poses(name):
            inside = silhouette(shape(fine_x / wide, fine_y / high, torch.full_like(fine_x, limb))) < 0
            area = float(inside.sum()) * FINE**2
            cx, cy = float(fine_x[inside].mean()), float(fine_y[inside].mean())
            c, s = math.cos(turn), math.sin(turn)
            # where a grid point lies in the shape's own coordinates: turned back about its centroid
            lx = (c * gx + s * gy) * heading * math.sqrt(area) + cx
            ly = (c * gy - s * gx) * math.sqrt(area) + cy
            layers = shape(lx / wide, ly / high, torch.full_like(gx, limb))
            masks.append(covers(silhouette(layers)).numpy())
            shown.append(torch.stack(exposure(layers)).numpy())
            names.append(name)
            areas.append(area)
            turns.append(turn)
            centres.append((c * cx * heading - s * cy, s * cx * heading + c * cy))
    paints = np.stack(shown).reshape(len(names), len(PAINTS), -1).astype(np.float16)
    return Templates(
        blurred(np.stack(masks)), paints, np.array(names), np.array(areas), np.array(turns), np.array(centres)
    )


def covers(distance: torch.Tensor) -> torch.Tensor:
    return (0.5 - distance * SHARP).clamp(0, 1)


def exposure(layers: list[Layer]) -> list[torch.Tensor]:
    """How much of each point shows each of PAINTS, after all layers (as `render.blend` paints them)."""
    shown = [torch.zeros_like(layers[0].distance) for _ in PAINTS]

    def over(coverage: torch.Tensor, paint: Paint) -> None:
        for share, other in zip(shown, PAINTS):
            share += coverage * (float(other == paint) - share)

    for layer in layers:
        if layer.solid:
            over(covers(layer.distance), EDGE)
        over(covers(layer.distance + (OUTLINE if layer.solid else 0.0)), layer.paint)
    return shown


def blurred(masks: Array) -> Array:
    """Masks `n rows columns` as soft as observed ones: `n p`."""
    return ndimage.gaussian_filter(masks, (0, BLUR, BLUR)).reshape(len(masks), -1).astype(np.float32)


@cache
def plain_templates(colour: str) -> Array:
    """The part of every template that looks like its own plain colour if that is `colour`: `n p`."""
    return blurred(plain_parts(colour))


def plain_parts(colour: str) -> Array:
    """The same before it is as soft as what is observed, `n rows columns`."""
    known = templates()
    weights = {kind: plainness(paint_labs(kind, colour), colour) for kind in {name.split()[0] for name in SHAPES}}
    share = np.stack([weights[name.split()[0]] for name in known.names.tolist()])
    plain = np.einsum("nc,ncp->np", share, known.shown.astype(np.float32))
    return plain.reshape(-1, GRID, GRID)


def paint_labs(kind: str, colour: str) -> Array:
    """CIELAB of each of PAINTS on a shape of this kind and colour, `paints 3`."""
    body = np.array(COLOURS[colour]) / 255
    light = float(body @ (0.299, 0.587, 0.114)) > 0.5  # as the renderer chooses the colour of marks
    mark = 0.5 * body if light else 0.45 * body + 0.5
    accent = np.array(ACCENTS.get(kind, (0.0, 0.0, 0.0)))
    rgb = np.stack([p.body * body + p.white + p.mark * mark + p.accent * accent for p in PAINTS])
    return to_lab(np.clip(np.rint(rgb * 255), 0, 255).astype(np.uint8))


def plainness(lab: Array, colour: str) -> Array:
    """How much CIELAB values `... 3` look like an actor's own plain colour, in [0, 1]."""
    far = np.linalg.norm(lab[..., None, :] - shades()[NAMES.index(colour)], axis=-1).min(axis=-1)
    return np.clip((FAR - far) / FADE, 0, 1).astype(np.float32)


def normalise(alpha: Array, own: Array, lab: Array) -> tuple[Array, Array, Array, float, tuple[float, float]]:
    """A soft mask and its plain part, `h w`, and colours `h w 3`, in the common frame, `p` and `p 3`; area in pixels,
    centroid (column, row)."""
    area = float(alpha.sum())
    rows, columns = np.arange(alpha.shape[0]), np.arange(alpha.shape[1])
    row = float((alpha.sum(axis=1) * rows).sum() / area)
    column = float((alpha.sum(axis=0) * columns).sum() / area)
    step = np.linspace(-SPAN, SPAN, GRID) * math.sqrt(area)
    at = np.meshgrid(step + row, step + column, indexing="ij")

    def sampled(part: Array, mode: str) -> Array:
        return ndimage.map_coordinates(part, at, order=1, mode=mode).reshape(-1).astype(np.float32)

    mask, plain = (sampled(part, "constant") for part in (alpha, own))
    colours = np.stack([sampled(lab[..., part], "nearest") for part in range(3)], axis=-1)
    return mask, plain, colours, area, (column, row)


def reframed(maps: Array, middle: NDArray[np.float64], scale: NDArray[np.float64]) -> Array:
    """Maps `n c h w` in the common frame, seen in frames whose middles lie at `n 2` (x, y) of it and whose sides are
    `n` of its own."""
    at = np.linspace(-SPAN, SPAN, GRID)
    x, y = (middle[:, axis, None] + at * scale[:, None] for axis in (0, 1))
    grid = np.stack(np.broadcast_arrays(x[:, None, :], y[:, :, None]), axis=-1) / SPAN
    found: Array = grid_sample(torch.from_numpy(maps), torch.from_numpy(grid).float(), align_corners=True).numpy()
    return found


def poses_of(name: str, known: Templates, fit: Array) -> NDArray[np.int64]:
    """Which template of a shape fits each view best, `m` of `m n`."""
    return np.where(known.names == name, fit, -1).argmax(axis=1)


def match(masks: Array, plains: Array, known: Templates, own: Array | None, spins: bool) -> Array:
    """How well observed masks and their plain parts, `m p` each, fit templates and theirs, `n p`: `m n`.

    By the mask alone if `own` is None. Only what spins is ever turned by more than a little: for the rest, a
    triangle is not a heart upside down; poses that cannot be are 0.
    """
    fit = overlap(masks, known.masks)
    if own is not None:
        fit = OUTER * fit + (1 - OUTER) * overlap(plains, own)
    return fit if spins else np.where(np.abs(known.turns) <= TILT, fit, 0)


def overlap(seen: Array, known: Array) -> Array:
    """Soft intersection over union, `m n` from `m p` and `n p`."""
    both = np.stack([np.minimum(mask, known).sum(axis=1) for mask in seen])
    return both / np.maximum(seen.sum(axis=1)[:, None] + known.sum(axis=1)[None] - both, 1e-6)
