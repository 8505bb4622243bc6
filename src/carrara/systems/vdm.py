"""Video Diffusion Models (Ho, Salimans, Gritsenko, Chan, Norouzi, Fleet 2022, arXiv:2204.03458): pixels, on a page.

    text -> base      a short clip of few, small frames, by a factorised space-time U-Net
         -> longer    block by block, each given the end of the one before by reconstruction guidance
         -> fine      the same kind of network at full rate and size, steered by reconstruction guidance so that its
                      clip, made smaller and slower, is the base's: super-resolution by a model that never saw any

Both networks are trained on clips with independent images appended, which their layers along time do not see, so that
one network is a video and an image model. What differs from the paper: the text encoder is our own small one, trained
with the base (there BERT, frozen); clips are those of our simulated world; sizes are ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import ceil
from pathlib import Path

import torch
from torch import Generator, Tensor

from carrara.core.config import at_least, choose
from carrara.core.types import Keyframes, VideoShape
from carrara.denoisers.unet3d import Conditions
from carrara.diffusion.conditioning import Start, guide_known
from carrara.diffusion.grids import Denoise
from carrara.diffusion.measured import guide_measured
from carrara.diffusion.samplers import evaluations, sample_generators
from carrara.systems.cascade import Block, as_beginning, blocks, by_blocks, shrink
from carrara.systems.latent import Known, Progress, Sampling, Watch
from carrara.systems.pixel_system import PixelSystem, read_parts
from carrara.systems.stage import Process, Stage, Tally, Wrap, replacing

EXTENSIONS = ("guide", "replace")


@dataclass(frozen=True)
class VDMSettings:
    """What a VDM folder says of its stages beside the networks.

    frames: of the base's clips; overlap: of them that the next block is given; extend: by reconstruction guidance
    ("guide") or by replacement alone ("replace"); weight: w_r of the guidance towards known frames (the paper has 9 and
    50 for other data);
    fine_frames: of the fine network's clips; time, space: how many times its rate and its sides are the base's;
    fine_weight: w_r of the guidance towards the base's clip, of which space^2 would be exact for white Gaussian data
    at little noise; fine_steps: of its sampler.
    """

    process: Process = field(default_factory=Process)
    frames: int = 16
    overlap: int = 8
    extend: str = "guide"
    weight: float = 2.0
    fine_frames: int = 9
    time: int = 4
    space: int = 2
    fine_weight: float = 4.0
    fine_steps: int = 16

    def __post_init__(self) -> None:
        choose("way to extend", self.extend, dict.fromkeys(EXTENSIONS))
        at_least(self, 1, "frames", "time", "space", "fine_steps")
        if not 0 < self.overlap < max(2, self.frames):
            raise ValueError(f"overlap={self.overlap}: must be at least 1 and less than the {self.frames} frames")
        if self.fine_frames % self.time != 1 % self.time or self.fine_frames < 2:
            raise ValueError(
                f"fine_frames={self.fine_frames}: must be {self.time}k+1, to begin and end on a base frame"
            )
        if min(self.weight, self.fine_weight) < 0:
            raise ValueError(f"weight={self.weight}, fine_weight={self.fine_weight}: must be at least 0")


@dataclass(frozen=True, eq=False)
class Asked:
    """What all stages of some clips share: prompts, guidance, seeds, and who is watching."""

    conditions: Conditions
    null: Conditions | None
    sampling: Sampling
    generators: list[Generator]
    tally: Tally


class VDM(PixelSystem):
    """A VDM: a base, and a fine stage where the folder has one."""

    NAME = "CarraraVDM"
    SETTINGS = VDMSettings
    KEEPS_BY = ("hold", *EXTENSIONS)
    settings: VDMSettings

    @classmethod
    def load(cls, folder: Path) -> VDM:
        """Read a model folder. Raises ValueError that names what is wrong with it."""
        return cls(**read_parts(folder, cls.NAME, cls.SETTINGS))

    def check(self) -> None:
        """Refuse networks that do not belong together."""
        if not {"base"} <= set(self.networks) <= {"base", "fine"}:
            raise ValueError(f"networks {sorted(self.networks)}: a VDM has a base, and may have a fine one")
        for name, network in self.networks.items():
            config, width = network.config, self.text_encoder.config.d_model
            if config.given_channels or config.vector_dim or config.scalars or config.channels != 3:
                raise ValueError(f"{name}: a VDM's networks are told of text alone, and make pixels")
            if config.text == "none" or config.text_dim != width:
                raise ValueError(f"{name}: text={config.text!r}, text_dim={config.text_dim}; the encoder's is {width}")

    @property
    def patch(self) -> tuple[int, int, int]:
        step = self.first.config.side_step
        if self.has_fine:
            step = max(step * self.settings.space, self.networks["fine"].config.side_step)
        return 1, step, step

    @property
    def has_fine(self) -> bool:
        return "fine" in self.networks

    def stage(self, name: str) -> Stage:
        return Stage(self.networks[name], self.settings.process, self.precision)

    def sample(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        shape: VideoShape,
        sampling: Sampling,
        negative: str = "",
        progress: Progress | None = None,
        known: Known | None = None,
        keyframes: Keyframes | None = None,
        watch: Watch | None = None,
        start: Start | None = None,
    ) -> Tensor:
        """Draw clips `b 3 t h w` in [-1, 1], of any length: beyond the networks' own, block by block.

        known: pixels to keep, in a clip of one block of a base without a fine stage; "hold" is for networks that have
        learned to be told so, and means reconstruction guidance here. Raises ValueError for what a VDM cannot take.
        """
        settings = self.settings
        if keyframes is not None or start is not None:
            raise ValueError("a VDM takes no keyframes and no clip to begin from; give it text, or pixels to keep")
        if known is not None:
            self.check_keeps(shape.frames)
        self.check_sides(shape)
        time, space = (settings.time, settings.space) if self.has_fine else (1, 1)
        small = VideoShape(ceil((shape.frames - 1) / time) + 1, shape.height // space, shape.width // space)
        total = evaluations(sampling.sampler, sampling.steps) * len(
            blocks(small.frames, settings.frames, settings.overlap)
        )
        if self.has_fine:
            each = evaluations(sampling.sampler, settings.fine_steps)
            total += each * len(blocks(time * (small.frames - 1) + 1, settings.fine_frames, 1))
        with torch.no_grad():
            conditions = Conditions(self.read(prompts))
            null = None if sampling.guidance == 1 else Conditions(self.read([negative] * len(prompts)))
            asked = Asked(conditions, null, sampling, sample_generators(seeds), Tally(total, progress, watch))
            clip = self.draw_base(small, asked, known)
            return self.draw_fine(clip, asked)[:, :, : shape.frames] if self.has_fine else clip

    def check_keeps(self, frames: int, whole: bool = True) -> None:
        """Refuse known pixels in a longer clip than one block, and in one that is enlarged (ValueError)."""
        most = 0 if self.has_fine else self.settings.frames
        if frames > most:
            said = f"up to {most} frames, and this is of {frames}" if most else "one stage, and this one has two"
            raise ValueError(
                f"a VDM keeps pixels in a clip of {said}; frames=N makes longer clips of text, block by block"
            )

    def draw_base(self, shape: VideoShape, asked: Asked, known: Known | None = None) -> Tensor:
        """The base's clip: its first block, and those that extend it."""
        settings, stage = self.settings, self.stage("base")

        def make(block: Block, past: Tensor | None) -> Tensor:
            frames, wrap = block.stop - block.start, None
            if past is not None:
                wrap = self.keeping(*as_beginning(past, frames), settings.extend)
            elif known is not None:
                by = "guide" if known.by == "hold" else known.by
                wrap = self.keeping(known.latents, known.mask, by, known.weight)
            size = (3, frames, shape.height, shape.width)
            return stage.draw(size, asked.conditions, asked.null, asked.sampling, asked.generators, asked.tally, wrap)

        return by_blocks(shape.frames, settings.frames, settings.overlap, make)

    def draw_fine(self, small: Tensor, asked: Asked) -> Tensor:
        """The fine clip of a base's clip: every block begins and ends on a frame whose small copy is known."""
        settings, stage = self.settings, self.stage("fine")
        time, space = settings.time, settings.space
        sampling = replace(asked.sampling, steps=settings.fine_steps)

        def make(block: Block, past: Tensor | None) -> Tensor:
            frames = block.stop - block.start
            copy = small[:, :, block.start // time : (block.stop - 1) // time + 1]

            def steer(denoise: Denoise, noise: Tensor) -> Denoise:
                made = guide_measured(denoise, copy, lambda clip: shrink(clip, time, space), settings.fine_weight)
                return made if past is None else self.keeping(*as_beginning(past, frames), "guide")(made, noise)

            size = (3, frames, small.shape[3] * space, small.shape[4] * space)
            return stage.draw(size, asked.conditions, asked.null, sampling, asked.generators, asked.tally, steer)

        return by_blocks(time * (small.shape[2] - 1) + 1, settings.fine_frames, 1, make)

    def keeping(self, known: Tensor, mask: Tensor, by: str, weight: float | None = None) -> Wrap:
        """Keep what is known, by reconstruction guidance (weight: None for that of the settings) or by replacement."""
        weight = self.settings.weight if weight is None else weight
        if choose("way to keep what is known", by, dict.fromkeys(EXTENSIONS, by)) == "replace":
            return replacing(known, mask)
        return lambda denoise, noise: guide_known(denoise, known, mask, noise, weight)
