"""The denoiser: a transformer over spacetime patches of latents, guided by text. The Wan family by configuration.

What is not standard:
- noise is a field: every latent frame or token may have its own level, and modulation is computed per distinct level;
- frames known at other times are extra tokens at their own rotary time and level, dropped from the output;
- the zero rows that pad a prompt attend, as in Wan, but are all alike, so they are one key with bias log(their number);
- what the blocks read of a prompt is a value (`TextKeys`), computed once and used at every sampling step.

Tokens are `b g s d` inside: g groups of s tokens that share a level (one group, a group per frame, or per token).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from torch import Generator, Tensor, nn
from torch.utils.checkpoint import checkpoint

from carrara.core.config import nearest
from carrara.core.types import Keyframes, LatentShape, TextStates
from carrara.nn.attention import Attention
from carrara.nn.fused import gated_sum, modulated_norm
from carrara.nn.layers import MLP, LevelEmbedding, Levels, Patches, compute_dtype
from carrara.nn.positions import axis_widths, grid_positions, rotations

# Our settings and theirs in the config.json of diffusers' WanTransformer3DModel, and what we expect of the others.
_THEIRS = {
    "heads": "num_attention_heads",
    "head_dim": "attention_head_dim",
    "layers": "num_layers",
    "ffn_dim": "ffn_dim",
    "in_channels": "in_channels",
    "out_channels": "out_channels",
    "text_dim": "text_dim",
    "frequencies": "freq_dim",
    "patch": "patch_size",
    "eps": "eps",
}
_FIXED = {
    "cross_attn_norm": True,
    "qk_norm": "rms_norm_across_heads",
    "image_dim": None,
    "added_kv_proj_dim": None,
    "pos_embed_seq_len": None,
}
_IGNORED = {"rope_max_seq_len": 1024}  # positions are computed here, not looked up, so there is no longest clip


@dataclass(frozen=True)
class DiTConfig:
    """Sizes of a `DiT`. The defaults are the smallest public Wan."""

    heads: int = 12
    head_dim: int = 128
    layers: int = 30
    ffn_dim: int = 8960
    in_channels: int = 16
    out_channels: int = 16
    text_dim: int = 4096
    frequencies: int = 256
    patch: tuple[int, int, int] = (1, 2, 2)
    eps: float = 1e-6

    def __post_init__(self) -> None:
        sizes = ("heads", "layers", "ffn_dim", "in_channels", "out_channels", "text_dim")
        for name in sizes:
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least 1")
        if self.frequencies < 2 or self.frequencies % 2:
            raise ValueError(f"frequencies={self.frequencies}: must be even and at least 2, such as 256")
        if len(self.patch) != 3 or min(self.patch) < 1:
            raise ValueError(f"patch={self.patch}: must be three sizes of at least 1, such as (1, 2, 2)")
        axis_widths(self.head_dim)

    @property
    def dim(self) -> int:
        """Width of the residual stream."""
        return self.heads * self.head_dim

    @classmethod
    def from_diffusers(cls, values: dict[str, Any]) -> DiTConfig:
        """Read the config.json of a `WanTransformer3DModel`. Raises ValueError for what this class does not build."""
        known = {*_THEIRS.values(), *_FIXED, *_IGNORED}
        for key, value in values.items():
            if key not in known and not key.startswith("_"):
                raise ValueError(f"transformer config: no setting {key!r}; {nearest(key, known)}")
            if key in _FIXED and value != _FIXED[key]:
                raise ValueError(
                    f"transformer config: {key}={value!r} is not supported, expected {_FIXED[key]!r}; "
                    "use a text-to-video checkpoint of Wan 2.1 or 2.2"
                )
        found = {ours: values[theirs] for ours, theirs in _THEIRS.items() if theirs in values}
        if missing := sorted(set(_THEIRS) - set(found) - {"patch", "eps", "frequencies"}):
            raise ValueError(f"transformer config: {_THEIRS[missing[0]]!r} is missing; is the file whole?")
        return cls(**{**found, "patch": tuple(found.get("patch", (1, 2, 2)))})

    def to_diffusers(self) -> dict[str, Any]:
        """The config.json from which diffusers builds the same network."""
        ours = {theirs: getattr(self, ours) for ours, theirs in _THEIRS.items()}
        return {"_class_name": "WanTransformer3DModel", **ours, "patch_size": list(self.patch), **_FIXED, **_IGNORED}


WAN_1_3B = DiTConfig()
WAN_14B = DiTConfig(heads=40, layers=40, ffn_dim=13824)
WAN_TI2V_5B = DiTConfig(heads=24, ffn_dim=14336, in_channels=48, out_channels=48)


@dataclass(frozen=True)
class TextKeys:
    """What the blocks read of the prompts: keys and values `b h m c` per block, and the bias `b 1 1 m` of every key."""

    blocks: tuple[tuple[Tensor, Tensor], ...]
    bias: Tensor


class Block(nn.Module):
    """Attend to the clip, attend to the text, think. Levels shift, scale and gate the first and the last."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.eps = config.eps
        self.modulation = nn.Parameter(torch.zeros(1, 6, config.dim))
        self.self_attention = Attention(config.dim, config.heads, config.eps)
        self.cross_norm = nn.LayerNorm(config.dim, config.eps)
        self.cross_attention = Attention(config.dim, config.heads, config.eps)
        self.mlp = MLP(config.dim, config.ffn_dim, config.dim)

    def forward(self, x: Tensor, levels: Levels, turns: Tensor, keys: tuple[Tensor, Tensor], bias: Tensor) -> Tensor:
        dtype, groups = compute_dtype(self.self_attention.q.weight), x.shape[1]
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = levels.spread(self.modulation)

        h = modulated_norm(x, shift, scale, self.eps, dtype)
        h = self.self_attention(h.flatten(1, 2), turns).unflatten(1, (groups, -1))
        x = gated_sum(x, h, gate)

        norm = self.cross_norm
        h = nn.functional.layer_norm(x, x.shape[-1:], norm.weight.float(), norm.bias.float(), norm.eps).to(dtype)
        x = gated_sum(x, self.cross_attention(h.flatten(1, 2), keys=keys, bias=bias).unflatten(1, (groups, -1)))

        h = self.mlp(modulated_norm(x, mlp_shift, mlp_scale, self.eps, dtype))
        return gated_sum(x, h, mlp_gate)


