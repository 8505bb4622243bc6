"""The layers of a causal video autoencoder (Wan 2.1 and 2.2), for whole clips and for chunks.

Not standard here: a whole clip goes through every layer at once, since the first-frame rule (the first frame is never
halved or doubled in time) only concerns the layers that resample time. Every tensor is `b c t h w`, channels last.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from einops import rearrange
from torch import Generator, Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from carrara.autoencoders.causal import CausalConv, RMSNorm, Stream, channels_last, conv3d, no_frames


class ResidualBlock(nn.Module):
    """x + conv(act(conv(act(x)))) where act is RMSNorm then SiLU."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.norm1 = RMSNorm(channels)
        self.conv1 = CausalConv(channels, out)
        self.norm2 = RMSNorm(out)
        self.conv2 = CausalConv(out, out)
        self.shortcut = CausalConv(channels, out, (1, 1, 1)) if channels != out else None

    def forward(self, x: Tensor, stream: Stream) -> Tensor:
        h = self.conv1(x, stream, self.norm1.silu)
        h = self.conv2.gather(h, stream, self.norm2.silu)  # and what it was made of is free
        h = self.conv2.convolve(h)
        x = x if self.shortcut is None else self.shortcut(x, stream)
        return h.add_(x) if h.dtype == x.dtype else h + x  # nobody else has h


