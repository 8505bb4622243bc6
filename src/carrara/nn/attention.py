"""Multi-head attention with full-width RMS-normalised queries and keys, and a bias per key.

Not standard: queries and keys are normalised over all heads together before the heads are split (Wan), and a key may
carry a bias, so that r equal keys are one key with bias log r: softmax counts exp(s) r times, or exp(s + log r) once.
On a CPU without gradients, scores are made a cache's worth at a time, each piece by the plain formula to its end. At
inference, layers of the same input that lie one after the other in memory (`nn/packing.py`) are one product.
"""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from carrara.nn import fused
from carrara.nn.layers import Linear, compute_dtype
from carrara.nn.packing import side_by_side
from carrara.nn.sequence import Parts

SHORT = 2048
"""On CPUs with gradients, up to so many keys, plain products beat the streaming kernel (80: 3 times; 1280: 1.2)."""

PIECE = 1 << 19
"""So many scores at a time, on a CPU without gradients. On one core in bfloat16 the same bits come 3 times faster than
from the whole matrix of scores and 2 times faster than from the streaming kernel (576 to 2304 keys), and memory does
not grow with the number of keys."""

SHORT_WIDE = 1024
"""Beyond so many keys of another type than bfloat16 the streaming kernel is the faster one (1280: 1.15 times)."""

STREAMED = 128
"""From so many keys on, where the processor multiplies bfloat16 tiles (AMX), the streaming kernel, which uses them, is
the faster one for bfloat16 without gradients (144 keys: 1.2 times; 576: 1.6; 1280: 1.9). It is nearer to the exact
result, too, but would round a bias to bfloat16."""


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """softmax(q k' + bias) v for `b h n c` queries and `b h m c` keys and values.

    bias: `b 1 1 l`, of the last l keys; the others have none. Queries carry the factor 1 / sqrt(c).
    """
    bias = None if bias is None or not bias.shape[-1] else bias
    if q.device.type == "cpu":
        plain = torch.is_grad_enabled() or torch.compiler.is_compiling()
        if plain and k.shape[-2] <= SHORT:
            return fused.attend(q, k, v, bias)
        if not plain and k.shape[-2] <= _longest_in_pieces(q, k, bias):
            return _in_pieces(q, k, v, bias)
    mask = None
    if bias is not None:
        whole = F.pad(bias, (k.shape[-2] - bias.shape[-1], 0))
        mask = whole.to(q.dtype).expand(-1, -1, q.shape[-2], -1)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=1.0)


def _longest_in_pieces(q: Tensor, k: Tensor, bias: Tensor | None) -> int:
    """Up to how many keys pieces are the faster way without gradients on this processor."""
    if q.dtype != torch.bfloat16:
        return SHORT_WIDE
    return STREAMED - 1 if bias is None and _has_tiles() else k.shape[-2]


@cache
def _has_tiles() -> bool:
    asked = getattr(torch.cpu, "_is_amx_tile_supported", None)  # private in torch
    return asked is not None and bool(asked())


