"""The phase that makes a few-step model of a finished one: its transformer learns the teacher's path in strides.

See `diffusion/distillation.py`. The student starts as the teacher and shares its autoencoder and text encoder, which
stay as they are. It answers at the starts of its few windows and at guidance 1 only; negative prompts, other step
counts and independent levels per frame are the teacher's.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path

import torch
from einops import rearrange
from torch import Generator, Tensor, nn

from carrara.core.config import at_least, choose
from carrara.core.types import Keyframes, TextStates, VideoShape
from carrara.denoisers.dit import DiT
from carrara.diffusion.distillation import SOLVERS, Flow, guided_flow, mean_flow, moved, visited, window_levels
from carrara.diffusion.fields import Field, FieldMix, draw_count, draw_field, draw_step
from carrara.diffusion.guidance import Guidance
from carrara.systems.latent import LatentVideo, Sampling
from carrara.systems.phases import CaptionedLatents, film, take_keyframes, to_bytes

REFERENCE_PARTS = 4  # of each window, where the student is compared: finer than what it is taught
WITHOUT_INDEPENDENT = FieldMix(equal=0.8, prefix=0.1, keyframe=0.1, independent=0.0, region=0.0)


@dataclass(frozen=True)
class Distillation:
    """What the student is to do, and how it is shown.

    steps: of the student, a window each; shift: of its sampling grid, the teacher's own by default;
    guidance: that the weights take up, the teacher's own by default;
    parts, solver: how the teacher follows its flow through a window; midpoint asks twice a part, twice when guided;
    rolled: how many clips of a batch start on the student's own path, each in all windows but what precedes it;
    the other clips start at noised data, in one window each; fields: shares of the kinds of known parts;
    compared: validation clips that teacher and student both make.
    """

    steps: int = 8
    shift: float | None = None
    guidance: float | None = None
    parts: int = 2
    solver: str = "midpoint"
    rolled: int = 3
    fields: FieldMix = field(default_factory=lambda: WITHOUT_INDEPENDENT)
    compared: int = 16

    def __post_init__(self) -> None:
        choose("solver", self.solver, SOLVERS)
        at_least(self, 1, "steps", "parts")
        at_least(self, 0, "rolled")
        at_least(self, 1, "compared")
        for name in ("independent", "region"):
            if getattr(self.fields, name):
                raise ValueError(
                    f"fields.{name}={getattr(self.fields, name)}: a few-step student knows the starts of its windows "
                    f"only; give {name}=0 and that share to another kind"
                )

    def sampling(self, teacher: Sampling) -> Sampling:
        """How the student samples: few Euler steps, without guidance. Raises ValueError for an impossible grid."""
        shift = teacher.shift if self.shift is None else self.shift
        made = Sampling(self.steps, 1.0, "euler", shift, "flow")
        window_levels(made.points())
        return made

    def taught(self, teacher: Sampling) -> Guidance:
        """The guidance that the student takes up. Raises ValueError for one that cannot be distilled."""
        scale = teacher.guidance if self.guidance is None else self.guidance
        return Guidance(scale, teacher.interval, teacher.rescale)


@dataclass(frozen=True)
class _Path:
    """Where the teacher goes from fixed noise: x at the n + 1 ends of the windows, and the n mean flows between."""

    states: list[Tensor]
    flows: list[Tensor]


class DistillPhase:
    """Train a copy of the teacher's transformer to cross each window of its sampling grid in one evaluation.

    clips: of a whole batch; a piece of one rolls its share of `Distillation.rolled`, drawn where that is not whole.
    """

    def __init__(
        self,
        teacher: LatentVideo,
        batch: Callable[[int], CaptionedLatents],
        validation: CaptionedLatents,
        config: Distillation,
        pictured: Sequence[str],
        shape: VideoShape,
        clips: int,
    ) -> None:
        self.teacher = teacher
        self.batch = batch
        self.config = config
        self.pictured = pictured
        self.shape = shape
        self.clips = clips
        self.sampling = config.sampling(teacher.defaults.sampling)
        self.guidance = config.taught(teacher.defaults.sampling)
        guided_flow(_nowhere, _nowhere, self.guidance)  # refuses what cannot be distilled
        self.windows = window_levels(self.sampling.points()).to(teacher.device)
        self.student: DiT = copy.deepcopy(teacher.denoiser).requires_grad_(True)
        self.module: nn.Module = self.student
        for module in (teacher.denoiser, teacher.text_encoder):
            module.eval().requires_grad_(False)
        few = min(config.compared, len(validation.captions))
        self.validation = (validation.latents[:few], list(validation.captions[:few]))
        self._path: _Path | None = None

    def loss(self, batch: CaptionedLatents, step: int, generator: Generator) -> dict[str, Tensor]:
        """Mean square error of the student's flow at windows' starts; the target is the teacher's mean flow."""
        config, windows = self.config, self.windows
        latents = batch.latents.to(self.teacher.device, torch.float32)
        b, _, f, _, _ = latents.shape
        device = generator.device
        mix = draw_step(config.fields, generator) if f > 1 else config.fields
        stored = batch.keyframes.shape[2]
        drawn = draw_field(b, f, generator, mix, stored=stored, count=draw_count(stored, generator))
        noise = torch.randn(latents.shape, generator=generator, device=device)
        keyframes = take_keyframes(batch, drawn, generator) if f > 1 and mix.keyframe == 1 else None

        rolled = self._rolled(b, generator)
        spread = torch.randperm(b - rolled, generator=generator, device=device)
        spread = (spread + torch.randint(config.steps, (1,), generator=generator, device=device)) % config.steps
        which = torch.cat((torch.arange(config.steps, device=device).repeat(rolled), spread))  # window of each example
        clips = torch.arange(b, device=device)
        rows = torch.cat((clips[:rolled].repeat_interleave(config.steps), clips[rolled:]))  # clip of each example
        start, stop = (self._levels(drawn, rows, windows[edge]) for edge in (which, which + 1))

        with torch.no_grad():
            text = self.teacher.read(batch.captions)
            path = [self._levels(drawn, clips[:rolled], level.expand(rolled)) for level in windows[:-1]]
            own = self._flow(self.student, _text_rows(text, clips[:rolled]), _rows(keyframes, clips[:rolled]))
            states = visited(own, _noised(latents[:rolled], noise[:rolled], path[0]), path) if rolled else []
            x = _noised(latents[rows], noise[rows], start)
            if rolled:
                x[: rolled * config.steps] = rearrange(torch.stack(states), "n r c f h w -> (r n) c f h w")
            text, keyframes = _text_rows(text, rows), _rows(keyframes, rows)
            target = mean_flow(self._guided(text, keyframes), x, start, stop, config.parts, config.solver)
        answer = self._flow(self.student, text, keyframes)(x, start)
        error = (answer.float() - target.float()).square().mean(dim=(1, 3, 4))
        weights = drawn.weights[rows]
        parts = {"loss": _mean(error, weights)}
        border = rolled * config.steps
        if b == self.clips and 0 < border < len(rows):  # all pieces of a batch tell the same parts
            parts["loss_rolled"] = _mean(error[:border], weights[:border]).detach()
            parts["loss_noised"] = _mean(error[border:], weights[border:]).detach()
        return parts

    def _rolled(self, count: int, generator: Generator) -> int:
        """How many of so many clips start on the student's own path."""
        share = self.config.rolled * count / self.clips
        drawn = float(torch.rand((), generator=generator, device=generator.device)) if count < self.clips else 0.0
        return min(count, int(share + drawn))

    def _levels(self, drawn: Field, rows: Tensor, level: Tensor) -> Tensor:
        """Levels `(n, f)` of examples of these clips at window levels `(n,)`: known frames keep their own."""
        return torch.where(drawn.weights[rows] > 0, level[:, None], drawn.levels[rows].double())

    def _flow(self, network: DiT, text: TextStates, keyframes: Keyframes | None) -> Flow:
        """A network as a function from (x, levels) to the flow; its text keys are computed once."""
        keys = network.read_text(text)
        return lambda x, levels: network(x, levels, keys, keyframes)

    def _guided(self, text: TextStates, keyframes: Keyframes | None) -> Flow:
        cond = self._flow(self.teacher.denoiser, text, keyframes)
        if self.guidance.off:
            return cond
        null = self.teacher.read([self.teacher.defaults.negative])
        same = torch.zeros(len(text.lengths), dtype=torch.int64, device=text.states.device)
        return guided_flow(cond, self._flow(self.teacher.denoiser, _text_rows(null, same), keyframes), self.guidance)

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """How far the student ends from the teacher, from the same noise and prompts, against the spread of clips.

        endpoint: root of the mean square difference of the latents at the end, divided by that of the teacher's
        from their mean over the clips;
        endpoint_undistilled: the same of the teacher itself in as many guided Euler steps;
        error_at_k: mean square error of the flow at the start of window k of the teacher's own path.
        """
        latents, captions = self.validation
        text = self.teacher.read(captions)
        noise = torch.randn(latents.shape, generator=Generator().manual_seed(0)).to(self.teacher.device)
        levels = [level.expand(len(captions)) for level in self.windows]
        guided, student = self._guided(text, None), self._flow(self.student, text, None)
        if self._path is None:
            self._path = self._follow(guided, noise, levels)
        path = self._path
        found = {
            f"error_at_{k}": float((student(x, level) - flow).square().mean())
            for k, (x, level, flow) in enumerate(zip(path.states, levels, path.flows))
        }
        end = path.states[-1]
        spread = (end - end.mean(dim=0)).square().mean().sqrt() if len(end) > 1 else end.square().mean().sqrt()
        for name, flow in (("endpoint", student), ("endpoint_undistilled", guided)):
            made = visited(flow, noise, levels)[-1]
            found[name] = float((made - end).square().mean().sqrt() / spread)
        return found

    def _follow(self, guided: Flow, x: Tensor, levels: Sequence[Tensor]) -> _Path:
        """The teacher's path through all windows, more finely than it is taught."""
        states, flows = [x], []
        for here, there in pairwise(levels):
            flows.append(mean_flow(guided, states[-1], here, there, REFERENCE_PARTS))
            states.append(moved(states[-1], flows[-1], here, there))
        return _Path(states, flows)

    @torch.no_grad()
    def picture(self) -> Tensor:
        """Every other row a clip of the teacher, below each the student's from the same seed."""
        prompts = list(self.pictured[:4])
        rows = [
            system.sample(prompts, list(range(len(prompts))), self.shape, system.defaults.sampling)
            for system in (self.teacher, self.system())
        ]
        return film(to_bytes(self.teacher.autoencoder.decode(rearrange(torch.stack(rows), "s b ... -> (b s) ..."))))

    def system(self) -> LatentVideo:
        """The student with the teacher's other parts, and its few steps as the default."""
        teacher = self.teacher
        defaults = replace(teacher.defaults, sampling=self.sampling, strides=True)
        return LatentVideo(
            teacher.autoencoder,
            self.student,
            teacher.text_encoder,
            teacher.tokenizer,
            defaults,
            refiner=teacher.refiner,
        )

    def export(self, folder: Path) -> None:
        """Write the whole model folder."""
        self.system().save(Path(folder))


def _nowhere(x: Tensor, levels: Tensor) -> Tensor:
    return x


def _noised(latents: Tensor, noise: Tensor, levels: Tensor) -> Tensor:
    return torch.lerp(latents, noise, rearrange(levels, "b f -> b 1 f 1 1").to(latents.dtype))


def _mean(error: Tensor, weights: Tensor) -> Tensor:
    return (error * weights).sum() / weights.sum().clamp(min=1)


def _text_rows(text: TextStates, rows: Tensor) -> TextStates:
    return TextStates(text.states[rows], text.lengths.to(rows.device)[rows], text.padded_length)


def _rows(keyframes: Keyframes | None, rows: Tensor) -> Keyframes | None:
    if keyframes is None:
        return None
    return Keyframes(keyframes.latents[rows], keyframes.times[rows], keyframes.levels[rows])