class FrameAttention(nn.Module):
    """Single-head self-attention among the positions of each frame."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = RMSNorm(channels, axes=2)
        self.to_qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor, stream: Stream) -> Tensor:
        b, _, t, h, w = x.shape
        tokens = rearrange(self.norm(x), "b c t h w -> (b t) 1 (h w) c")
        qkv = F.linear(tokens, self.to_qkv.weight[:, :, 0, 0], self.to_qkv.bias)
        q, k, v = qkv.chunk(3, dim=-1)
        mixed = F.scaled_dot_product_attention(q, k, v)
        out = F.linear(mixed, self.proj.weight[:, :, 0, 0], self.proj.bias)
        return x + rearrange(out, "(b t) 1 (h w) c -> b c t h w", b=b, t=t, h=h, w=w)


class Down(nn.Module):
    """Halves rows and columns by a strided convolution, then, if asked, time."""

    def __init__(self, channels: int, temporal: bool) -> None:
        super().__init__()
        self.space = nn.Conv2d(channels, channels, 3, stride=2)
        self.time = nn.Conv3d(channels, channels, (3, 1, 1), stride=(2, 1, 1)) if temporal else None

    def forward(self, x: Tensor, stream: Stream) -> Tensor:
        x = conv3d(F.pad(x, (0, 1, 0, 1)), self.space.weight[:, :, None], self.space.bias, stride=(1, 2, 2))
        if self.time is None:
            return x
        joined = x if stream.first else torch.cat([stream.take().to(x.dtype), x], dim=2)
        stream.leave(x[:, :, -1:])
        if stream.first and x.shape[2] == 1:
            return x
        halved = conv3d(joined, self.time.weight, self.time.bias, stride=(2, 1, 1))
        return channels_last(torch.cat([x[:, :, :1], halved.to(x.dtype)], dim=2)) if stream.first else halved


class Up(nn.Module):
    """Doubles time if asked (the first frame stays one), then rows and columns."""

    def __init__(self, channels: int, out: int, temporal: bool) -> None:
        super().__init__()
        self.space = nn.Conv2d(channels, out, 3, padding=1)
        self.time = CausalConv(channels, 2 * channels, (3, 1, 1)) if temporal else None

    def forward(self, x: Tensor, stream: Stream) -> Tensor:
        if self.time is not None:
            x = self._double(x, self.time, stream)
        # Repeating every position twice and then convolving is one transposed convolution, whose kernel is the mirrored
        # one summed over 2 x 2 windows: less than half the multiplications, and no large tensor in between.
        kernel = F.avg_pool2d(self.space.weight.flip(2, 3), 2, stride=1, padding=1, divisor_override=1)
        kernel = rearrange(kernel, "out c y x -> c out 1 y x")
        return channels_last(F.conv_transpose3d(x, kernel, self.space.bias, stride=(1, 2, 2), padding=(0, 1, 1)))

    def _double(self, x: Tensor, time: CausalConv, stream: Stream) -> Tensor:
        still, moving = (x[:, :, :1], x[:, :, 1:]) if stream.first else (x[:, :, :0], x)
        if not moving.shape[2]:  # only the first frame: the convolution's past begins after it, with zeros
            stream.leave(no_frames(x, 2))
            return x
        history = stream.before(moving, 2)
        pairs = conv3d(history, time.weight, time.bias)
        doubled = rearrange(pairs, "b (r c) t h w -> b (t r) h w c", r=2).movedim(-1, 1)
        return torch.cat([still.to(doubled.dtype), doubled], dim=2) if stream.first else doubled


def average_down(x: Tensor, out: int, time: int, space: int) -> Tensor:
    """Space (and time) folded into channels, which are then averaged in groups: a shortcut without parameters.

    An odd number of frames holds the clip's first, which is paired with zeros. Written as a convolution with fixed
    weights, which is many times faster than moving the values.
    """
    if odd := x.shape[2] % time:
        x = torch.cat([no_frames(x, time - odd), x], dim=2)
    group = x.shape[1] * time * space**2 // out
    kernel = torch.eye(out, dtype=x.dtype, device=x.device).repeat_interleave(group, dim=1) / group
    return conv3d(x, kernel.reshape(out, -1, time, space, space), None, stride=(time, space, space))


def repeat_up(x: Tensor, out: int, time: int, space: int, first: bool) -> Tensor:
    """Channels repeated, then unfolded into space (and time); of the first frame only the last copy is kept."""
    width = x.shape[1]
    kernel = torch.eye(width, dtype=x.dtype, device=x.device).repeat_interleave(out * time * space**2 // width, dim=1)
    kernel = kernel.reshape(width, out, time, space, space)
    return F.conv_transpose3d(x, kernel, stride=(time, space, space))[:, :, time - 1 if first else 0 :]


class Level(nn.Module):
    """Residual blocks at one resolution, then a step to the next one."""

    def __init__(self, dims: Sequence[int], step: Down | Up | None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(ResidualBlock(a, b) for a, b in pairwise(dims))
        self.step = step
        self.out = dims[-1]

    def pieces(self) -> list[nn.Module]:
        """What runs one after the other: whoever calls these himself holds nothing that the next does not read."""
        return [*self.blocks] if self.step is None else [*self.blocks, self.step]

    def forward(self, x: Tensor, stream: Stream) -> Tensor:
        for piece in Level.pieces(self):
            x = piece(x, stream)
        return x


class ResidualDownLevel(Level):
    """A level with a shortcut around all of it (Wan 2.2)."""

    def pieces(self) -> list[nn.Module]:
        return [self]

    def forward(self, x: Tensor, stream: Stream) -> Tensor:
        time, space = _factors(self.step)
        return super().forward(x, stream) + average_down(x, self.out, time, space)


class ResidualUpLevel(Level):
    """A level with a shortcut around all of it, but for the finest (Wan 2.2)."""

    def pieces(self) -> list[nn.Module]:
        return [self]

    def forward(self, x: Tensor, stream: Stream) -> Tensor:
        h = super().forward(x, stream)
        if self.step is None:
            return h
        time, space = _factors(self.step)
        return h + repeat_up(x, self.out, time, space, stream.first)


def _factors(step: Down | Up | None) -> tuple[int, int]:
    return (1, 1) if step is None else (1 if step.time is None else 2, 2)


class Middle(nn.Module):
    """Residual block, attention within frames, residual block."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = ResidualBlock(channels, channels)
        self.attention = FrameAttention(channels)
        self.last = ResidualBlock(channels, channels)

    def pieces(self) -> list[nn.Module]:
        return [self.first, self.attention, self.last]

    def forward(self, x: Tensor, stream: Stream) -> Tensor:
        for piece in self.pieces():
            x = piece(x, stream)
        return x