def _in_pieces(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    """`fused.attend`, for as many heads of one sample, or else queries of one head, as make `PIECE` scores."""
    (b, h, n, _), m = q.shape, k.shape[-2]
    if b * h * n * m <= PIECE:
        return fused.attend(q, k, v, bias)
    heads, rows = max(1, PIECE // (n * m)), max(1, min(n, PIECE // m))
    made = q.new_empty(*q.shape[:3], v.shape[-1])
    for sample in range(b):
        own = None if bias is None else bias.expand(b, -1, -1, -1)[sample, None]
        for head in range(0, h, heads):
            keys, values = (x[sample, None, head : head + heads] for x in (k, v))
            for row in range(0, n, rows):
                piece = (sample, slice(head, head + heads), slice(row, row + rows))
                made[piece] = fused.attend(q[piece][None], keys, values, own)[0]
    return made


class Projections(nn.Module):
    """The layers of an attention, with queries and keys normalised over all heads together."""

    def __init__(self, dim: int, heads: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.heads, self.eps = heads, eps
        self.q, self.k, self.v, self.o = (Linear(dim, dim) for _ in range(4))
        self.norm_q = nn.RMSNorm(dim, eps)
        self.norm_k = nn.RMSNorm(dim, eps)

    @property
    def scale(self) -> float:
        """The factor 1 / sqrt(c) of the scores, which queries carry."""
        return (self.q.out_features // self.heads) ** -0.5

    def read(self, x: Tensor, turns: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Keys and values `b h m c` of a sequence `b m d`."""
        return self.normed(self.k(x), self.norm_k, turns), self.split(self.v(x)).contiguous()  # once, not in every use

    def normed(self, x: Tensor, norm: nn.RMSNorm, turns: Tensor | None = None, factor: float = 1.0) -> Tensor:
        """Normalise (in float32), turn, and split into heads in the type that matrices run in."""
        weight = norm.weight.to(fused.wide(norm.weight.dtype)) * factor
        return fused.normed_heads(x, weight, turns, self.heads, self.eps, compute_dtype(self.q.weight))

    def split(self, x: Tensor) -> Tensor:
        return rearrange(x, "b m (h c) -> b h m c", h=self.heads)

    def merge(self, heads: Tensor) -> Tensor:
        return self.o(rearrange(heads, "b h n c -> b n (h c)"))


class Attention(Projections):
    """A sequence attends to itself."""

    def forward(self, x: Tensor, turns: Tensor | None = None, parts: Parts | None = None) -> Tensor:
        """`b n d` -> `b n d`. turns: rotary turns of the tokens; parts: where other processes have more tokens."""
        q, k, v = side_by_side((self.q, self.k, self.v), x)
        q, k, v = self.normed(q, self.norm_q, turns, self.scale), self.normed(k, self.norm_k, turns), self.split(v)
        return self.merge(attend(q, k, v) if parts is None else parts.exchange(attend, q, k, v))

    def weights(self, x: Tensor, turns: Tensor | None = None, queries: Tensor | None = None) -> Tensor:
        """How much of every token the tokens `queries` take in: `b h n m`, rows sum to 1.

        queries: indices of n of the m tokens, all of them if None. For looking inside: `forward` keeps nothing, so
        whoever wants to see computes the weights again from the same x.
        """
        own, own_turns = x, turns
        if queries is not None:
            own, own_turns = x[:, queries], turns if turns is None else turns[:, queries]
        q = self.normed(self.q(own), self.norm_q, own_turns, self.scale)
        return fused.shares(q, self.normed(self.k(x), self.norm_k, turns))


class CrossAttention(Projections):
    """A sequence attends to keys that were read beforehand: of a text, and with `image` of an image beside it.

    The image has keys and values of its own layers and a softmax of its own; both answers to the same queries are
    added before the last layer (Wan 2.1's image-to-video models; "decoupled cross-attention", arXiv:2308.06721).
    """

    def __init__(self, dim: int, heads: int, eps: float = 1e-6, image: bool = False) -> None:
        super().__init__(dim, heads, eps)
        if image:
            self.k_image, self.v_image = Linear(dim, dim), Linear(dim, dim)
            self.norm_k_image = nn.RMSNorm(dim, eps)

    def read_image(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values `b h m c` of an image's embedded states `b m d`."""
        return self.normed(self.k_image(x), self.norm_k_image), self.split(self.v_image(x))

    def forward(
        self,
        x: Tensor,
        keys: tuple[Tensor, Tensor],
        bias: Tensor | None = None,
        image: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """`b n d` -> `b n d`. keys: from `read`, with a bias `b 1 1 l` of the last l; image: from `read_image`."""
        q = self.normed(self.q(x), self.norm_q, None, self.scale)
        answer = attend(q, *keys, bias)
        if image is not None:
            answer = answer + attend(q, *image)
        return self.merge(answer)
