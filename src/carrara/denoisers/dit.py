"""The denoiser: a transformer over spacetime patches of latents, guided by text. The Wan family by configuration.

What is not standard:
- noise is a field: every latent frame or token may have its own level, and modulation is computed per distinct level;
- frames known at other times are extra tokens at their own rotary time and level, dropped from the output;
- the zero rows that pad a prompt attend, as in Wan, but are all alike, so they are one key with bias log(their number);
- what the blocks read of a prompt and of an image is a value (`TextKeys`), computed once and used at every step.

Tokens are `b g s d` inside: g groups of s tokens that share a level (one group, a group per frame, or per token).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Generator, Tensor, nn
from torch.utils.checkpoint import checkpoint

from carrara.core.types import Keyframes, LatentShape, TextStates
from carrara.denoisers.dit_config import (
    WAN_1_3B,
    WAN_14B,
    WAN_FLF2V_14B,
    WAN_I2V_14B,
    WAN_I2V_A14B,
    WAN_TI2V_5B,
    DiTConfig,
)
from carrara.denoisers.image import ImageEmbedding
from carrara.denoisers.text_keys import Pair, TextKeys
from carrara.nn.attention import Attention, CrossAttention
from carrara.nn.compiling import compile_each, is_compiled
from carrara.nn.fused import gated_sum, layer_norm, modulated_norm
from carrara.nn.layers import MLP, LevelEmbedding, Levels, Patches, compute_dtype
from carrara.nn.packing import pack
from carrara.nn.positions import grid_positions, rotations
from carrara.nn.sequence import Parts, SequenceGroup, check_heads

__all__ = [
    "WAN_1_3B",
    "WAN_14B",
    "WAN_FLF2V_14B",
    "WAN_I2V_14B",
    "WAN_I2V_A14B",
    "WAN_TI2V_5B",
    "Block",
    "DiT",
    "DiTConfig",
    "TextKeys",
]


class Block(nn.Module):
    """Attend to the clip, attend to the text, think. Levels shift, scale and gate the first and the last."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.eps = config.eps
        self.modulation = nn.Parameter(torch.zeros(1, 6, config.dim))
        self.self_attention = Attention(config.dim, config.heads, config.eps)
        self.cross_norm = nn.LayerNorm(config.dim, config.eps)
        self.cross_attention = CrossAttention(config.dim, config.heads, config.eps, config.image_dim is not None)
        self.mlp = MLP(config.dim, config.ffn_dim, config.dim)

    def forward(
        self,
        x: Tensor,
        levels: Levels,
        turns: Tensor,
        text: Pair,
        bias: Tensor,
        image: Pair | None = None,
        parts: Parts | None = None,
    ) -> Tensor:
        dtype, groups = compute_dtype(self.self_attention.q.weight), x.shape[1]
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = levels.spread(self.modulation)

        h = modulated_norm(x, shift, scale, self.eps, dtype)
        h = self.self_attention(h.flatten(1, 2), turns, parts).unflatten(1, (groups, -1))
        x = gated_sum(x, h, gate)

        h = layer_norm(self.cross_norm, x, dtype)
        x = gated_sum(x, self.cross_attention(h.flatten(1, 2), text, bias, image).unflatten(1, (groups, -1)))

        h = self.mlp(modulated_norm(x, mlp_shift, mlp_scale, self.eps, dtype))
        return gated_sum(x, h, mlp_gate)


@dataclass(frozen=True)
class Pass:
    """What one forward pass knows besides its tokens: what the blocks read, and what the head needs."""

    levels: Levels
    turns: Tensor
    keys: TextKeys
    embedded: Levels
    grid: tuple[int, int, int]  # frames, rows and columns of tokens, keyframes not among them
    dtype: torch.dtype
    parts: Parts | None = None  # how the tokens are spread over processes, where they are


