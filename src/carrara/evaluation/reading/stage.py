"""What stands still in a clip: the camera's path, the background's name, and the picture behind the actors.

The pond's own painters, run on fresh layouts, say which colours each background shows at each height (its gamut). A
clip's background is the one whose gamut explains most of its pixels. The camera is the one of the five whose movement,
taken back, leaves the least change from frame to frame. Everything after that happens on the *canvas*: the frames with
the camera taken out, in world coordinates, so that an actor's track is free of it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray
from scipy import ndimage
from torch.nn.functional import grid_sample, interpolate

from carrara.data.pond.backgrounds import paint_background
from carrara.data.pond.simulate import camera_path
from carrara.data.pond.world import BACKGROUNDS, CAMERAS
from carrara.evaluation.reading.colours import Array, to_lab
from carrara.evaluation.reading.plate import make_plate

ROWS = 64  # heights at which colours are known, over the frame's shorter side
BIN = 6.0  # CIELAB units of a bin of a gamut
BINS = (18, 40, 40)
LAYOUTS = range(900_000, 900_040)  # of the fresh backgrounds that calibrate the gamuts
COMMON = 0.015  # share of a height's pixels above which a colour counts as the background's own there
RARE = 1e-4  # share above which it is at least possible
EXPLAINED = 0.5  # share of a clip's pixels that its background must explain to be named
WALL = 0.05  # of the frame's shorter side squared, above which brick-coloured pixels are a wall (the pond's: 0.09)
RIM = 2  # pixels of a wall's edge that are blended with what is beside it
CHANGE = 1.0  # of the still camera's frame-to-frame change, below which another camera is believed
SCENERY = 0.8  # of the pixels, those that change least: what actors cannot cover
FAINT = 0.1  # levels of change that are nothing
SMOOTH = 1.5  # pixels of blur at a shorter side of 64, against noise, which every movement that is taken back blurs


@dataclass(frozen=True)
class Stage:
    """canvas: uint8 `t h w 3`, the frames in world coordinates, and lab, the same in CIELAB; valid: bool `t h w`;
    plate: CIELAB `h w 3`, the picture without the actors; unit: pixels per world unit; origin: canvas column and row of
    the world's origin; wall: bool `h w`, where a wall stands."""

    background: str | None
    camera: str
    canvas: NDArray[np.uint8]
    lab: Array
    valid: NDArray[np.bool_]
    plate: Array
    wall: NDArray[np.bool_]
    unit: float
    origin: tuple[float, float]


# --- gamuts --------------------------------------------------------------------------------------------------------


def bins(lab: Array) -> NDArray[np.int64]:
    """The gamut bin of CIELAB values `... 3`, a flat index."""
    l = np.clip(lab[..., 0] / BIN, 0, BINS[0] - 1).astype(np.int64)
    a = np.clip(lab[..., 1] / BIN + BINS[1] / 2, 0, BINS[1] - 1).astype(np.int64)
    b = np.clip(lab[..., 2] / BIN + BINS[2] / 2, 0, BINS[2] - 1).astype(np.int64)
    return (l * BINS[1] + a) * BINS[2] + b


@lru_cache(maxsize=1)
def gamuts() -> dict[str, Array]:
    """How common each colour bin is at each height, `rows bins`, per background; from fresh layouts, made once."""
    side = 2 * ROWS
    at = (torch.arange(side, dtype=torch.float32) + 0.5) / side - 0.5
    count = len(LAYOUTS)
    x, y = at.expand(count, 1, side), at[:, None].expand(count, side, 1)
    found = {}
    for name in BACKGROUNDS:
        painted = paint_background(name, x, y, 1 / side, list(LAYOUTS), None)
        rgb = rearrange(painted * 255, "n c (r two) w -> r (n two w) c", two=2).round().to(torch.uint8).numpy()
        index = bins(to_lab(rgb))
        table = np.zeros((ROWS, math.prod(BINS)), np.float32)
        for row in range(ROWS):
            table[row] = np.bincount(index[row], minlength=table.shape[1]) / index.shape[1]
        cube = ndimage.maximum_filter(table.reshape(ROWS, *BINS), size=(3, 3, 3, 3), mode="constant")
        found[name] = cube.reshape(ROWS, -1)
    return found


def commonness(name: str, lab: Array, origin_row: float, unit: float) -> Array:
    """How common each pixel's colour is at its height on this background, `... h w` from CIELAB `... h w 3`."""
    height = (np.arange(lab.shape[-3]) + 0.5 - origin_row) / unit
    rows = np.clip((height + 0.5) * ROWS, 0, ROWS - 1).astype(np.int64)
    return gamuts()[name][rows[:, None], bins(lab)]


def read_background(
    lab: Array, valid: NDArray[np.bool_], origin_row: float, unit: float
) -> tuple[str | None, dict[str, float]]:
    """The background that explains most pixels of CIELAB frames `t h w 3`, and the share that each one explains."""
    picture = np.median(lab, axis=0)
    seen = valid.all(axis=0)
    share = {
        name: float((commonness(name, picture, origin_row, unit)[seen] >= COMMON / 3).mean()) if seen.any() else 0.0
        for name in BACKGROUNDS
    }
    best = max(share, key=lambda name: share[name])
    return (best if share[best] >= EXPLAINED else None), share


# --- camera --------------------------------------------------------------------------------------------------------


