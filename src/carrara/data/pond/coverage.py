"""What covers each cell of a coarse grid, from the simulator's truth: silhouettes at a few points of every cell.

Not standard: nothing is rendered. A clip's targets for learning cost a small part of its rendering, and agree with the
masks that rendering gives to within the spacing of the points.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from einops import rearrange, reduce
from torch import Tensor

from carrara.core.types import VideoShape
from carrara.data.pond.render import View, collect
from carrara.data.pond.shapes import SHAPES, silhouette
from carrara.data.pond.simulate import simulate
from carrara.data.pond.world import FLOOR, WALL_TOP, Scene

MOST_ACTORS = 2
CHUNK = 1 << 17  # points that are computed at a time: small enough for the cache


def coverage(
    scenes: Sequence[Scene], shape: VideoShape, fps: float, rows: int, columns: int, samples: int = 4
) -> Tensor:
    """The share of each cell in which an actor is seen, float32 `b a t rows columns` with two actors always.

    The frame is cut into rows x columns cells, with samples x samples points in each. What a wall, another actor or
    the frame's edge hides does not count. Raises ValueError for a grid without cells.
    """
    if min(rows, columns, samples) < 1:
        raise ValueError(f"rows={rows}, columns={columns}, samples={samples}: must all be at least 1")
    truths = [simulate(scene, shape.frames, fps, shape.width / shape.height) for scene in scenes]
    view = View(shape, np.stack([truth.camera for truth in truths]), torch.device("cpu"))
    y = _points(rows * samples, shape.height / view.unit)[:, None]
    x = _points(columns * samples, shape.width / view.unit)[None, :]
    shown = torch.zeros(len(scenes) * shape.frames, rows * samples, columns * samples, dtype=torch.uint8)
    for index in range(max(len(scene.actors) for scene in scenes)):  # those in front come last, as when drawing
        items = collect(scenes, truths, view, index)
        for kind in np.unique(items.shape):
            members = np.flatnonzero(items.shape == kind)
            step = max(1, CHUNK // (y.numel() * x.numel()))
            for start in range(0, len(members), step):
                part = members[start : start + step]
                inside = _seen(items.names[kind], torch.from_numpy(items.values[part]), x, y)
                frame = torch.from_numpy(items.frame[part])
                shown[frame] = torch.where(inside, index + 1, shown[frame].int()).to(torch.uint8)
    shown = rearrange(shown, "(b t) h w -> b t h w", t=shape.frames)
    covered = torch.stack([shown == number for number in range(1, MOST_ACTORS + 1)], dim=1).float()
    return reduce(covered, "b a t (r p) (c q) -> b a t r c", "mean", p=samples, q=samples)


def _points(count: int, extent: float) -> Tensor:
    """Evenly spaced points of an axis that is `extent` long and centred on 0."""
    return ((torch.arange(count) + 0.5) / count - 0.5) * extent


def _seen(name: str, values: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Which screen points `h w` an actor covers, in each frame `n`; values: see `render.COLUMNS`."""
    px, py, cos, sin, sx, sy, limb, cx, cy, zoom, wall_x, wall_half = values[:, :12, None, None].unbind(1)
    world_x, world_y = x / zoom + cx, y / zoom + cy
    dx, dy = world_x - px, world_y - py
    inside = silhouette(SHAPES[name]((cos * dx + sin * dy) / sx, (cos * dy - sin * dx) / sy, limb)) < 0
    behind = ((world_x - wall_x).abs() < wall_half) & (world_y > WALL_TOP) & (world_y < FLOOR + 0.012)
    return inside & ~behind
