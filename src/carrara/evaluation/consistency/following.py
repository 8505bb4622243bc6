"""Points followed along the optical flow, forwards and backwards from the frame in which they were chosen."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from carrara.evaluation.consistency.flow import WINDOW, sample, smooth

GRID = 2  # pixels between chosen points
MARGIN = 2  # pixels around what moves that are not surely still
MOST_NEAR = 0.5  # of the picture may be near what moves; if more seems to move, nothing is excused from standing still


@dataclass(frozen=True, eq=False)
class Tracks:
    """points: float `t p 2`, x and y in pixels; counts: bool `t p`, where a point is in the picture and means
    something; first: which frame of the steps `points` begins with; chosen: which of `points` the others come from."""

    points: Tensor
    counts: Tensor
    first: int
    chosen: int


def follow(forth: Tensor, back: Tensor, moving: Tensor, span: int, still: bool = False) -> list[Tracks]:
    """Tracks over successive spans of `span` steps, of points in what moves, or of points in all else (`still`).

    forth, back: flows of the steps, `n 2 h w`, back from n + 1 to n; moving: bool `n h w`, of the frames that steps
    start from. Points are chosen in a frame in which as much moves as usually in its span (most moves where the flow
    fails), for what is still where least moves. Spans without a point are left out.
    """
    height, width = forth.shape[-2:]
    area = torch.cat((moving, moving[-1:])).float()[:, None]
    near = torch.maximum(area, torch.cat((area[:1], area[:-1])))  # what a step ends at has moved as well
    near = F.max_pool2d(near, 2 * MARGIN + 1, 1, MARGIN)[:, 0] > 0
    near &= near.float().mean((1, 2), keepdim=True) <= MOST_NEAR
    inner = -F.max_pool2d(-area, WINDOW, 1, WINDOW // 2)[:, 0] > 0  # blocks spread motion over the edge of what moves
    places = torch.zeros(height, width, dtype=torch.bool)
    places[GRID // 2 :: GRID, GRID // 2 :: GRID] = True
    found = []
    for first in range(0, len(forth), span):
        last = min(first + span, len(forth))
        amounts = inner[first:last].flatten(1).sum(1)
        usual = amounts[amounts > 0].median() if (amounts > 0).any() else amounts.min()
        chosen = int(amounts.argmin() if still else (amounts - usual).abs().argmin())
        y, x = torch.nonzero((~near[first + chosen] if still else inner[first + chosen]) & places, as_tuple=True)
        if not len(x):
            continue
        points = {chosen: torch.stack((x, y), -1).float()}
        for at in range(chosen, last - first):
            points[at + 1] = _moved(points[at], forth[first + at])
        for at in range(chosen, 0, -1):
            points[at - 1] = _moved(points[at], back[first + at - 1])
        path = torch.stack([points[at] for at in range(last - first + 1)])
        inside = ((path >= 0) & (path <= path.new_tensor([width - 1, height - 1]))).all(-1)
        if still:
            inside &= values_at(near[first : last + 1, None].float(), path)[..., 0] == 0
        found.append(Tracks(path, inside, first, chosen))
    return found


@dataclass(frozen=True, eq=False)
class Changes:
    """Mean differences of colour along tracks, in levels, of all that count: to the chosen frame, and between
    neighbours; elsewhere: how the chosen places differ from places far from them in the same frame."""

    to_origin: Tensor
    to_previous: Tensor
    elsewhere: Tensor


def changes(frames: Tensor, tracks: Tracks) -> Changes:
    """How colours change along tracks; frames: the steps' pictures, `n c h w`."""
    blurred = smooth(frames[tracks.first : tracks.first + len(tracks.points)], 3)
    colours = values_at(blurred, tracks.points)
    origin, counted = colours[tracks.chosen], tracks.counts & tracks.counts[tracks.chosen]
    others = torch.arange(len(colours)) != tracks.chosen
    to_origin = (colours[others] - origin).abs().mean(-1)[counted[others]]
    to_previous = (colours[1:] - colours[:-1]).abs().mean(-1)[tracks.counts[1:] & tracks.counts[:-1]]
    here, (height, width) = blurred[tracks.chosen], blurred.shape[-2:]
    shifts = ((height // 2, 0), (0, width // 2), (height // 3, width // 3), (height // 3, -(width // 3)))
    far = torch.stack([here.roll(shift, (-2, -1)) for shift in shifts])
    there = values_at(far, tracks.points[tracks.chosen].expand(len(shifts), -1, -1))
    return Changes(to_origin, to_previous, (there - origin).abs().mean(-1).flatten())


def values_at(pictures: Tensor, points: Tensor) -> Tensor:
    """Values of `t c h w` at points `t p 2`: `t p c`."""
    return rearrange(sample(pictures, rearrange(points, "t p xy -> t xy p")), "t c p -> t p c")


def _moved(points: Tensor, flow: Tensor) -> Tensor:
    return points + values_at(flow[None], points[None])[0]
