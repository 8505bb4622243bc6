"""Scenes to frames: backgrounds once per scene, actors as signed distances in patches around them.

What makes it fast: the background is painted once and copied (with a moving camera, painted once a little larger and
resampled for every frame); an actor's distances are computed only in a square patch that holds it; patches of one shape
and size are computed together, whatever scenes and frames they belong to. A pixel's value depends only on its own
scene, never on what else is in the batch.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from einops import rearrange, repeat
from torch import Tensor
from torch.nn.functional import grid_sample

from carrara.core.types import VideoShape
from carrara.data.pond.backgrounds import paint_background
from carrara.data.pond.shapes import ACCENTS, EDGE, OUTLINE, SHAPES, Layer, Paint, outline, shape_name, silhouette
from carrara.data.pond.simulate import simulate
from carrara.data.pond.world import COLOURS, FLOOR, PAN, WALL_TOP, ZOOM, Scene, Truth

CHUNK = 1 << 18  # pixels of patches that are computed at a time: small enough for the cache
BUCKET = 8  # patches come in multiples of this many pixels
SHADOW = 0.3  # darkest of a shadow


@dataclass(frozen=True)
class Rendered:
    """video: uint8 `b t h w 3`, sRGB; mask: uint8 `b t h w`, 1 + the index of the actor seen there, 0 for none."""

    video: Tensor
    mask: Tensor
    truths: tuple[Truth, ...]


@dataclass(frozen=True)
class View:
    """The frame and the cameras: `cameras` is float32 `b t 3` (see world.Truth.camera)."""

    shape: VideoShape
    cameras: np.ndarray
    device: torch.device

    @property
    def unit(self) -> int:
        """Pixels in one world unit at zoom 1."""
        return min(self.shape.height, self.shape.width)


def render(
    scenes: Sequence[Scene],
    shape: VideoShape,
    fps: float = 8.0,
    device: str | torch.device = "cpu",
    truths: Sequence[Truth] | None = None,
) -> Rendered:
    """Render a batch. `truths`, where already simulated with this clock and aspect, saves doing it again."""
    if not scenes:
        raise ValueError("no scenes to render; give at least one")
    if min(shape.height, shape.width) < 16:
        raise ValueError(f"{shape.width}x{shape.height}: too small to show anything; 16 pixels a side at least")
    device = torch.device(device)
    if truths is None:
        truths = [simulate(scene, shape.frames, fps, shape.width / shape.height) for scene in scenes]
    view = View(shape, np.stack([truth.camera for truth in truths]), device)
    video = backgrounds(scenes, view)
    mask = torch.zeros(video.shape[:-1], dtype=torch.uint8, device=device)
    flat_video, flat_mask = video.view(-1, 3), mask.view(-1)
    layers = [collect(scenes, truths, view, index) for index in range(max(len(scene.actors) for scene in scenes))]
    for items in layers:
        draw_shadows(items, view, flat_video)
    for index, items in enumerate(layers):
        draw_actors(items, view, flat_video, flat_mask, index + 1)
    return Rendered(video, mask, tuple(truths))


# --- backgrounds ---------------------------------------------------------------------------------------------------


def backgrounds(scenes: Sequence[Scene], view: View) -> Tensor:
    """Every frame without its actors, uint8 `b t h w 3`."""
    shape = view.shape
    video = torch.empty(
        (len(scenes), shape.frames, shape.height, shape.width, 3), dtype=torch.uint8, device=view.device
    )
    groups: dict[tuple[str, str], list[int]] = defaultdict(list)
    for index, scene in enumerate(scenes):
        groups[scene.background, scene.camera.split()[0]].append(index)
    area = shape.height * shape.width * (1 if shape.frames == 1 else 2)
    for (name, camera), members in groups.items():
        for part in split(members, max(1, CHUNK // area)):
            video[part] = background_group([scenes[i] for i in part], name, camera, view.cameras[part], view)
    return video


def background_group(scenes: Sequence[Scene], name: str, camera: str, cameras: np.ndarray, view: View) -> Tensor:
    shape, unit = view.shape, view.unit
    density = unit * (ZOOM if camera == "zoom" else 1.0)
    margin = (PAN / 2 if camera == "pan" else 0.0) + (0.0 if camera == "still" else 2 / unit)
    width = shape.width if camera == "still" else 2 * math.ceil((shape.width / unit / 2 + margin) * density)
    height = shape.height if camera == "still" else 2 * math.ceil((shape.height / unit / 2 + 2 / unit) * density)
    x = (torch.arange(width, dtype=torch.float32, device=view.device) + 0.5 - width / 2) / density
    y = (torch.arange(height, dtype=torch.float32, device=view.device) + 0.5 - height / 2) / density
    walls = None
    if any(scene.wall for scene in scenes):
        walls = torch.tensor([[s.wall_x, s.wall_width if s.wall else 0.0] for s in scenes], device=view.device)
    count = len(scenes)
    layouts = [scene.layout for scene in scenes]
    x, y = repeat(x, "w -> n 1 w", n=count), repeat(y, "h -> n h 1", n=count)
    canvas = paint_background(name, x, y, 1 / density, layouts, walls)
    if camera == "still":
        return to_bytes(rearrange(canvas, "n c h w -> n 1 h w c")).expand(-1, shape.frames, -1, -1, -1)
    path = torch.from_numpy(cameras).to(view.device, torch.float32)  # n t 3
    sx = (torch.arange(shape.width, device=view.device) + 0.5 - shape.width / 2) / unit
    sy = (torch.arange(shape.height, device=view.device) + 0.5 - shape.height / 2) / unit
    gx = (sx / path[..., 2:] + path[..., :1]) * (2 * density / width)  # n t w
    gy = (sy / path[..., 2:] + path[..., 1:2]) * (2 * density / height)
    grid = torch.stack(
        [
            repeat(gx, "n t w -> n t h w", h=shape.height),
            repeat(gy, "n t h -> n t h w", w=shape.width),
        ],
        dim=-1,
    )
    frames = grid_sample(
        canvas, rearrange(grid, "n t h w c -> n (t h) w c"), padding_mode="border", align_corners=False
    )
    return to_bytes(rearrange(frames, "n c (t h) w -> n t h w c", t=shape.frames))


def to_bytes(colour: Tensor) -> Tensor:
    return (colour * 255 + 0.5).to(torch.uint8)


def split(items: list[int], size: int) -> Iterator[list[int]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


# --- actors --------------------------------------------------------------------------------------------------------

# The columns of one actor in one frame, float32.
COLUMNS = (
    *("x", "y", "cos", "sin", "sx", "sy", "limb", "camera x", "camera y", "zoom", "wall x", "wall half", "shadow"),
    *("red", "green", "blue", "mark body", "mark white"),
)


@dataclass(frozen=True)
class Items:
    """One actor of every scene that has it, in every frame: values `n columns`, frame numbers, shapes, half extents."""

    values: np.ndarray
    frame: np.ndarray
    shape: np.ndarray
    names: tuple[str, ...]
    half: np.ndarray

    def column(self, name: str) -> np.ndarray:
        return self.values[:, COLUMNS.index(name)]


def collect(scenes: Sequence[Scene], truths: Sequence[Truth], view: View, index: int) -> Items:
    """Gather the actors of one depth from all scenes, those outside the frame left out."""
    frames = view.shape.frames
    names = tuple(sorted(SHAPES))
    members = [number for number, scene in enumerate(scenes) if len(scene.actors) > index]
    values = np.zeros((len(members), frames, len(COLUMNS)), np.float32)
    kinds = np.zeros((len(members), frames), np.int64)
    half = np.zeros((len(members), frames, 2), np.float32)
    for row, number in enumerate(members):
        scene, truth = scenes[number], truths[number]
        actor = scene.actors[index]
        name = shape_name(actor.kind, actor.stilts)
        measured = outline(name)
        body = np.array(COLOURS[actor.colour]) / 255
        light = float(body @ (0.299, 0.587, 0.114)) > 0.5
        sizes = truth.squash[index] * (truth.scale[index] * actor.radius)[:, None]
        angle = truth.angle[index]
        c, s = np.cos(angle), np.sin(angle)
        out = values[row]
        out[:, 0:2] = truth.position[index]
        out[:, 2], out[:, 3] = c, s
        out[:, 4], out[:, 5] = sizes[:, 0] * truth.heading[index], sizes[:, 1]
        out[:, 6] = np.mod(truth.limb[index], 2 * math.pi)
        out[:, 7:10] = truth.camera
        out[:, 10], out[:, 11] = scene.wall_x, scene.wall_width / 2 if scene.wall == "hides" else -9.0
        out[:, 12] = measured.half_width if scene.background != "sky" else 0.0
        out[:, 13:16] = body
        out[:, 16:18] = (0.5, 0.0) if light else (0.45, 0.5)
        kinds[row] = names.index(name)
        ex, ey = measured.reach[0] * sizes[:, 0], measured.reach[1] * sizes[:, 1]
        half[row, :, 0] = (np.abs(c) * ex + np.abs(s) * ey) * truth.camera[:, 2]
        half[row, :, 1] = (np.abs(s) * ex + np.abs(c) * ey) * truth.camera[:, 2]
    frame = np.array(members, np.int64)[:, None] * frames + np.arange(frames)
    return Items(values.reshape(-1, len(COLUMNS)), frame.reshape(-1), kinds.reshape(-1), names, half.reshape(-1, 2))


@dataclass(frozen=True)
class Patch:
    """Pixels of some frames: flat indices `n p q` into the video, world coordinates x `n 1 q` and y `n p 1`."""

    index: Tensor
    x: Tensor
    y: Tensor


def patch(
    items: Items, chosen: np.ndarray, left: np.ndarray, top: np.ndarray, size: tuple[int, int], view: View
) -> Patch:
    """Patches of `size` (rows, columns) with these corners, moved inside the frame."""
    rows, columns = size
    shape = view.shape
    device = view.device
    first_column = torch.from_numpy(left.clip(0, shape.width - columns)).to(device)
    first_row = torch.from_numpy(top.clip(0, shape.height - rows)).to(device)
    column = first_column[:, None, None] + torch.arange(columns, device=device)
    row = first_row[:, None, None] + torch.arange(rows, device=device)[:, None]
    frame = torch.from_numpy(items.frame[chosen]).to(device)[:, None, None]
    index = (frame * shape.height + row) * shape.width + column
    camera = torch.from_numpy(items.values[chosen, 7:10]).to(device)[:, :, None, None]
    x = (column + (0.5 - shape.width / 2)) / view.unit / camera[:, 2] + camera[:, 0]
    y = (row + (0.5 - shape.height / 2)) / view.unit / camera[:, 2] + camera[:, 1]
    return Patch(index, x, y)


def corners(items: Items, view: View) -> tuple[np.ndarray, np.ndarray]:
    """The actors' centres in pixels: columns and rows, float."""
    zoom = items.column("zoom")
    column = (items.column("x") - items.column("camera x")) * zoom * view.unit + view.shape.width / 2
    row = (items.column("y") - items.column("camera y")) * zoom * view.unit + view.shape.height / 2
    return column, row