class DiT(nn.Module):
    """The Wan transformer. Set `checkpointing` to recompute blocks in the backward pass instead of keeping them."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.config = config
        self.checkpointing = False
        dim = config.dim
        self.patches = Patches(config.in_channels, dim, config.patch)
        self.level = LevelEmbedding(dim, config.frequencies, chunks=6)
        self.text = MLP(config.text_dim, dim, dim)
        self.blocks: Sequence[Block] = nn.ModuleList(Block(config) for _ in range(config.layers))  # type: ignore[assignment]
        self.head_modulation = nn.Parameter(torch.zeros(1, 2, dim))
        self.head = nn.Linear(dim, config.out_channels * math.prod(config.patch))

    def forward(self, x: Tensor, t: Tensor, text: TextStates | TextKeys, keyframes: Keyframes | None = None) -> Tensor:
        """Predict the flow of latents.

        x: `b c f h w`; t: noise levels in [0, 1], `(b,)`, `(b, f)` per latent frame (f counts patches in time), or
        `(b, n)` per token; text: the prompts, or what `read_text` made of them; keyframes: see `core.types`.
        Returns `b c f h w` in the type of x. Raises ValueError where shapes do not fit.
        """
        b, c, *sides = x.shape
        if c != self.config.in_channels:
            raise ValueError(f"latents have {c} channels: this model takes {self.config.in_channels}")
        frames, rows, columns = LatentShape(*sides).tokens(self.config.patch)
        tokens = self._embed(x)
        times = torch.arange(frames, device=x.device)[None]
        extra = None
        if keyframes is not None and keyframes.times.shape[1]:
            self._check(keyframes, x)
            tokens = torch.cat((tokens, self._embed(keyframes.latents)), dim=1)
            times = torch.cat((times.expand(b, -1).to(keyframes.times.dtype), keyframes.times), dim=1)
            extra = keyframes.levels
        turns = rotations(grid_positions(times, rows, columns), self.config.head_dim)
        embedded, levels = self._levels(t, extra, b, frames, rows * columns)
        keys = text if isinstance(text, TextKeys) else self.read_text(text)
        if keys.bias.shape[0] != b:
            raise ValueError(f"{keys.bias.shape[0]} prompts for {b} clips: give one prompt per clip")

        shape = tokens.shape
        tokens = tokens.reshape(b, levels.groups[1], -1, shape[-1])
        for block, read in zip(self.blocks, keys.blocks):
            if self.checkpointing and torch.is_grad_enabled():
                tokens = checkpoint(block, tokens, levels, turns, read, keys.bias, use_reentrant=False)
            else:
                tokens = block(tokens, levels, turns, read, keys.bias)

        shift, scale = embedded.spread(self.head_modulation)
        tokens = modulated_norm(tokens, shift, scale, self.config.eps, compute_dtype(self.head.weight))
        pf, ph, pw = self.config.patch
        flow = self.head(tokens.reshape(shape)[:, :frames]).to(x.dtype)
        return rearrange(flow, "b f (h w) (pf ph pw c) -> b c (f pf) (h ph) (w pw)", h=rows, pf=pf, ph=ph, pw=pw)

    def read_text(self, text: TextStates) -> TextKeys:
        """Keys and values of the prompts for every block, their padding folded into one last key each."""
        b, n, width = text.states.shape
        if width != self.config.text_dim:
            raise ValueError(f"text states are {width} wide: this model reads {self.config.text_dim}")
        if text.padded_length < max(n, 1):
            raise ValueError(f"padded_length={text.padded_length}: must be at least the {n} tokens of the states")
        states = torch.cat((text.states, text.states.new_zeros(b, 1, width)), dim=1)
        read = self.text(states.to(compute_dtype(self.text.rise.weight)))
        lengths = text.lengths.to(states.device)[:, None]
        real = torch.arange(n, device=states.device) < lengths
        bias = torch.cat((real.float(), (text.padded_length - lengths).float()), dim=1).log()  # log 0: not there
        return TextKeys(tuple(block.cross_attention.read(read) for block in self.blocks), bias[:, None, None])

    def init_weights(self, seed: int | Generator) -> None:
        """Draw fresh weights. Gates, the cross-attention's output and the head are zero: every block is the identity
        and the prediction is 0 (adaLN-Zero, arXiv:2212.09748)."""
        generator = seed if isinstance(seed, Generator) else Generator().manual_seed(seed)
        for name, parameter in self.named_parameters():
            if name.endswith(("norm_q.weight", "norm_k.weight", "cross_norm.weight")):
                nn.init.ones_(parameter)
            elif parameter.ndim < 2 or name.endswith("modulation"):
                nn.init.zeros_(parameter)
            else:
                drawn = torch.empty(parameter.shape, device=generator.device).flatten(1)
                nn.init.xavier_uniform_(drawn, generator=generator)
                with torch.no_grad():
                    parameter.copy_(drawn.view(parameter.shape))
        layers: list[nn.Linear] = [self.level.modulation, self.head]
        for layer in (*layers, *(block.cross_attention.o for block in self.blocks)):
            nn.init.zeros_(layer.weight)

    def _embed(self, latents: Tensor) -> Tensor:
        return self.patches(latents.to(compute_dtype(self.patches.weight))).float()

    def _check(self, keyframes: Keyframes, x: Tensor) -> None:
        if self.config.patch[0] != 1:
            raise ValueError(f"patch={self.config.patch}: keyframes need patches of one latent frame")
        b, c, _, h, w = x.shape
        wanted = (b, c, keyframes.times.shape[1], h, w)
        if keyframes.latents.shape != wanted or keyframes.levels.shape != keyframes.times.shape:
            raise ValueError(
                f"keyframes have latents {tuple(keyframes.latents.shape)}, times {tuple(keyframes.times.shape)} and "
                f"levels {tuple(keyframes.levels.shape)}: expected latents {wanted}, and times and levels alike"
            )

    def _levels(self, t: Tensor, extra: Tensor | None, b: int, frames: int, per: int) -> tuple[Levels, Levels]:
        """Embedding and modulation per distinct level, for tokens of `frames` (and `extra` keyframes) of `per` each."""
        n = frames * per
        if t.shape not in ((b,), (b, frames), (b, n)):
            raise ValueError(f"t has shape {tuple(t.shape)}: expected ({b},), ({b}, {frames}) or ({b}, {n})")
        if t.ndim == 1:
            t = t[:, None] if extra is None else t[:, None].expand(-1, frames)
        by_token = t.shape[1] == n != frames
        if extra is not None:
            extra = extra.repeat_interleave(per, dim=1) if by_token else extra
            t = torch.cat((t, extra.to(t.dtype)), dim=1)
        groups = (t.shape[0], t.shape[1])
        which = None
        if by_token:
            distinct, which = torch.unique(t, return_inverse=True)
        else:
            distinct = t.flatten()
        embedded, modulation = self.level(distinct)
        return Levels(embedded[:, None].expand(-1, 2, -1), which, groups), Levels(modulation, which, groups)
