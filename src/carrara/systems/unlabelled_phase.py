"""Training a stage that never hears a word: images and clips without captions, noised and predicted.

The video phases of Make-A-Video take `UnlabelledClips` alone. A batch that has captions is refused, so that no mistake
of a recipe can pair a text with a motion.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from einops import repeat
from torch import Generator, Tensor, nn

from carrara.systems.latent import Sampling
from carrara.systems.phases import film, to_bytes, to_unit
from carrara.systems.stage import draw_levels, replacing
from carrara.systems.stage_phase import VALIDATION_LEVELS, StagePhase
from carrara.systems.step_flops import loss_flops

if TYPE_CHECKING:
    from carrara.systems.make_a_video import MakeAVideo


@dataclass(frozen=True)
class UnlabelledClips:
    """Clips without a word. video: uint8 `b t h w 3`; fps: their frames per second."""

    video: Tensor
    fps: float


def unlabelled(batch: object) -> UnlabelledClips:
    """The batch, if it is one without captions. Raises ValueError for any other."""
    if type(batch) is not UnlabelledClips:
        raise ValueError(
            f"a batch of {type(batch).__name__}: Make-A-Video forbids captions here; give UnlabelledClips, "
            "and captioned images to the phases of its prior"
        )
    return batch


class UnlabelledPhase:
    """Train one network of a system on what it is told of clips by `system.tell`.

    stage: the name of the network; batch: clips of a step; validation: fixed clips; sampling: of the picture.
    """

    is_matrix = staticmethod(StagePhase.is_matrix)

    def __init__(
        self,
        system: MakeAVideo,
        stage: str,
        batch: Callable[[int], UnlabelledClips],
        validation: UnlabelledClips,
        sampling: Sampling,
    ) -> None:
        if stage not in system.networks:
            raise ValueError(f"stage={stage!r}: this system has {', '.join(system.networks)}")
        self.system, self.stage, self.source = system, stage, batch
        self.validation, self.sampling = unlabelled(validation), sampling
        system.text_encoder.requires_grad_(False)
        for part in system.others.values():
            part.requires_grad_(False)
        self.module: nn.Module = nn.ModuleDict({stage: system.networks[stage].requires_grad_(True)})

    def batch(self, step: int) -> UnlabelledClips:
        return unlabelled(self.source(step))

    def loss(self, batch: UnlabelledClips, step: int, generator: Generator) -> dict[str, Tensor]:
        """The mean error of the prediction over the frames that are not known."""
        clip = to_unit(unlabelled(batch).video).to(generator.device)
        levels = draw_levels(len(clip), 0, clip.shape[2], generator)
        return {"loss": self._error(clip, batch.fps, levels, generator)}

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Error per noise level on the fixed clips, from a fixed seed."""
        clip = to_unit(self.validation.video).to(self.system.device)
        found = {}
        for level in VALIDATION_LEVELS:
            generator = Generator(clip.device).manual_seed(0)
            levels = torch.full((len(clip), clip.shape[2]), level, device=clip.device)
            found[f"loss_at_{level:g}"] = float(self._error(clip, self.validation.fps, levels, generator))
        return {**found, "loss_mean": sum(found.values()) / len(found)}

    @torch.no_grad()
    def picture(self) -> Tensor:
        """Frames of a few clips, drawn from what the stage is told of the fixed ones, from fixed seeds."""
        clip = to_unit(self.validation.video[:4]).to(self.system.device)
        told, known = self.system.tell(self.stage, clip, self.validation.fps, Generator(clip.device).manual_seed(0))
        generators = [Generator().manual_seed(seed) for seed in range(len(clip))]
        stage, keep = self.system.stage(self.stage), replacing(clip, known)
        made = stage.draw(clip.shape[1:], told, None, self.sampling, generators, wrap=keep)
        return film(to_bytes(made), 8)

    def export(self, folder: Path) -> None:
        """Write the system's folder as it is by now."""
        self.system.save(Path(folder))

    def step_flops(self) -> int:
        """The compute of one training step, forward and backward: that of the first clip, times the clips of a step."""
        batch = self.batch(0)
        one = UnlabelledClips(batch.video[:1], batch.fps)
        return loss_flops(self, one) * len(batch.video)

    def _error(self, clip: Tensor, fps: float, levels: Tensor, generator: Generator) -> Tensor:
        told, known = self.system.tell(self.stage, clip, fps, generator, training=True)
        noise = torch.randn(clip.shape, generator=generator, device=clip.device)
        error = self.system.stage(self.stage).errors(clip, noise, levels, told)
        unknown = (~known).to(error)
        return (error * unknown).sum() / unknown.sum()


def draw_known(clips: int, frames: int, most_skip: int, generator: Generator) -> Tensor:
    """Which frames an interpolating network is shown in training, `(clips, frames)` bool; never all of them.

    A third of the clips show every s-th frame from the first on (s from 2 to `most_skip`), a third the first frames
    alone, as for animation, and a third both, every s-th one from anywhere, as blocks that go on from others do.
    """

    def draw(least: int, most: int) -> Tensor:
        found = torch.randint(least, most + 1, (clips, 1), generator=generator, device=generator.device)
        return repeat(found, "b 1 -> b f", f=frames)

    at = torch.arange(frames, device=generator.device)
    kind, skip, offset, begin = draw(0, 2), draw(2, most_skip), draw(0, most_skip), draw(1, max(1, frames - 1))
    every, first = (at + torch.where(kind == 2, offset, 0)) % skip == 0, at < begin
    known = torch.where(kind == 0, every, torch.where(kind == 1, first, every | first))
    return known & ~(known.all(dim=1, keepdim=True) & (at == frames - 1))
