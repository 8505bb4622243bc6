"""The space-time U-Net of the first text-to-video systems, factorised: every layer looks at a frame, or along time.

Ho et al. 2022, "Video Diffusion Models", section 3; by configuration also the networks of Make-A-Video, Imagen Video
and Video LDM (`unet_config.py`). What is not standard:
- noise levels may differ from frame to frame, `(b, f)`, as everywhere here;
- behind a clip's frames may stand others that are alone (`alone`), each an image with its own prompt and level; the
  network treats it exactly as a clip of one frame, and that exactly as the network without its layers along time;
- noise levels are told as times of the schedule, of which the log-SNR that VDM tells is a function.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Generator, Tensor, nn

from carrara.core.types import TextStates, check_multiple
from carrara.denoisers.unet_blocks import (
    Conv,
    Frames,
    Norm,
    ResidualBlock,
    SpaceAttention,
    TextAttention,
    TextPool,
    Told,
)
from carrara.denoisers.unet_config import (
    IMAGEN_VIDEO_TIME,
    MAKE_A_VIDEO_TIME,
    NO_TIME,
    VDM_TIME,
    VIDEO_LDM_TIME,
    Temporal,
    UNetConfig,
)
from carrara.denoisers.unet_time import AlongTime, Mixed, SpaceConv, SpaceTimeConv, TimeAttention, TimeBlock
from carrara.nn.layers import compute_dtype, linear32, sinusoid

__all__ = [
    "IMAGEN_VIDEO_TIME",
    "MAKE_A_VIDEO_TIME",
    "NO_TIME",
    "VDM_TIME",
    "VIDEO_LDM_TIME",
    "Conditions",
    "Temporal",
    "UNet3D",
    "UNetConfig",
]


@dataclass(frozen=True, eq=False)
class Conditions:
    """What a U-Net is told beside the noised clip and its level; each exactly where its configuration has it.

    text: prompts, one a clip; with frames that are alone, one a clip and then one for each of them, clip after clip;
    vector: `b d`, such as an image's embedding; scalars: numbers `(b,)` of about [0, 1] by name;
    given: `b e f h w`, channels that are known.
    """

    text: TextStates | None = None
    vector: Tensor | None = None
    scalars: Mapping[str, Tensor] = field(default_factory=dict)
    given: Tensor | None = None


class Layer(nn.Module):
    """A residual block and what follows it: along time, across the frame, to the text, along time."""

    def __init__(self, config: UNetConfig, level: int, in_dim: int, out_dim: int) -> None:
        super().__init__()
        time, attends = config.temporal, level in config.attention
        self.block = ResidualBlock(in_dim, out_dim, config.told_dim, _convolution(config), config.dropout)
        follows: dict[str, nn.Module] = {}
        if time.convolution == "block":
            follows["time_block"] = _faded(TimeBlock(out_dim), time)
        if attends:
            follows["space"] = SpaceAttention(out_dim, config.head_dim)
        if attends and config.text == "cross":
            follows["text"] = TextAttention(out_dim, config.text_dim, config.head_dim)
        if level in config.attends_time:
            follows["time"] = _faded(TimeAttention(out_dim, config.head_dim), time)
        self.follows = nn.ModuleDict(follows)

    def forward(self, x: Tensor, told: Told) -> Tensor:
        x = self.block(x, told)
        for layer in self.follows.values():
            x = layer(x, told)
        return x


class Level(nn.Module):
    """The layers of one size, and the step to the next size where there is one."""

    def __init__(self, layers: list[Layer], resize: nn.Module | None) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.resize = resize


class UNet3D(nn.Module):
    """A U-Net over clips; see the module. `init_weights` draws its weights: fresh ones predict 0."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        told, convolve = config.told_dim, _convolution(config)
        dims = [config.dim * multiplier for multiplier in config.multipliers]
        last = len(dims) - 1
        self.level = nn.Sequential(nn.Linear(config.dim, told), nn.SiLU(), nn.Linear(told, told))
        self.scalars = nn.ModuleDict({name: nn.Linear(config.dim, told) for name in config.scalars})
        self.vector = nn.Linear(config.vector_dim, told) if config.vector_dim else None
        self.text = TextPool(config.text_dim, told) if config.text != "none" else None
        self.mix = nn.Linear(told, told)
        self.enter = convolve(config.channels + config.given_channels, dims[0])
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        width = dims[0]
        for level, dim in enumerate(dims):
            layers = [Layer(config, level, width if i == 0 else dim, dim) for i in range(config.blocks)]
            self.down.append(Level(layers, convolve(dim, dim, stride=2) if level < last else None))
            width = dim
        self.middle = Layer(config, last, width, width)
        for level, dim in reversed(list(enumerate(dims))):
            layers = [Layer(config, level, 2 * dim, dim) for _ in range(config.blocks)]
            self.up.append(Level(layers, convolve(dim, dims[level - 1]) if level else None))
        self.norm = Norm(dims[0])
        self.leave = Conv(dims[0], config.channels)

    def forward(self, x: Tensor, t: Tensor, conditions: Conditions | None = None, alone: int = 0) -> Tensor:
        """Predict from noised clips.

        x: `b c f h w`; t: times in [0, 1], `(b,)` or `(b, f)` per frame; alone: how many of the f frames, the last, are
        images that have nothing to do with the clip. Returns `b c f h w` in the type of x. Raises ValueError where
        shapes do not fit or a condition is missing or unknown.
        """
        conditions = conditions or Conditions()
        b, _, f, _, _ = x.shape
        self._check(x, t, conditions, alone)
        whole = x if conditions.given is None else torch.cat((x, conditions.given.to(x.dtype)), dim=1)
        h = rearrange(whole, "b c f h w -> (b f) h w c").to(compute_dtype(self.leave.weight))
        told = self._told(Frames(b, f - alone, alone), t, conditions)
        h = self.enter(h, told)
        kept: list[Tensor] = []
        for level in self.down:
            for layer in level.layers:  # type: ignore[union-attr]
                h = layer(h, told)
                kept.append(h)
            if level.resize is not None:
                h = level.resize(h, told)  # type: ignore[operator]
        h = self.middle(h, told)
        for level in self.up:
            for layer in level.layers:  # type: ignore[union-attr]
                h = layer(torch.cat((h, kept.pop()), dim=-1), told)
            if level.resize is not None:
                h = level.resize.doubled(h, told)  # type: ignore[operator, union-attr]
        h = self.leave(self.norm.silu(h))
        return rearrange(h, "(b f) h w c -> b c f h w", b=b).to(x.dtype)

    def init_weights(self, seed: int | Generator) -> None:
        """Draw fresh weights, scaled by the number of their inputs. What ends a residual branch, and the last layer,
        begin at zero: every layer passes on what it gets, and layers along time change nothing."""
        generator = seed if isinstance(seed, Generator) else Generator().manual_seed(seed)
        for name, parameter in self.named_parameters():
            if parameter.ndim > 1 and not name.endswith("distances"):
                drawn = torch.randn(parameter.shape, generator=generator, device=generator.device)
                with torch.no_grad():
                    parameter.copy_(drawn / parameter[0].numel() ** 0.5)
            elif "norm" in name.split(".")[-2] and name.endswith("weight"):
                nn.init.ones_(parameter)
            else:
                nn.init.zeros_(parameter)
        for part in list(self.modules()):
            if isinstance(part, SpaceTimeConv):
                part.time.become_identity()
        ends = [end for part in self.modules() for end in getattr(part, "zeros", [])]
        for end in (*ends, self.leave):
            for parameter in (end.space if isinstance(end, SpaceTimeConv) else end).parameters():
                nn.init.zeros_(parameter)

    def time_parameters(self) -> dict[str, nn.Parameter]:
        """The weights of the layers that look along time, by name; all others make the image model."""
        times = (AlongTime, Mixed)
        owners = [name for name, part in self.named_modules() if isinstance(part, times)]
        return {
            name: parameter
            for name, parameter in self.named_parameters()
            if any(name.startswith(f"{owner}.") for owner in owners)
        }

    def _told(self, frames: Frames, t: Tensor, conditions: Conditions) -> Told:
        """Embed what is told, in float32."""
        with torch.autocast(t.device.type, enabled=False):
            embedding = _embed(self.level, t, self.config.dim)
            if t.ndim == 1:
                embedding = repeat(embedding, "b d -> (b f) d", f=frames.clip + frames.alone)
            else:
                embedding = rearrange(embedding, "b f d -> (b f) d")
            each = frames.clip + frames.alone
            for name, layer in self.scalars.items():
                told = linear32(layer, sinusoid(conditions.scalars[name] * 1000, self.config.dim))  # type: ignore[arg-type]
                embedding = embedding + repeat(told, "b d -> (b f) d", f=each)
            if self.vector is not None and conditions.vector is not None:
                told = linear32(self.vector, conditions.vector.float())
                embedding = embedding + repeat(told, "b d -> (b f) d", f=each)
            states = bias = None
            if self.text is not None and conditions.text is not None:
                text = conditions.text
                past = torch.arange(text.states.shape[1], device=t.device) >= text.lengths[:, None].to(t.device)
                row_bias = torch.zeros(past.shape, device=t.device).masked_fill(past, -torch.inf)
                embedding = embedding + frames.spread(self.text(text.states, row_bias))
                if self.config.text == "cross":
                    states, bias = frames.spread(text.states), frames.spread(row_bias)[:, None, None]
            return Told(frames, F.silu(linear32(self.mix, F.silu(embedding))), states, bias)

    def _check(self, x: Tensor, t: Tensor, conditions: Conditions, alone: int) -> None:
        config, (b, c, f, h, w) = self.config, x.shape
        if c != config.channels:
            raise ValueError(f"clips have {c} channels: this network takes {config.channels}")
        check_multiple("height", h, config.side_step)
        check_multiple("width", w, config.side_step)
        if not 0 <= alone < f:
            raise ValueError(f"alone={alone} of {f} frames: at least one frame is the clip's")
        if t.shape not in ((b,), (b, f)):
            raise ValueError(f"t has shape {tuple(t.shape)}: expected ({b},) or ({b}, {f})")
        if (config.text == "none") != (conditions.text is None):
            raise ValueError(f"text is {'missing' if conditions.text is None else 'given'}: text={config.text!r} here")
        if conditions.text is not None:
            states, rows = conditions.text.states, b * (1 + alone)
            if states.shape[0] != rows or states.shape[2] != config.text_dim:
                raise ValueError(
                    f"text states have shape {tuple(states.shape)}: expected ({rows}, tokens, {config.text_dim}), "
                    f"for {b} clips with {alone} lone frames each"
                )
        if set(conditions.scalars) != set(config.scalars):
            raise ValueError(f"told of {sorted(conditions.scalars)}: this network wants {sorted(config.scalars)}")
        vector = None if conditions.vector is None else tuple(conditions.vector.shape)
        if vector != ((b, config.vector_dim) if config.vector_dim else None):
            raise ValueError(f"vector of shape {vector}: this network wants vector_dim={config.vector_dim}")
        given = None if conditions.given is None else tuple(conditions.given.shape)
        if given != ((b, config.given_channels, f, h, w) if config.given_channels else None):
            raise ValueError(f"given channels of shape {given}: this network wants {config.given_channels} beside {c}")


def _embed(layers: nn.Module, level: Tensor, dim: int) -> Tensor:
    first, _, last = layers.children()
    assert isinstance(first, nn.Linear)
    assert isinstance(last, nn.Linear)
    return linear32(last, F.silu(linear32(first, sinusoid(level * 1000, dim))))


def _convolution(config: UNetConfig) -> Callable[..., nn.Module]:
    return SpaceTimeConv if config.temporal.convolution == "pseudo3d" else SpaceConv


def _faded(layer: AlongTime, temporal: Temporal) -> nn.Module:
    return Mixed(layer) if temporal.mixed else layer