def draw_actors(items: Items, view: View, video: Tensor, mask: Tensor, number: int) -> None:
    """Draw one depth of actors into the video `(b t h w) 3` and write their number into the mask `(b t h w)`."""
    shape = view.shape
    column, row = corners(items, view)
    reach = items.half * view.unit + 1.0
    inside = (column + reach[:, 0] > 0) & (column - reach[:, 0] < shape.width)
    inside &= (row + reach[:, 1] > 0) & (row - reach[:, 1] < shape.height)
    sides = (np.ceil((2 * reach + 1) / BUCKET) * BUCKET).astype(np.int64)
    sides = np.minimum(sides, [shape.width, shape.height])
    key = (items.shape * 4096 + sides[:, 1]) * 4096 + sides[:, 0]
    for value in np.unique(key[inside]):
        chosen = np.flatnonzero(inside & (key == value))
        columns, rows = (int(side) for side in sides[chosen[0]])
        name = items.names[items.shape[chosen[0]]]
        step = max(1, CHUNK // (rows * columns))
        for start in range(0, len(chosen), step):
            part = chosen[start : start + step]
            left = np.floor(column[part] - columns / 2).astype(np.int64)
            top = np.floor(row[part] - rows / 2).astype(np.int64)
            where = patch(items, part, left, top, (rows, columns), view)
            values = torch.from_numpy(items.values[part]).to(view.device)
            alpha, colour = paint_actor(name, values, where, view.unit)
            before = video[where.index]
            video[where.index] = (before + alpha[..., None] * (colour - before) + 0.5).to(torch.uint8)
            mask[where.index] = torch.where(alpha > 0.5, number, mask[where.index].int()).to(torch.uint8)


def paint_actor(name: str, values: Tensor, where: Patch, unit: int) -> tuple[Tensor, Tensor]:
    """Coverage `n p q` and colour `n p q 3` in 0-255 of one shape in its patches."""
    column = {key: values[:, i, None, None] for i, key in enumerate(COLUMNS)}
    dx, dy = where.x - column["x"], where.y - column["y"]
    x = (column["cos"] * dx + column["sin"] * dy) / column["sx"]
    y = (column["cos"] * dy - column["sin"] * dx) / column["sy"]
    layers = SHAPES[name](x, y, column["limb"])
    sharpness = torch.minimum(column["sx"].abs(), column["sy"]) * column["zoom"] * unit  # pixels in one radius
    accent = ACCENTS.get(name.split()[0])
    fields = blend(layers, sharpness, column["mark body"], column["mark white"], accent is not None)
    alpha = cover(silhouette(layers), sharpness)
    pixel = 1 / (column["zoom"] * unit)
    wall = torch.maximum((where.x - column["wall x"]).abs() - column["wall half"], WALL_TOP - where.y)
    alpha = alpha * (1 - torch.where(where.y < FLOOR + 0.012, (0.5 - wall / pixel).clamp(0, 1), 0.0))
    body = fields[0] * (1.04 - 0.1 * dy / column["sy"])  # a little lighter on top
    channels = []
    for index, key in enumerate(("red", "green", "blue")):
        channel = column[key] * body + fields[1]
        channels.append(channel + accent[index] * fields[2] if accent else channel)
    return alpha, torch.stack(channels, dim=-1).clamp_(0, 1).mul_(255)


def cover(distance: Tensor, sharpness: Tensor) -> Tensor:
    return (0.5 - distance * sharpness).clamp_(0, 1)


def blend(layers: list[Layer], sharpness: Tensor, mark_body: Tensor, mark_white: Tensor, accent: bool) -> list[Tensor]:
    """Paint the layers in order: how much of the actor's own colour, of white and of the accent each pixel has."""
    first = layers[0].distance
    fields = [torch.full_like(first, EDGE.body), torch.zeros_like(first)]
    if accent:
        fields.append(torch.zeros_like(first))

    def over(coverage: Tensor, paint: Paint) -> None:
        values: list[Tensor | float] = [paint.body, paint.white, paint.accent]
        if paint.mark:
            values = [mark_body, mark_white, 0.0]
        for field, value in zip(fields, values):
            field += coverage * (value - field)

    for layer in layers:
        if layer.solid:
            if layer is not layers[0]:
                over(cover(layer.distance, sharpness), EDGE)
            over(cover(layer.distance + OUTLINE, sharpness), layer.paint)
        else:
            over(cover(layer.distance, sharpness), layer.paint)
    return fields


def draw_shadows(items: Items, view: View, video: Tensor) -> None:
    """Darken the floor under the actors, less the higher they are."""
    shape, unit = view.shape, view.unit
    zoom, width = items.column("zoom"), items.column("shadow") * np.abs(items.column("sx"))
    height = np.maximum(FLOOR - items.column("y") - np.abs(items.column("sy")), 0)
    strength = SHADOW * np.clip(1 - height / 0.6, 0, 1) * (width > 0)
    reach = (1.25 * width * zoom * unit).astype(np.float64)
    columns = np.minimum((np.ceil((2 * reach + 2) / BUCKET) * BUCKET).astype(np.int64), shape.width)
    rows = min(math.ceil(0.09 * ZOOM * unit) + 1, shape.height)
    column, _ = corners(items, view)
    floor = (FLOOR + 0.012 - items.column("camera y")) * zoom * unit + shape.height / 2
    shown = (strength > 0.01) & (column + reach > 0) & (column - reach < shape.width)
    for side in np.unique(columns[shown]):
        chosen = np.flatnonzero(shown & (columns == side))
        left = np.floor(column[chosen] - side / 2).astype(np.int64)
        top = np.floor(floor[chosen] - rows / 2).astype(np.int64)
        where = patch(items, chosen, left, top, (rows, int(side)), view)
        values = torch.from_numpy(np.stack([items.column("x"), width, strength], axis=1)[chosen]).to(view.device)
        centre, half, dark = (values[:, i, None, None] for i in range(3))
        distance = ((where.x - centre) / half) ** 2 + ((where.y - FLOOR - 0.012) / 0.032) ** 2
        soft = dark * (1 - distance / 1.5).clamp(min=0)
        wall_x, wall_half = (torch.from_numpy(items.values[chosen, i]).to(view.device)[:, None, None] for i in (10, 11))
        soft = torch.where((where.x - wall_x).abs() < wall_half, 0.0, soft)
        video[where.index] = (video[where.index] * (1 - soft[..., None]) + 0.5).to(torch.uint8)
