"""Multi-head attention with full-width RMS-normalised queries and keys, and a bias per key.

Not standard: queries and keys are normalised over all heads together before the heads are split (Wan), and a key may
carry a bias, so that r equal keys are one key with bias log r: softmax counts exp(s) r times, or exp(s + log r) once.
"""

from __future__ import annotations

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from carrara.nn import fused
from carrara.nn.layers import Linear, compute_dtype

SHORT = 2048
"""On CPUs, up to this many keys, two plain products beat the streaming kernel (80: 3 times; 1280: 1.2 times)."""


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """softmax(q k' + bias) v for `b h n c` queries and `b h m c` keys and values; bias `b 1 1 m`.

    Queries carry the factor 1 / sqrt(c).
    """
    if q.device.type == "cpu" and k.shape[-2] <= SHORT:
        return fused.attend(q, k, v, bias)
    mask = None if bias is None else bias.to(q.dtype).expand(-1, -1, q.shape[-2], -1)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=1.0)


class Attention(nn.Module):
    """Queries from x; keys and values from x itself, or read beforehand from another sequence (`read`)."""

    def __init__(self, dim: int, heads: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.heads, self.eps = heads, eps
        self.q, self.k, self.v, self.o = (Linear(dim, dim) for _ in range(4))
        self.norm_q = nn.RMSNorm(dim, eps)
        self.norm_k = nn.RMSNorm(dim, eps)

    def read(self, x: Tensor, turns: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Keys and values `b h m c` of a sequence `b m d`."""
        k = self._heads(self.k(x), self.norm_k, turns)
        return k, rearrange(self.v(x), "b m (h c) -> b h m c", h=self.heads)

    def forward(
        self,
        x: Tensor,
        turns: Tensor | None = None,
        keys: tuple[Tensor, Tensor] | None = None,
        bias: Tensor | None = None,
    ) -> Tensor:
        """`b n d` -> `b n d`. turns: rotary turns of the tokens; keys: from `read`, else x attends to itself."""
        q = self._queries(x, turns)
        k, v = self.read(x, turns) if keys is None else keys
        return self.o(rearrange(attend(q, k, v, bias), "b h n c -> b n (h c)"))

    def weights(self, x: Tensor, turns: Tensor | None = None, queries: Tensor | None = None) -> Tensor:
        """How much of every token the tokens `queries` take in when x attends to itself: `b h n m`, rows sum to 1.

        queries: indices of n of the m tokens, all of them if None. For looking inside: `forward` keeps nothing, so
        whoever wants to see computes the weights again from the same x.
        """
        if queries is None:
            q = self._queries(x, turns)
        else:
            q = self._queries(x[:, queries], turns if turns is None else turns[:, queries])
        return fused.shares(q, self._heads(self.k(x), self.norm_k, turns))

    def _queries(self, x: Tensor, turns: Tensor | None) -> Tensor:
        """They carry the factor 1 / sqrt(c) of the scores."""
        return self._heads(self.q(x), self.norm_q, turns, (x.shape[-1] // self.heads) ** -0.5)

    def _heads(self, x: Tensor, norm: nn.RMSNorm, turns: Tensor | None, factor: float = 1.0) -> Tensor:
        """Normalise (in float32), turn, and split into heads in the type that matrices run in."""
        weight = norm.weight.to(fused.wide(norm.weight.dtype)) * factor
        return fused.normed_heads(x, weight, turns, self.heads, self.eps, compute_dtype(self.q.weight))
