"""The network behind the pond-motion distances: clip -> 64 features that know what moves, how, and in which order.

Not FVD, and its numbers do not compare with published ones: FVD's network saw human actions in web video, this one saw
only the pond. It is trained (`carrara train motion-features`) to name motions, velocities, shapes, colours, scenery
and camera, and to notice wrong frame order, noise and blur: features trained on content alone hardly see motion (Ge et
al., arXiv 2404.12391). Its input is always 64 x 64 at 8 frames per second, of any length from 5 frames on, so clips of
every size and rate have features; larger detail and faster motion are invisible to it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import interpolate, rms_norm, silu

from carrara.core.config import from_dict, read_json, to_dict, write_json
from carrara.core.weights import load_weights, save_weights
from carrara.data.pond.world import ACTORS, BACKGROUNDS, CAMERAS, COLOURS, MOTIONS, WALLS

NAME = "pond-motion features"
SIDE = 64  # pixels
RATE = 8.0  # frames per second
LEAST_FRAMES = 5
BUNDLED = Path(__file__).parents[2] / "models" / "motion-features"

ORDERS = ("forward", "frozen", "shuffled", "reversed")
HEADS: dict[str, int] = {
    "motion": len(MOTIONS),
    "shape": len(ACTORS),
    "colour": len(COLOURS),
    "background": len(BACKGROUNDS),
    "camera": len(CAMERAS),
    "wall": 1 + len(WALLS),
    "two": 1,
    "order": len(ORDERS),
    "velocity": 3,  # across, down, and its length: sides of the frame per second
    "noise": 1,
    "blur": 1,
}


@dataclass(frozen=True)
class MotionNetConfig:
    """channels: at 16 x 16, 8 x 8 and 4 x 4 positions; blocks: at each of them; features: how many come out."""

    channels: tuple[int, ...] = (32, 64, 80)
    blocks: tuple[int, ...] = (2, 1, 1)
    features: int = 64

    def __post_init__(self) -> None:
        if len(self.channels) != len(self.blocks) or not self.channels:
            raise ValueError(
                f"channels={self.channels}, blocks={self.blocks}: must be equally many, one for each resolution"
            )
        for name, least, values in (
            ("channels", 1, self.channels),
            ("blocks", 0, self.blocks),
            ("features", 1, (self.features,)),
        ):
            if min(values) < least:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least {least}")


class Norm(nn.Module):
    """Root mean square over channels to 1, then a gain for each."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight.shape, self.weight.to(x.dtype), 1e-5)


class Block(nn.Module):
    """x + time(space(x)): 3 x 3 across space, then 3 along time. Tensors are `b t h w c`, which both read in place."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = Norm(channels)
        self.space = nn.Conv2d(channels, channels, 3, padding=1)
        self.time = nn.Conv2d(channels, channels, (3, 1), padding=(1, 0))

    def forward(self, x: Tensor) -> Tensor:
        return x + along_time(self.time, silu(along_space(self.space, self.norm(x))))


class Reduction(nn.Module):
    """Half as many rows and columns, and, at the last resolution, half as many frames."""

    def __init__(self, channels: int, out: int, time_stride: int) -> None:
        super().__init__()
        self.norm = Norm(channels)
        self.space = nn.Conv2d(channels, out, 3, stride=2, padding=1)
        self.time_stride = time_stride

    def forward(self, x: Tensor) -> Tensor:
        return along_space(self.space, self.norm(x[:, :: self.time_stride]))


class MotionNet(nn.Module):
    """Clips `b t 64 64 3` in [-1, 1] to features `b d`, in units in which clean renders have mean 0 and deviation 1."""

    def __init__(self, config: MotionNetConfig | None = None) -> None:
        super().__init__()
        self.config = config or MotionNetConfig()
        channels, last = self.config.channels, len(self.config.channels) - 1
        self.stem = nn.Conv2d(6, channels[0], 4, stride=4)
        stages: list[nn.Module] = [nn.Sequential(*(Block(channels[0]) for _ in range(self.config.blocks[0])))]
        for at, (before, after) in enumerate(pairwise(channels), start=1):
            blocks = (Block(after) for _ in range(self.config.blocks[at]))
            stages.append(nn.Sequential(Reduction(before, after, 2 if at == last else 1), *blocks))
        self.stages = nn.Sequential(*stages)
        self.norms = nn.ModuleList(Norm(width) for width in channels)
        self.embed = nn.Linear(2 * sum(channels), self.config.features)
        self.heads = nn.ModuleDict({name: nn.Linear(self.config.features, size) for name, size in HEADS.items()})
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.zeros(self.config.features))
        self.register_buffer("std", torch.ones(self.config.features))

    def initialise(self, generator: torch.Generator) -> None:
        """Draw all weights: deviation 1 / sqrt(inputs), less at the ends of branches and for the heads; biases 0."""
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                if parameter.ndim > 1:
                    gain = 0.3 if name.endswith("time.weight") else 0.1 if name.startswith("heads.") else 1.0
                    scale = gain / parameter[0].numel() ** 0.5
                    parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
                elif name.endswith("bias"):
                    parameter.zero_()

    def maps(self, x: Tensor) -> list[Tensor]:
        """Clips `b t 64 64 3` in [-1, 1] to what every resolution holds, `b t h w c` each, normalised."""
        change = torch.cat([torch.zeros_like(x[:, :1]), x[:, 1:] - x[:, :-1]], dim=1)
        x = silu(along_space(self.stem, torch.cat([x, 2 * change], dim=-1)))
        found = []
        for stage, norm in zip(self.stages, self.norms):
            x = stage(x)
            found.append(norm(x))
        return found

    def embedding(self, maps: Sequence[Tensor]) -> Tensor:
        """Features `b d` as the heads read them: mean and maximum over places and times, of every resolution."""
        pooled = [pool for x in maps for pool in (x.mean((1, 2, 3)), x.amax((1, 2, 3)))]
        return self.embed(torch.cat(pooled, dim=-1))

    def answers(self, maps: Sequence[Tensor]) -> dict[str, Tensor]:
        """What the clips show, one `b n` of logits or values for each of HEADS."""
        features = self.embedding(maps)
        return {name: head(features) for name, head in self.heads.items()}

    def forward(self, x: Tensor) -> Tensor:
        return (self.embedding(self.maps(x)) - self.mean) / self.std

    def standardise_by(self, embeddings: Tensor) -> None:
        """From now on give features in units of these clips' deviation, from their mean; `n d`."""
        self.mean.copy_(embeddings.mean(0))
        self.std.copy_(embeddings.std(0).clamp(min=1e-4))


