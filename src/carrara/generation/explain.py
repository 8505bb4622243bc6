"""Looking inside: a clip emerging from noise, and what a patch of it attends to in its other frames.

*Emerging* decodes what the sampler holds at its steps: the noisy latents, and the estimate of the finished clip that
the denoiser makes from them (Ho et al. 2020, DDPM, section 4.3, shows the same of images).
*Attention* takes the weights of one patch (a token of the transformer) at one step and lays them over the frames: how
much of what it becomes there it takes from where. It says what was read, not why.

Everything that people name is counted from 1: steps, blocks, and a patch's latent frame, row and column.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from torch import Tensor

from carrara.core.progress import progress_bar
from carrara.core.types import Stride
from carrara.diffusion.samplers import evaluations
from carrara.generation.clip import Clip
from carrara.generation.request import Plan
from carrara.generation.run import Model
from carrara.generation.watching import Evaluation, attention_weights, sample_watched
from carrara.systems.latent import LatentVideo
from carrara.systems.phases import to_bytes

MOST_STEPS = 12  # shown of the way out of the noise; the first and the last always
_STILL = 8.0  # of 255: what moves differs from the background by more


@dataclass(frozen=True)
class View:
    """What of the attention to show, counted from 1. None: the patch that stands out most; half way; all blocks."""

    patch: tuple[int, int, int] | None = None
    step: int | None = None
    block: int | None = None


@dataclass(frozen=True, eq=False)
class Emerging:
    """The way out of the noise: which of `total` steps, their noise levels (sigma), what was there and what the
    denoiser made of it, both uint8 `s t h w 3`."""

    steps: tuple[int, ...]
    total: int
    levels: tuple[float, ...]
    states: Tensor
    estimates: Tensor


@dataclass(frozen=True, eq=False)
class Attention:
    """What one patch takes in from all patches: weights `(blocks, heads, f, r, c)`, which sum to 1 over (f, r, c).

    patch: (frame, row, column) counted from 1; step, level: when, of `total` steps, and the noise level there;
    which: the token frame that each of the clip's pixel frames belongs to; prominent: `f r c`, see `prominence`.
    """

    patch: tuple[int, int, int]
    step: int
    total: int
    level: float
    weights: Tensor
    which: tuple[int, ...]
    prominent: Tensor

    def map(self, block: int | None = None, head: int | None = None) -> Tensor:
        """`f r c`: the mean over all blocks and heads, or of one block (over its heads, or of one), from 1."""
        weights = self.weights if block is None else self.weights[block - 1 : block]
        return (weights if head is None else weights[:, head - 1 : head]).mean((0, 1))

    def elsewhere(self, values: Tensor) -> float:
        """The share of a map that falls on other frames than the patch's own."""
        return float(values.sum() - values[self.patch[0] - 1].sum())

    @property
    def salient(self) -> Tensor:
        """The patches of other frames that stand out at least half as much as the foremost one: bool `f r c`."""
        others = self.prominent.clone()
        others[self.patch[0] - 1] = 0
        return others >= others.max().clamp_min(1e-6) / 2

    def found(self, values: Tensor) -> float:
        """Of what a map puts on other frames, the share on their `salient` patches."""
        return float(values[self.salient].sum()) / max(self.elsewhere(values), 1e-12)

    @property
    def chance(self) -> float:
        """What `found` would be of attention that is the same everywhere: the share of patches that are salient."""
        return float(self.salient.sum()) / (self.salient.numel() - self.salient[0].numel())

    @property
    def keenest(self) -> int:
        """The block, from 1, whose attention to other frames lies most on what stands out there."""
        return max(range(1, len(self.weights) + 1), key=lambda block: self.found(self.map(block)))

    def brightest(self, values: Tensor) -> tuple[int, int, int]:
        """Where in the other frames a map is greatest, counted from 1."""
        others = values.clone()
        others[self.patch[0] - 1] = -1
        frame, row, column = torch.unravel_index(others.argmax(), others.shape)
        return int(frame) + 1, int(row) + 1, int(column) + 1


@dataclass(frozen=True, eq=False)
class Explanation:
    """A finished clip, and how it came about."""

    clip: Clip
    emerging: Emerging
    attention: Attention


def token_grid(plan: Plan, system: LatentVideo) -> tuple[int, int, int]:
    """Frames, rows and columns of the patches that the plan's clip is for the transformer."""
    return plan.shape.latent(system.stride).tokens(system.patch)


