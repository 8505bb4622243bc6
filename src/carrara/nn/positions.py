"""Where a token is in the clip: rotary positions over (time, row, column).

Not standard: positions are real numbers, not indices into a table, so a keyframe between two latent frames has its
true time. Angles are float64 and only their cosine and sine are rounded to float32. Channels (2i, 2i + 1) are the
real and imaginary part of pair i (interleaved pairs, as in Wan).
Source: RoFormer (arXiv:2104.09864), eq. 34, one axis after the other along the channels.
"""

from __future__ import annotations

import torch
from torch import Tensor


def angle_dtype(device: torch.device) -> torch.dtype:
    """float64, except on the one backend that has none."""
    return torch.float32 if device.type == "mps" else torch.float64


def axis_widths(head_dim: int) -> tuple[int, int, int]:
    """How many of a head's channels turn with time, row and column: a third each, time takes the rest."""
    if head_dim < 6 or head_dim % 2:
        raise ValueError(f"head_dim={head_dim}: rotary positions need an even width of at least 6, such as 64 or 128")
    space = 2 * (head_dim // 6)
    return head_dim - 2 * space, space, space


def grid_positions(times: Tensor, rows: int, columns: int) -> Tensor:
    """Positions `(..., f * rows * columns, 3)` of the tokens of frames at `times` `(..., f)`, in (f, h, w) order."""
    device, dtype = times.device, angle_dtype(times.device)
    *batch, frames = times.shape
    shape = (*batch, frames, rows, columns)
    time = times.to(dtype)[..., None, None].expand(shape)
    row = torch.arange(rows, device=device, dtype=dtype)[:, None].expand(shape)
    column = torch.arange(columns, device=device, dtype=dtype).expand(shape)
    return torch.stack((time, row, column), dim=-1).flatten(-4, -2)


def rotations(positions: Tensor, head_dim: int, theta: float = 10000.0) -> Tensor:
    """Cosine and sine `(..., n, head_dim / 2, 2)` of how far each channel pair turns at `positions` `(..., n, 3)`.

    Pair i of an axis of width w turns by position * theta^(-2i / w).
    """
    angles = [
        position[..., None]
        * theta ** (-torch.arange(0, width, 2, device=positions.device, dtype=positions.dtype) / width)
        for position, width in zip(positions.unbind(-1), axis_widths(head_dim))
    ]
    angle = torch.cat(angles, dim=-1)
    return torch.stack((angle.cos(), angle.sin()), dim=-1).float()


def rotate(x: Tensor, turns: Tensor) -> Tensor:
    """Turn the channel pairs of heads `b n h c` by `turns` `(b or 1, n, c / 2, 2)`, in float32."""
    pairs, turns = x.float().unflatten(-1, (-1, 2)), turns[..., None, :, :]
    if torch.compiler.is_compiling():  # compilers fuse real arithmetic, and leave complex numbers alone
        (real, imaginary), (cos, sin) = pairs.unbind(-1), turns.unbind(-1)
        return torch.stack((real * cos - imaginary * sin, real * sin + imaginary * cos), dim=-1).flatten(-2)
    return torch.view_as_real(torch.view_as_complex(pairs) * torch.view_as_complex(turns)).flatten(-2)