class DiT(nn.Module):
    """The Wan transformer. Set `checkpointing` to recompute blocks in the backward pass instead of keeping them;
    `split_sequence` has several processes work on the same clips."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.config = config
        self.checkpointing = False
        self.sequence: SequenceGroup | None = None
        dim = config.dim
        self.patches = Patches(config.in_channels, dim, config.patch)
        self.level = LevelEmbedding(dim, config.frequencies, chunks=6)
        self.text = MLP(config.text_dim, dim, dim)
        self.image = None if config.image_dim is None else ImageEmbedding(config.image_dim, dim, config.image_positions)
        self.blocks: Sequence[Block] = nn.ModuleList(Block(config) for _ in range(config.layers))  # type: ignore[assignment]
        self.head_modulation = nn.Parameter(torch.zeros(1, 2, dim))
        self.head = nn.Linear(dim, config.out_channels * math.prod(config.patch))

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        text: TextStates | TextKeys,
        keyframes: Keyframes | None = None,
        image: Tensor | None = None,
    ) -> Tensor:
        """Predict the flow of latents.

        x: `b c f h w`, the noised latents and after them the channels that are given (`config.given_channels`);
        t: noise levels in [0, 1], `(b,)`, `(b, f)` per latent frame (f counts patches in time), or `(b, n)` per token;
        text: the prompts, or what `read_text` made of them (and of the image); keyframes: see `core.types`;
        image: states of the image tower `b m i`, for a model that reads them.
        Returns `b out_channels f h w` in the type of x. Raises ValueError where shapes do not fit.
        """
        tokens, known = self.enter(x, t, text, keyframes, image)
        return self.leave(self.through(tokens, known), known)

    def enter(
        self,
        x: Tensor,
        t: Tensor,
        text: TextStates | TextKeys,
        keyframes: Keyframes | None = None,
        image: Tensor | None = None,
    ) -> tuple[Tensor, Pass]:
        """The first part of `forward`: tokens `b g s d`, and what the rest of the pass needs besides."""
        b, c, *sides = x.shape
        if c != self.config.in_channels:
            given = self.config.given_channels
            noted = f", {given} of them the given image's" if given else ""
            raise ValueError(f"latents have {c} channels: this model takes {self.config.in_channels}{noted}")
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
        # The class's method: on an instance whose weights are sharded it stands for a call from outside.
        keys = text if isinstance(text, TextKeys) else DiT.read_text(self, text, image)
        if keys.batch != b:
            raise ValueError(f"{keys.batch} prompts for {b} clips: give one prompt per clip")
        tokens, parts = tokens.reshape(b, levels.groups[1], -1, tokens.shape[-1]), None
        if self.sequence is not None:
            parts = self.sequence.split(*tokens.shape[1:3])
            tokens, turns = parts.own(tokens), parts.own_flat(turns)
            levels, embedded = parts.own_levels(levels), parts.own_levels(embedded)
        return tokens, Pass(levels, turns, keys, embedded, (frames, rows, columns), x.dtype, parts)

    def through(self, tokens: Tensor, known: Pass, start: int = 0, stop: int | None = None) -> Tensor:
        """The blocks from `start` up to `stop`, all of them if None."""
        for index in range(len(self.blocks))[start:stop]:
            block, given = self.blocks[index], (known.levels, known.turns, *known.keys.of_block(index), known.parts)
            if self.checkpointing and torch.is_grad_enabled():
                tokens = checkpoint(block, tokens, *given, use_reentrant=False)
            else:
                tokens = block(tokens, *given)
        return tokens

    def leave(self, tokens: Tensor, known: Pass) -> Tensor:
        """The last part of `forward`: the flow `b c f h w`, keyframes dropped."""
        frames, rows, columns = known.grid
        shift, scale = known.embedded.spread(self.head_modulation)
        tokens = modulated_norm(tokens, shift, scale, self.config.eps, compute_dtype(self.head.weight))
        pf, ph, pw = self.config.patch
        count = frames * rows * columns
        if known.parts is None:
            flow = self.head(rearrange(tokens, "b g s d -> b (g s) d")[:, :count]).to(known.dtype)
        else:
            flow = known.parts.join(self.head(tokens).to(known.dtype)).flatten(1, 2)[:, :count]
        pattern = "b (f h w) (pf ph pw c) -> b c (f pf) (h ph) (w pw)"
        return rearrange(flow, pattern, f=frames, h=rows, pf=pf, ph=ph, pw=pw)

    def read_text(self, text: TextStates, image: Tensor | None = None) -> TextKeys:
        """Keys and values of the prompts for every block, their padding folded into one last key each; and those of
        an image's states `b m i`, where the model reads them. Raises ValueError where it does and they are missing."""
        b, n, width = text.states.shape
        if width != self.config.text_dim:
            raise ValueError(f"text states are {width} wide: this model reads {self.config.text_dim}")
        if text.padded_length < max(n, 1):
            raise ValueError(f"padded_length={text.padded_length}: must be at least the {n} tokens of the states")
        states, lengths = text.states, text.lengths.to(text.states.device)[:, None]
        # At inference, where one look at the lengths is nothing: of prompts that fill their rows only the pads' key has
        # a bias, and without pads there is no such key (one more than 512 also makes products slow).
        filled = not torch.is_grad_enabled() and not torch.compiler.is_compiling() and bool((text.lengths == n).all())
        if not filled or n < text.padded_length:
            states = torch.cat((states, states.new_zeros(b, 1, width)), dim=1)
        read = self.text(states.to(compute_dtype(self.text.rise.weight)))
        real = torch.arange(n, device=states.device) < lengths
        bias = torch.cat((real.float(), (text.padded_length - lengths).float()), dim=1).log()  # log 0: not there
        if filled:
            bias = bias[:, n : states.shape[1]]
        blocks = tuple(block.cross_attention.read(read) for block in self.blocks)
        return TextKeys(blocks, bias[:, None, None], self._read_image(image, b))

    def split_sequence(self, group: SequenceGroup | None) -> None:
        """From now on this process works on its part of every clip's tokens; the flow is that of the whole.

        Raises ValueError where heads cannot be shared out.
        """
        if group is not None:
            check_heads(self.config.heads, group.size)
        self.sequence = group

    def units(self) -> list[tuple[nn.Module, tuple[str, ...]]]:
        """What is sharded together, from the inside out, each with the methods besides `forward` that use its weights.

        Keys of the text are read for all blocks before the first of them runs, so their layers are units of their own.
        """
        found: list[tuple[nn.Module, tuple[str, ...]]] = []
        for block in self.blocks:
            found += [(block.cross_attention, ("read", "read_image")), (block, ())]
        return [*found, (self, ("read_text",))]

    def pack(self) -> None:
        """Let every block's queries, keys and values be one product at inference (`nn/packing.py`).

        The result is the same to rounding. Those weights are copied once, so weights that are mapped from a file stop
        being so.
        """
        for block in self.blocks:
            pack((block.self_attention.q, block.self_attention.k, block.self_attention.v))

    def compile_blocks(self) -> None:
        """Let the blocks run compiled (`nn/compiling.py`): the same to rounding.

        Raises ValueError where there is no compiler, and for blocks that come and go.
        """
        if not isinstance(self.blocks, nn.ModuleList):
            raise ValueError(
                "compile: blocks that come in one at a time are not compiled; leave out compile or offload"
            )
        compile_each(self.blocks)

    @property
    def compiled(self) -> bool:
        return isinstance(self.blocks, nn.ModuleList) and is_compiled(self.blocks)

    def init_weights(self, seed: int | Generator) -> None:
        """Draw fresh weights. Gates, the cross-attention's output and the head are zero: every block is the identity
        and the prediction is 0 (adaLN-Zero, arXiv:2212.09748)."""
        generator = seed if isinstance(seed, Generator) else Generator().manual_seed(seed)
        for name, parameter in self.named_parameters():
            if name.endswith("weight") and "norm" in name.split(".")[-2]:
                nn.init.ones_(parameter)
            elif parameter.ndim < 2 or name.endswith(("modulation", "positions")):
                nn.init.zeros_(parameter)
            else:
                drawn = torch.empty(parameter.shape, device=generator.device).flatten(1)
                nn.init.xavier_uniform_(drawn, generator=generator)
                with torch.no_grad():
                    parameter.copy_(drawn.view(parameter.shape))
        layers: list[nn.Linear] = [self.level.modulation, self.head]
        for layer in (*layers, *(block.cross_attention.o for block in self.blocks)):
            nn.init.zeros_(layer.weight)

    def _read_image(self, image: Tensor | None, b: int) -> tuple[Pair, ...] | None:
        if self.image is None:
            if image is not None:
                raise ValueError("image states were given: this model has no layers that read them; leave them out")
            return None
        if image is None:
            raise ValueError("this model reads an image's states beside the text: give those of its image tower")
        if image.shape[0] != b:
            raise ValueError(f"{image.shape[0]} images for {b} prompts: give one per prompt")
        read = self.image(image)
        return tuple(block.cross_attention.read_image(read) for block in self.blocks)

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