def check_view(view: View, plan: Plan, system: LatentVideo) -> View:
    """The view with its step filled in. Raises ValueError for what is outside the plan's clip or the model."""
    grid = token_grid(plan, system)
    if grid[0] < 2:
        more = 1 + system.stride.time * system.patch[0]
        raise ValueError(f"frames={plan.shape.frames}: attention to other frames needs some; at least {more}")
    total, layers = evaluations(plan.sampling.sampler, plan.sampling.steps), len(system.denoiser.blocks)
    for name, value, most in (("step", view.step, total), ("block", view.block, layers)):
        if value is not None and not 1 <= value <= most:
            raise ValueError(f"{name}={value}: must be from 1 to {most}")
    if view.patch is not None:
        for name, value, most in zip(("frame", "row", "column"), view.patch, grid):
            if not 1 <= value <= most:
                said = ",".join(map(str, view.patch))
                across = f"{grid[0]} latent frames of {grid[1]} rows and {grid[2]} columns"
                raise ValueError(f"patch={said}: its {name} must be from 1 to {most}; this clip is {across} of patches")
    return View(view.patch, view.step or (total + 1) // 2, view.block)


def explain(model: Model, plan: Plan, view: View | None = None, progress: bool | None = None) -> Explanation:
    """Make the plan's clip and watch. Raises ValueError before any computing, GenerationError as `Model` does."""
    view = check_view(view or View(), plan, model.system)
    latents, seen = sample_watched(model, plan, progress)
    clip = model.decode(latents, model.manifest(plan), progress)
    attention = look(model.system, plan, clip.frames, seen, view)
    return Explanation(clip, emerge(model.system, seen, progress=progress), attention)


@torch.inference_mode()
def emerge(
    system: LatentVideo, seen: Sequence[Evaluation], most: int = MOST_STEPS, progress: bool | None = None
) -> Emerging:
    """Decode the noisy latents and the estimates of up to `most` evaluations, the first and the last included."""
    chosen = torch.linspace(0, len(seen) - 1, min(most, len(seen))).round().long().tolist()
    states, estimates = [], []
    with progress_bar("decoding steps", progress) as show:
        for done, index in enumerate(chosen):
            states.append(_decode(system, seen[index].x))
            estimates.append(_decode(system, seen[index].denoised))
            show(done + 1, len(chosen))
    return Emerging(
        tuple(index + 1 for index in chosen),
        len(seen),
        tuple(seen[index].point.sigma for index in chosen),
        torch.stack(states),
        torch.stack(estimates),
    )


def look(system: LatentVideo, plan: Plan, frames: Tensor, seen: Sequence[Evaluation], view: View) -> Attention:
    """The attention of the view's patch, or of the one that stands out most in the finished frames `t h w 3`."""
    grid = token_grid(plan, system)
    which = token_frames(len(frames), system.stride, system.patch[0])
    prominent = prominence(frames, grid, which)
    patch = view.patch or find_actor(prominent)
    step = view.step or (len(seen) + 1) // 2
    frame, row, column = (place - 1 for place in patch)
    query = torch.tensor([(frame * grid[1] + row) * grid[2] + column])
    weights = attention_weights(system, plan.prompt, seen[step - 1], query)
    folded = rearrange(weights, "l h 1 (f r c) -> l h f r c", r=grid[1], c=grid[2])
    return Attention(patch, step, len(seen), seen[step - 1].point.sigma, folded, which, prominent)


def token_frames(frames: int, stride: Stride, patch: int) -> tuple[int, ...]:
    """Which frame of tokens, from 0, every pixel frame belongs to: the first stands alone, then `stride.time` each."""
    return tuple(-(-frame // stride.time) // patch for frame in range(frames))


def prominence(frames: Tensor, grid: tuple[int, int, int], which: Sequence[int]) -> Tensor:
    """How much every patch stands out in `t h w 3`, levels of 255: `f r c`, the mean over its pixels and frames.

    A pixel stands out by its distance from its median over time, for actors move on; but no more than by its distance
    from the median of its row, for where an actor has been for most of the time, its absence is no actor. In a clip
    without motion only the second counts.
    """
    video = frames.float()
    moved, unlike = ((video - video.median(dim, keepdim=True).values).abs().mean(-1) for dim in (0, 2))
    apart = torch.minimum(moved, unlike) if moved.max() >= _STILL else unlike
    patches = reduce(apart, "t (r y) (c x) -> t r c", "mean", r=grid[1], c=grid[2])
    owner = torch.tensor(which)
    return torch.stack([patches[owner == frame].mean(0) for frame in range(grid[0])])


def find_actor(prominent: Tensor) -> tuple[int, int, int]:
    """The patch (frame, row, column, from 1) that stands out most, together with those around it: of something that
    covers many patches the middle, of something small the patch that holds most of it."""
    around = F.avg_pool2d(prominent[:, None], 3, 1, 1)[:, 0]
    frame, row, column = torch.unravel_index((prominent + around).argmax(), prominent.shape)
    return int(frame) + 1, int(row) + 1, int(column) + 1


def _decode(system: LatentVideo, latents: Tensor) -> Tensor:
    """Latents `1 c f h w` to uint8 `t h w 3`."""
    return torch.cat([to_bytes(chunk)[0].cpu() for chunk in system.decode_chunks(latents)])
