"""Causality in time: streams of frames, convolutions that see only the past, and the norm between them.

Every tensor is `b c t h w`, channels last in memory. Not standard here: a `Stream` carries what layers remember of
earlier frames through one pass, so no layer holds state; and norm and SiLU are one differentiable step, because on a
CPU their passes over memory cost as much as the convolutions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn import functional as F

PIECE = 4 * 2**20  # bytes that stay in a processor's cache from one pass to the next
State = tuple[Tensor, ...]  # what every layer with a memory left, in the order in which they run
Change = Callable[[Tensor, Tensor | None], Tensor]  # of every frame by itself, written to the second where there is one
Triple = tuple[int, int, int]  # frames, rows, columns


class Stream:
    """One pass over a chunk of frames: layers take what the chunk before left, and leave what the next will need.

    `Stream()` is a whole clip: it begins with nothing and keeps nothing, so layers stay pure and can be recomputed.
    spend: the past is not needed again, so what is left is written over it, and memory holds one state instead of two.
    """

    def __init__(self, past: State | None = None, *, keep: bool = False, spend: bool = False) -> None:
        self.first = past is None  # this chunk holds the clip's first frame
        self.keep = keep
        self.whole = self.first and not keep
        self._past = past or ()
        self._spend = spend and not torch.is_grad_enabled()
        self._taken = 0
        self._left: list[Tensor] = []

    def take(self) -> Tensor:
        """What the calling layer left at the chunk before, for it to copy. Only where `first` is false."""
        self._taken += 1
        return self._past[self._taken - 1]

    def leave(self, frames: Tensor) -> None:
        """Keep frames for the calling layer at the next chunk: a copy, so that the chunk itself can be freed.

        A layer leaves once in a chunk, after it has taken and copied what it left before.
        """
        if not self.keep:
            return
        old = self._past[len(self._left)] if self._spend and not self.first else None
        if old is not None and old.shape == frames.shape and old.dtype == frames.dtype and _writable(old):
            self._left.append(old.copy_(frames))
        else:
            self._left.append(frames.detach().clone() if not torch.is_grad_enabled() else frames.clone())

    def before(self, x: Tensor, frames: int, change: Change | None = None) -> Tensor:
        """x, changed, with the frames before it in front, zeros where the clip begins.

        Where nothing is to be learned it is changed by pieces that fit a cache, straight to where it is read: the same
        bits, without four passes over memory.
        """
        past = no_frames(x, frames) if self.first else self.take().to(x.dtype)
        if change is None or torch.is_grad_enabled():
            joined = torch.cat([past, x if change is None else change(x, None)], dim=2)
        else:
            b, c, t, h, w = x.shape
            joined = x.new_empty(b, frames + t, h, w, c).movedim(-1, 1)
            joined[:, :, :frames] = past
            each = max(1, PIECE // max(1, x[:, :, 0].nbytes))
            for piece, room in zip(x.split(each, dim=2), joined[:, :, frames:].split(each, dim=2), strict=True):
                change(piece, room)
        self.leave(joined[:, :, -frames:])
        return joined

    def state(self) -> State:
        return tuple(self._left)


def _writable(x: Tensor) -> bool:
    return not x.is_inference() or torch.is_inference_mode_enabled()


def channels_last(x: Tensor) -> Tensor:
    """x as it is, or moved: some kernels (transposed, of few channels in float32) write another layout.

    It would spread to all that follows, and cost a third of a decoding.
    """
    return x.contiguous(memory_format=torch.channels_last_3d)


def conv3d(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: Triple = (1, 1, 1), padding: Triple = (0, 0, 0)
) -> Tensor:
    """The convolution of `b c t h w`, channels last.

    torch gives a small one (one clip, at most 20,480 rows) in float32 on a CPU to a kernel that unfolds its input: 27
    times the memory, and up to 20 times the time of oneDNN's. So here oneDNN is asked, where nothing is to be learned.
    And its kernels for tiles (AMX) take channels in pairs: three of bfloat16 cost 2.5 times as much as four.
    """
    if x.shape[1] % 2 and x.is_cpu and x.dtype == torch.bfloat16 == weight.dtype and not torch.is_grad_enabled():
        x, weight = (_one_channel_more(part) for part in (x, weight))
    if _by_onednn(x, weight):
        return channels_last(torch.mkldnn_convolution(x, weight, bias, padding, stride, (1, 1, 1), 1))
    return channels_last(F.conv3d(x, weight, bias, stride, padding))


def _one_channel_more(x: Tensor) -> Tensor:
    """x with a channel of zeros behind the others, channels last."""
    return F.pad(x.movedim(1, -1), (0, 1)).movedim(-1, 1)


def _by_onednn(x: Tensor, weight: Tensor) -> bool:
    if torch.is_grad_enabled() or torch.is_autocast_enabled("cpu") or torch.compiler.is_compiling():
        return False
    there = torch.backends.mkldnn.is_available() and bool(torch.backends.mkldnn.enabled)
    return there and x.is_cpu and x.dtype == weight.dtype == torch.float32


def no_frames(x: Tensor, frames: int) -> Tensor:
    """Zeros before x, `b c frames h w`, channels last as x is: joined with another layout x would lose its own."""
    b, c, _, h, w = x.shape
    return x.new_zeros(b, frames, h, w, c).movedim(-1, 1)


class CausalConv(nn.Conv3d):
    """3D convolution that sees the present frame and those before: time is padded on the left only."""

    def __init__(self, channels: int, out: int, kernel: Triple = (3, 3, 3)) -> None:
        super().__init__(channels, out, kernel, padding=(0, kernel[1] // 2, kernel[2] // 2))

    def forward(self, x: Tensor, stream: Stream, change: Change | None = None) -> Tensor:  # type: ignore[override]
        """The convolution of x, changed first."""
        return self.convolve(self.gather(x, stream, change))

    def gather(self, x: Tensor, stream: Stream, change: Change | None = None) -> Tensor:
        """The first half of `forward`: all that the kernel reads. A caller that has no other use of x can let it go."""
        history = self.kernel_size[0] - 1
        if not history or (stream.whole and x.shape[2] == 1):  # an image: the taps on the past would only meet zeros
            return x if change is None else change(x, None)
        return stream.before(x, history, change)

    def convolve(self, read: Tensor) -> Tensor:
        """The second half: what `gather` gave, with as many of the newest taps as it has frames."""
        taps = self.weight[:, :, -read.shape[2] :] if read.shape[2] < self.kernel_size[0] else self.weight
        return conv3d(read, taps, self.bias, padding=(0, self.kernel_size[1] // 2, self.kernel_size[2] // 2))


class RMSNorm(nn.Module):
    """x / rms(x over channels) * gamma (Zhang and Sennrich 2019, without bias).

    Written by the mean square, which equals L2-normalising and scaling by the root of the width.
    """

    def __init__(self, channels: int, axes: int = 3) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(channels, *[1] * axes))

    def forward(self, x: Tensor) -> Tensor:
        scale = _inverse_rms(x.movedim(1, -1)).movedim(-1, 1)
        return x * (scale * self.gamma.reshape(-1, 1, 1, 1).to(x.dtype))

    def silu(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        """SiLU of the normalised x, as one step that stores nothing but x and its scale for the backward pass.

        out: where it is written instead, the same bits without a copy; only where nothing is to be learned.
        """
        if out is None:
            return _NormSiLU.apply(x, self.gamma.flatten())
        last, room = x.movedim(1, -1), out.movedim(1, -1)
        torch.mul(last, _inverse_rms(last) * self.gamma.flatten().to(x.dtype), out=room)
        F.silu(room, inplace=True)
        return out


def _inverse_rms(x: Tensor) -> Tensor:
    """`... c` to `... 1`. The mean is a matrix product, which sums in float32 and is the fastest form on a CPU."""
    wide = torch.float32 if x.dtype == torch.float16 else x.dtype  # squares of float16 overflow beyond 256
    with torch.autocast(x.device.type, enabled=False):
        mean = x.to(wide).square() @ torch.full((x.shape[-1], 1), 1 / x.shape[-1], dtype=wide, device=x.device)
        return (mean.to(torch.promote_types(wide, torch.float32)) + 1e-12).rsqrt().to(x.dtype)


class _NormSiLU(torch.autograd.Function):
    """With s = 1 / rms(x), n = x s and u = gamma n: y = silu(u), and from g = dy silu'(u),

    dgamma = sum of g n over places; dx = s (gamma g - n mean over channels of gamma g n).
    """

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, gamma: Tensor) -> Tensor:
        last = x.movedim(1, -1)
        scale = _inverse_rms(last)
        ctx.save_for_backward(x, gamma, scale)
        return F.silu(last * (scale * gamma.to(x.dtype)), inplace=True).movedim(-1, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor, Tensor]:
        x, gamma, scale = ctx.saved_tensors
        gain = gamma.to(x.dtype)
        n = x.movedim(1, -1) * scale
        g = torch.ops.aten.silu_backward(outer.movedim(1, -1), n * gain)
        gn = g * n
        mean = gn @ (gain / len(gain))[:, None]
        ones = gn.new_ones(1, gn[..., 0].numel())
        dgamma = (ones @ gn.reshape(-1, len(gain)))[0].to(gamma.dtype)
        dx = g.mul_(gain).sub_(n.mul_(mean)).mul_(scale)
        return dx.movedim(-1, 1), dgamma