class Trunk(nn.Module):
    """What encoder and decoder share: convolution in, parts in order, norm and convolution out."""

    def __init__(self, channels: int, widths: tuple[int, int], out: int) -> None:
        super().__init__()
        self.conv_in = CausalConv(channels, widths[0])
        self.norm_out = RMSNorm(widths[1])
        self.conv_out = CausalConv(widths[1], out)
        self.checkpointing = False

    def parts(self) -> list[Level | Middle]:
        raise NotImplementedError

    def forward(self, x: Tensor, stream: Stream) -> Tensor:
        x = self.conv_in(x, stream)
        for part in self.parts():
            # A pass that keeps or reads state is not repeatable, so only whole clips are recomputed.
            if self.checkpointing and stream.whole and torch.is_grad_enabled():
                x = checkpoint(part, x, stream, use_reentrant=False)
            else:
                for piece in part.pieces():
                    x = piece(x, stream)
        return self.conv_out(x, stream, self.norm_out.silu)


@torch.no_grad()
def initialise(module: nn.Module, generator: Generator) -> None:
    """Start values for training from scratch, in place.

    Convolutions keep the variance of what they read, and those in space and time begin in space alone: the taps on
    the past are zero, so what was learned on single frames is not disturbed by the first clips. Residual branches
    begin at zero (blocks, attention) or small (a level with a shortcut around it). A step in time begins as the mean of
    the two newest frames on the way down and as a copy on the way up, so that the first frame, which takes no such
    step, and the others agree from the start.
    """
    for part in module.modules():
        if isinstance(part, nn.Conv2d | nn.Conv3d):
            past = part.kernel_size[0] - 1 if isinstance(part, CausalConv) else 0
            fan_in = part.weight[:, :, past:].numel() / len(part.weight) if past else part.weight[0].numel()
            part.weight.normal_(std=1 / math.sqrt(fan_in), generator=generator)
            if past:
                part.weight[:, :, :past] = 0
            if part.bias is not None:
                part.bias.zero_()
    for part in module.modules():
        if isinstance(part, ResidualBlock):
            part.conv2.weight.zero_()
        elif isinstance(part, FrameAttention):
            part.proj.weight.zero_()
        elif isinstance(part, Down) and part.time is not None:
            _mix_frames(part.time.weight, (0.0, 0.5, 0.5))
        elif isinstance(part, Up) and part.time is not None:
            _mix_frames(part.time.weight, (0.0, 0.0, 1.0))
        elif isinstance(part, ResidualDownLevel | ResidualUpLevel) and part.step is not None:
            part.step.space.weight.mul_(0.1)


def _mix_frames(weight: Tensor, taps: tuple[float, float, float]) -> None:
    """Every output frame the same mix of three input frames, channel by channel."""
    same = torch.eye(weight.shape[1], device=weight.device).repeat(weight.shape[0] // weight.shape[1], 1)
    weight.copy_((same[..., None] * torch.tensor(taps, device=weight.device))[..., None, None])


class VideoEncoder(Trunk):
    """Pixels (or folded pixels) to the moments of the latents."""

    def __init__(
        self, channels: int, dims: Sequence[int], out: int, blocks: int, temporal: Sequence[bool], residual: bool
    ) -> None:
        super().__init__(channels, (dims[0], dims[-1]), out)
        kind = ResidualDownLevel if residual else Level
        steps = [*(Down(width, time) for width, time in zip(dims[1:], temporal)), None]
        self.levels = nn.ModuleList(kind([a] + [b] * blocks, step) for a, b, step in zip(dims, dims[1:], steps))
        self.middle = Middle(dims[-1])

    def parts(self) -> list[Level | Middle]:
        return [*self.levels, self.middle]


class VideoDecoder(Trunk):
    """Latents to pixels (or folded pixels)."""

    def __init__(
        self, channels: int, dims: Sequence[int], out: int, blocks: int, temporal: Sequence[bool], residual: bool
    ) -> None:
        super().__init__(channels, (dims[0], dims[-1]), out)
        self.middle = Middle(dims[0])
        kind = ResidualUpLevel if residual else Level
        levels: list[nn.Module] = []
        for index, (narrow, wide) in enumerate(pairwise(dims)):
            # Without shortcuts a step up halves the channels, so the next level is entered with half of them.
            enter = narrow if residual or index == 0 else narrow // 2
            last = index == len(temporal)
            step = None if last else Up(wide, wide if residual else wide // 2, temporal[index])
            levels.append(kind([enter] + [wide] * (blocks + 1), step))
        self.levels = nn.ModuleList(levels)

    def parts(self) -> list[Level | Middle]:
        return [self.middle, *self.levels]