def along_space(conv: nn.Module, x: Tensor) -> Tensor:
    return rearrange(conv(rearrange(x, "b t h w c -> (b t) c h w")), "(b t) c h w -> b t h w c", b=len(x))


def along_time(conv: nn.Module, x: Tensor) -> Tensor:
    return rearrange(conv(rearrange(x, "b t h w c -> b c t (h w)")), "b c t (h w) -> b t h w c", h=x.shape[2])


def prepare(frames: Tensor | NDArray[np.uint8], fps: float) -> Tensor:
    """A clip uint8 `t h w 3` as the network sees it: uint8 `n 64 64 3` at 8 frames per second.

    Time: the nearest frame at every eighth of a second from the first on (none are blended, blends would look like
    blur). Space: the shorter side becomes 64, antialiased, and the middle square is kept. Raises ValueError for what
    is no clip or is too short for 5 frames.
    """
    clip = torch.as_tensor(frames)
    if clip.dtype != torch.uint8 or clip.ndim != 4 or clip.shape[-1] != 3:
        raise ValueError(f"clip of {clip.dtype} {tuple(clip.shape)}: expected uint8 frames (t, h, w, 3)")
    if not 0 < fps < float("inf"):
        raise ValueError(f"fps={fps}: must be above 0")
    count = int((len(clip) - 1) / fps * RATE + 1e-6) + 1 if len(clip) else 0
    if len(clip) < LEAST_FRAMES or count < LEAST_FRAMES:
        raise ValueError(
            f"{len(clip)} frames at {fps:g} per second: {NAME} need {LEAST_FRAMES} frames and half a second; "
            "use a longer clip"
        )
    times = (torch.arange(count) * (fps / RATE)).round().long().clamp(max=len(clip) - 1)
    return resize(clip[times])


def resize(clip: Tensor) -> Tensor:
    """uint8 `t h w 3` to uint8 `t 64 64 3`: the shorter side becomes 64, the middle square is kept."""
    height, width = clip.shape[1:3]
    if (height, width) != (SIDE, SIDE):
        scale = SIDE / min(height, width)
        size = (max(SIDE, round(height * scale)), max(SIDE, round(width * scale)))
        video = interpolate(rearrange(clip, "t h w c -> t c h w").float(), size, mode="bilinear", antialias=True)
        clip = rearrange(video.round().clamp(0, 255).to(torch.uint8), "t c h w -> t h w c")
    top, left = (clip.shape[1] - SIDE) // 2, (clip.shape[2] - SIDE) // 2
    return clip[:, top : top + SIDE, left : left + SIDE].contiguous()


def to_unit(clips: Tensor) -> Tensor:
    """uint8 to float32 in [-1, 1], as the network reads pixels."""
    return clips.float() / 127.5 - 1


@torch.no_grad()
def motion_features(
    net: MotionNet, clips: Iterable[tuple[Tensor | NDArray[np.uint8], float]], frames: int = 17, batch: int = 16
) -> NDArray[np.float64]:
    """Features float64 `n d` of clips, each frames uint8 `t h w 3` with its rate.

    Of every clip the first `frames` frames at 8 per second are seen: sets that are compared must show equally long
    clips, or the distance tells lengths apart. Raises ValueError for a clip that is shorter.
    """
    if frames < LEAST_FRAMES:
        raise ValueError(f"frames={frames}: at least {LEAST_FRAMES} are needed")
    device, rows = next(net.parameters()).device, []
    prepared = (prepare(video, fps) for video, fps in clips)
    while part := list(islice(prepared, batch)):
        short = min(len(clip) for clip in part)
        if short < frames:
            raise ValueError(
                f"a clip has {short} frames at {RATE:g} per second, {frames} are compared; "
                f"pass frames={short} for both sets, or longer clips"
            )
        rows.append(net(to_unit(torch.stack([clip[:frames] for clip in part]).to(device))).double().cpu())
    return torch.cat(rows).numpy() if rows else np.zeros((0, net.config.features))


def save_motion_net(net: MotionNet, folder: Path) -> None:
    """Write config.json and float16 model.safetensors."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", to_dict(net.config))
    save_weights(net.state_dict(), folder / "model.safetensors", dtype=torch.float16)


def load_motion_net(folder: Path | str | None = None) -> MotionNet:
    """The bundled network, or the one in a folder, ready to measure. Raises ValueError for a folder without one."""
    folder = BUNDLED if folder is None else Path(folder)
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder}: no config.json; expected a folder that `carrara train motion-features` made")
    net = MotionNet(from_dict(MotionNetConfig, read_json(folder / "config.json"), "motion network"))
    load_weights(net, folder, "model", dtype=torch.float32)
    return net.eval().requires_grad_(False)