def stabilise(
    frames: NDArray[np.uint8], path: NDArray[np.float64]
) -> tuple[NDArray[np.uint8], NDArray[np.bool_], tuple[float, float]]:
    """Frames `t h w 3` with a camera path `t 3` taken out: canvas, where it is known, and the origin on it."""
    _, height, width, _ = frames.shape
    unit = min(height, width)
    wide = width + 2 * math.ceil(np.abs(path[:, 0]).max() * unit)
    sx = (np.arange(wide) + 0.5 - wide / 2) / unit
    sy = (np.arange(height) + 0.5 - height / 2) / unit
    gx = (sx[None] - path[:, 0:1]) * path[:, 2:] * 2 * unit / width
    gy = (sy[None] - path[:, 1:2]) * path[:, 2:] * 2 * unit / height
    shape = (len(frames), height, wide)
    grid = np.stack([np.broadcast_to(gx[:, None, :], shape), np.broadcast_to(gy[:, :, None], shape)], axis=-1)
    video = rearrange(torch.from_numpy(np.ascontiguousarray(frames)).float(), "t h w c -> t c h w")
    warped = grid_sample(video, torch.from_numpy(grid).float(), padding_mode="border", align_corners=False)
    valid = (np.abs(grid) <= 1).all(axis=-1)
    canvas = rearrange(warped, "t c h w -> t h w c").round().to(torch.uint8).numpy()
    return canvas, valid, (wide / 2, height / 2)


def change(canvas: NDArray[np.uint8], valid: NDArray[np.bool_]) -> float:
    """How much the scenery moves away from where it was at the start: the mean difference in 0-255 of the pixels that
    change least, whatever actors do in the others."""
    step = max(1, len(canvas) // 4)
    picture = ndimage.gaussian_filter(canvas.astype(np.float32), (0, SMOOTH, SMOOTH, 0))
    early, late = picture[:-step:step], picture[step::step]
    both = valid[:-step:step] & valid[step::step]
    if not both.any(axis=(1, 2)).all():
        return math.inf
    changed = [np.sort(pixels[seen]) for pixels, seen in zip(np.abs(late - early).max(axis=-1), both)]
    return float(np.mean([pixels[: max(1, int(SCENERY * len(pixels)))].mean() for pixels in changed]))


def read_camera(frames: NDArray[np.uint8], fps: float) -> str:
    """Which of the pond's cameras filmed `t h w 3`: the movement that, taken back, makes the picture stand still."""
    if len(frames) < 5:
        return "still"
    video = rearrange(torch.from_numpy(np.ascontiguousarray(frames)).float(), "t h w c -> t c h w")
    scale = 64 / min(frames.shape[1:3])
    if scale < 1:
        video = interpolate(video, scale_factor=scale, mode="area")
    small = rearrange(video, "t c h w -> t h w c").round().to(torch.uint8).numpy()
    times = np.arange(len(frames)) / fps
    found = {name: change(*stabilise(small, camera_path(name, times))[:2]) for name in CAMERAS}
    best = min(found, key=lambda name: found[name])
    return best if found[best] + FAINT < CHANGE * (found["still"] + FAINT) else "still"


def loose_pixels(
    name: str | None, lab: Array, valid: NDArray[np.bool_], origin_row: float, unit: float
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Pixels `t h w` whose colour is not common at their height, and those whose colour the background ever has there.

    On an unknown background: what differs from the row's middle, and nothing.
    """
    if name is not None:
        common = commonness(name, lab, origin_row, unit)
        return (common < COMMON) & valid, (common > RARE) & valid
    middle = np.median(lab, axis=(0, 2), keepdims=True)
    loose = (np.linalg.norm(lab - middle, axis=-1) > 25) & valid
    return loose, np.zeros_like(loose)


def brick_pixels(lab: Array, valid: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Pixels `h w` of a brick wall and its blended edge; none where there is too little of its colours to be one."""
    mortar, brick = to_lab(np.array([[110, 102, 110], [153, 140, 143]], np.uint8))
    along = np.clip(((lab - mortar) @ (brick - mortar)) / float((brick - mortar) @ (brick - mortar)), -0.3, 1.3)
    off = np.linalg.norm(lab - mortar - along[..., None] * (brick - mortar), axis=-1)
    like = (off < 9) & valid
    tall = np.ones((round(0.3 * min(lab.shape[1:3])), 5))  # the floor of the plain background is as grey, but low
    steady = ndimage.binary_opening(like.mean(axis=0) > 0.5, structure=tall)
    if steady.sum() < WALL * min(steady.shape) ** 2:
        return np.zeros_like(steady)
    return ndimage.binary_dilation(steady, structure=np.ones((3, 3)), iterations=RIM)


def read_stage(frames: NDArray[np.uint8], fps: float) -> Stage:
    """Everything that stands still in `t h w 3`."""
    camera = read_camera(frames, fps)
    unit = float(min(frames.shape[1:3]))
    if camera == "still":
        canvas, valid = frames, np.ones(frames.shape[:3], bool)
        origin = (frames.shape[2] / 2, frames.shape[1] / 2)
    else:
        canvas, valid, origin = stabilise(frames, camera_path(camera, np.arange(len(frames)) / fps))
    lab = to_lab(canvas)
    background, _ = read_background(lab, valid, origin[1], unit)
    loose, possible = loose_pixels(background, lab, valid, origin[1], unit)
    wall = brick_pixels(lab, valid)
    plate = make_plate(lab, loose, possible | wall, valid)
    return Stage(background, camera, canvas, lab, valid, plate, wall, unit, origin)
