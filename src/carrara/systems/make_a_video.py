"""Make-A-Video (Singer et al. 2022, arXiv:2209.14792): text-to-video generation without text-video data, on a page.

    text -> prior          the embedding of an image that the text might be said of
         -> decoder        few, small frames of which one has that embedding: an image model with layers along time
         -> interpolation  the same with masked frames beside the noise: fills, goes on, and animates images
         -> space_time     larger frames, by a network that looks along time
         -> space          larger still, frame by frame, every frame from the same noise

Words are read by the prior alone, which learns from captioned images; all that follows learns from images and clips
without captions. So it knows what things look like when named, and how things move, but never what a motion is called.
What differs from the paper is said in `docs/systems.md`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Generator, Tensor

from carrara.core.config import at_least
from carrara.core.types import Keyframes, VideoShape
from carrara.denoisers.prior import Prior, PriorConfig
from carrara.denoisers.unet3d import Conditions
from carrara.diffusion.conditioning import Start
from carrara.diffusion.samplers import draw_noise, evaluations, sample_generators
from carrara.systems.cascade import Augmentation, Block, as_beginning, augment, blocks, by_blocks, enlarge, shrink
from carrara.systems.image_prior import Captions
from carrara.systems.latent import Known, Progress, Sampling, Watch
from carrara.systems.pixel_system import PixelSystem, read_parts
from carrara.systems.stage import Process, Stage, Tally, replacing
from carrara.systems.unlabelled_phase import draw_known
from carrara.text.contrastive import Contrastive, ContrastiveConfig

STAGES = ("decoder", "interpolation", "space_time", "space")
ENLARGING = ("space_time", "space")
FASTEST = 32.0  # frames per second that are told as 1
OTHERS = {"contrastive": (Contrastive, ContrastiveConfig), "prior": (Prior, PriorConfig)}


@dataclass(frozen=True)
class MakeAVideoSettings:
    """What a folder says of its stages beside the networks.

    frames, fps: of the decoder's clips; skip: frames of the interpolated clip for one of them; overlap: frames that a
    block of a longer clip is given of the one before; space: how many times its sides each enlarging stage makes;
    prior_steps, prior_guidance: of the prior; fine_steps: of the enlarging stages; vector_dropout: how often training
    withholds the embedding, so that guidance can compare.
    """

    process: Process = field(default_factory=Process)
    frames: int = 16
    fps: float = 4.0
    skip: int = 2
    overlap: int = 4
    space: int = 2
    augmentation: Augmentation = field(default_factory=Augmentation)
    prior_steps: int = 32
    prior_guidance: float = 2.0
    fine_steps: int = 16
    vector_dropout: float = 0.1

    def __post_init__(self) -> None:
        at_least(self, 2, "frames", "skip")
        at_least(self, 1, "space", "prior_steps", "fine_steps")
        if not 0 < self.fps * self.skip <= FASTEST:
            raise ValueError(f"fps={self.fps:g}, skip={self.skip}: at most {FASTEST:g} frames per second in the end")
        if not 0 < self.overlap < self.frames:
            raise ValueError(f"overlap={self.overlap}: must be at least 1 and less than the {self.frames} frames")
        if not 0 <= self.vector_dropout < 1:
            raise ValueError(f"vector_dropout={self.vector_dropout}: expected at least 0 and less than 1")


@dataclass(frozen=True, eq=False)
class Asked:
    """What all stages of some clips share: embeddings `b d` and their other side, guidance, seeds, who is watching."""

    vector: Tensor
    null: Tensor | None
    sampling: Sampling
    generators: list[Generator]
    tally: Tally


class MakeAVideo(PixelSystem):
    """A Make-A-Video: its prior, and as many stages as the folder has."""

    NAME = "CarraraMakeAVideo"
    SETTINGS = MakeAVideoSettings
    READS_FRAMES = True
    settings: MakeAVideoSettings

    @classmethod
    def load(cls, folder: Path) -> MakeAVideo:
        """Read a model folder. Raises ValueError that names what is wrong with it."""
        return cls(**read_parts(folder, cls.NAME, cls.SETTINGS, OTHERS))

    def check(self) -> None:
        """Refuse networks that do not belong together."""
        if tuple(self.networks) != STAGES[: len(self.networks)] or set(self.others) != set(OTHERS):
            raise ValueError(
                f"parts {[*self.networks, *self.others]}: expected {', '.join(OTHERS)}, and of the stages "
                f"{', '.join(STAGES)} the first ones, in this order"
            )
        captions = Captions(self)
        width, embedding = self.text_encoder.config.d_model, captions.contrastive.config.embedding
        for name, part in (("contrastive", captions.contrastive), ("prior", captions.prior)):
            if (part.config.text_dim, part.config.embedding) != (width, embedding):
                raise ValueError(
                    f"{name}: text_dim={part.config.text_dim}, embedding={part.config.embedding} do not fit"
                )
        wanted: dict[str, tuple[int, int, tuple[str, ...]]] = {
            "decoder": (0, embedding, ("fps",)),
            "interpolation": (4, embedding, ("fps",)),
            "space_time": (3, 0, (Augmentation.NAME,)),
            "space": (3, 0, (Augmentation.NAME,)),
        }
        for name, network in self.networks.items():
            config = network.config
            if config.text != "none":
                raise ValueError(f"{name}: text={config.text!r}; in Make-A-Video the prior alone reads text")
            found = (config.given_channels, config.vector_dim, config.scalars)
            still = name == "decoder" and found == (0, embedding, ())
            if config.channels != 3 or not (still or found == wanted[name]):
                raise ValueError(
                    f"{name}: given_channels, vector_dim, scalars are {found}: must be {wanted[name]}, for pixels"
                )
            if name == "space" and network.time_parameters():
                raise ValueError("space: its network looks along time; it enlarges frame by frame")

    @property
    def enlargement(self) -> int:
        """How many times the decoder's sides the clip has."""
        return self.settings.space ** sum(name in self.networks for name in ENLARGING)

    @property
    def patch(self) -> tuple[int, int, int]:
        step = max(network.config.side_step for network in self.networks.values()) * self.enlargement
        return 1, step, step

    def stage(self, name: str) -> Stage:
        return Stage(self.networks[name], self.settings.process, self.precision)

    def tell(
        self, name: str, clip: Tensor, fps: float, generator: Generator, training: bool = False
    ) -> tuple[Conditions, Tensor]:
        """What a stage is told of a clip `b c f h w` that it is to make, and which frames it is given, `b f` bool.

        training: withhold embeddings, and draw the level of augmentation, as often as the settings say.
        """
        settings, (b, _, frames, _, _) = self.settings, clip.shape
        none = torch.zeros(b, frames, dtype=torch.bool, device=clip.device)
        if name in ENLARGING:
            small = shrink(clip, 1, settings.space)
            levels = settings.augmentation.at_sampling(b, clip.device)
            if training:
                levels = settings.augmentation.draw(b, generator).to(levels)
            noise = torch.randn(small.shape, generator=generator, device=clip.device)
            return self.tell_small(augment(small, levels, noise), levels), none
        with torch.no_grad():
            # One frame of the clip, any: as the image that a caption was said of may be any moment of a scene.
            at = torch.randint(frames, (b,), generator=generator, device=clip.device)
            vector = Captions(self).of_images(clip[torch.arange(b, device=clip.device), :, at])
        if training:
            dropped = torch.rand(b, generator=generator, device=clip.device) < settings.vector_dropout
            vector = vector.masked_fill(dropped[:, None], 0)
        if name == "decoder":
            return self.tell_embedding("decoder", vector, fps), none
        known = draw_known(b, frames, 2 * settings.skip, generator)
        return self.tell_embedding(name, vector, fps, clip, known), known

    def tell_embedding(
        self, name: str, vector: Tensor, fps: float, clip: Tensor | None = None, known: Tensor | None = None
    ) -> Conditions:
        """An embedding, the rate, and with `known` the frames that are: masked pixels and the mask, 4 channels."""
        given, scalars = None, {}
        if "fps" in self.networks[name].config.scalars:
            scalars["fps"] = torch.full((len(vector),), fps / FASTEST, device=vector.device)
        if clip is not None and known is not None:
            mask = known[:, None, :, None, None].to(clip).expand(-1, 1, -1, *clip.shape[3:])
            given = torch.cat((clip * mask, mask), dim=1)
        return Conditions(vector=vector, scalars=scalars, given=given)

    def tell_small(self, small: Tensor, levels: Tensor) -> Conditions:
        """A clip to enlarge, with noise of these levels on it."""
        given = enlarge(small, 1, self.settings.space)
        return Conditions(scalars={Augmentation.NAME: levels.float()}, given=given)

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
        """Draw clips `b 3 t h w` in [-1, 1]; with the interpolating network of any length, and around known frames.

        A single frame is the first one of a clip: once there are layers along time, all weights have learned with them.
        known: whole frames, such as an image to animate; the text is then not read, the embedding is that of the first
        of them. Raises ValueError for what a Make-A-Video cannot take.
        """
        settings = self.settings
        if keyframes is not None or start is not None:
            raise ValueError("a Make-A-Video takes no keyframes and no clip to begin from; give it text, or frames")
        if known is not None:
            self.check_keeps(shape.frames)
        if not self.fills and shape.frames > (most := settings.frames if self.moves else 1):
            raise ValueError(f"frames={shape.frames}: this Make-A-Video makes up to {most} so far; train it further")
        self.check_sides(shape)
        whole = replace(shape, frames=self._drawn(shape.frames, known is not None))
        small = replace(whole, height=shape.height // self.enlargement, width=shape.width // self.enlargement)
        with torch.no_grad():
            generators, captions = sample_generators(seeds), Captions(self)
            tally = Tally(self._evaluations(whole.frames, sampling, known is not None), progress, watch)
            if known is None:
                reading = replace(sampling, steps=settings.prior_steps, guidance=settings.prior_guidance)
                vector = captions.draw(prompts, reading, generators)
                null = captions.draw([negative] * len(prompts), reading, generators) if negative else vector * 0
                asked = Asked(vector, null if sampling.guidance != 1 else None, sampling, generators, tally)
                clip = self.draw_text(small, asked)
            else:
                frames, mask = self._whole_frames(known)
                first = frames[torch.arange(len(frames)), :, mask.int().argmax(dim=1)]
                vector = captions.of_images(first)
                asked = Asked(vector, None if sampling.guidance == 1 else vector * 0, sampling, generators, tally)
                clip = self.fill(shrink(frames, 1, self.enlargement), mask, asked)
            fine = replace(sampling, steps=settings.fine_steps)
            for name in (name for name in ENLARGING if name in self.networks):
                shown = clip if name == "space_time" else clip[:, :, : shape.frames]
                clip = self.draw_larger(name, shown, fine, generators, tally)
            clip = clip[:, :, : shape.frames]
            return clip if known is None else torch.where(known.mask[:, None], known.latents, clip)

    def check_keeps(self, frames: int, whole: bool = True) -> None:
        """Refuse known frames where nothing fills in others, and parts of frames (ValueError)."""
        if not self.fills:
            raise ValueError("this Make-A-Video has no interpolating network yet, which frames are animated by")
        if not whole:
            raise ValueError("a Make-A-Video keeps whole frames, at least one in every clip; it keeps no parts of them")

    @property
    def fills(self) -> bool:
        """Whether there is a network that fills in frames yet."""
        return "interpolation" in self.networks

    @property
    def moves(self) -> bool:
        """Whether the decoder has its layers along time yet."""
        return bool(self.networks["decoder"].time_parameters())

    def draw_text(self, shape: VideoShape, asked: Asked) -> Tensor:
        """The clip of an embedding at the decoder's size: its own frames, and what interpolation fills in."""
        settings, fills = self.settings, self.fills
        frames = self._decoded(shape.frames) if fills else shape.frames
        told, null = (
            None if vector is None else self.tell_embedding("decoder", vector, settings.fps)
            for vector in (asked.vector, asked.null)
        )
        size, decoder = (3, frames, shape.height, shape.width), self.stage("decoder")
        assert told is not None
        clip = decoder.draw(size, told, null, asked.sampling, asked.generators, asked.tally)
        if not fills or shape.frames == 1:
            return clip
        whole = max(shape.frames, settings.skip * (frames - 1) + 1)
        spread = clip.new_zeros(len(clip), 3, whole, shape.height, shape.width)
        spread[:, :, : settings.skip * frames : settings.skip] = clip
        mask = torch.zeros(len(clip), whole, dtype=torch.bool, device=clip.device)
        mask[:, : settings.skip * frames : settings.skip] = True
        return self.fill(spread, mask, asked)[:, :, : shape.frames]

    def fill(self, clip: Tensor, known: Tensor, asked: Asked) -> Tensor:
        """Make the frames of `b c f h w` that are not `known` (`b f` bool), block by block; the others stay."""
        settings, stage = self.settings, self.stage("interpolation")

        def make(block: Block, past: Tensor | None) -> Tensor:
            values, here = clip[:, :, block.start : block.stop], known[:, block.start : block.stop]
            if past is not None:
                beginning, is_past = as_beginning(past, block.stop - block.start)
                values, here = torch.where(is_past[:, None, :, None, None], beginning, values), here | is_past
            told, null = (
                None if vector is None else self.tell_embedding(stage_name, vector, rate, values, here)
                for vector in (asked.vector, asked.null)
            )
            assert told is not None
            keep = replacing(values, here)
            made = stage.draw(values.shape[1:], told, null, asked.sampling, asked.generators, asked.tally, keep)
            return torch.where(here[:, None, :, None, None], values, made)

        stage_name, rate = "interpolation", settings.fps * settings.skip
        return by_blocks(clip.shape[2], settings.frames, settings.overlap, make)

    def draw_larger(
        self, name: str, small: Tensor, sampling: Sampling, generators: list[Generator], tally: Tally
    ) -> Tensor:
        """A clip of `space` times the sides. `space_time` goes block by block, `space` frame by frame: all frames begin
        with the same noise, on the small clip too, and no noise is added on the way (DDIM), so what stands still does.
        """
        settings, alone = self.settings, name == "space"
        levels = settings.augmentation.at_sampling(len(small), small.device)
        _, channels, frames, height, width = small.shape
        noise = draw_noise((channels, 1 if alone else frames, height, width), generators).to(small.device)
        noised = augment(small, levels, noise.expand_as(small))
        if alone:
            sampling = replace(sampling, sampler="ddim")

        def make(block: Block, past: Tensor | None) -> Tensor:
            told = self.tell_small(noised[:, :, block.start : block.stop], levels)
            size = (3, block.stop - block.start, height * settings.space, width * settings.space)
            keep = None if past is None else replacing(*as_beginning(past, size[1]))
            return self.stage(name).draw(size, told, None, sampling, generators, tally, keep, one_noise=alone)

        return make(Block(0, frames, 0), None) if alone else by_blocks(frames, settings.frames, settings.overlap, make)

    def peak_memory(self, shape: VideoShape) -> int:
        """Bytes; see `PixelSystem`."""
        return super().peak_memory(replace(shape, frames=self._drawn(shape.frames, False)))

    def _drawn(self, frames: int, known: bool) -> int:
        """How many frames are drawn where so many are wanted."""
        return self.settings.frames if frames == 1 and self.moves and not known else frames

    def _decoded(self, frames: int) -> int:
        """How many frames the decoder makes for a clip of so many."""
        return min(self.settings.frames, -(-(frames - 1) // self.settings.skip) + 1)

    def _evaluations(self, frames: int, sampling: Sampling, known: bool) -> int:
        settings = self.settings
        each, total = evaluations(sampling.sampler, sampling.steps), 0
        if not known:
            total += each
        if known or (self.fills and frames > 1):
            decoded = 0 if known else settings.skip * (self._decoded(frames) - 1) + 1
            total += each * len(blocks(max(frames, decoded), settings.frames, settings.overlap))
        if "space_time" in self.networks:
            fine = evaluations(sampling.sampler, settings.fine_steps)
            total += fine * len(blocks(frames, settings.frames, settings.overlap))
        return total + ("space" in self.networks) * settings.fine_steps

    def _whole_frames(self, known: Known) -> tuple[Tensor, Tensor]:
        """The frames that are known, and which, `b f`. Raises ValueError for parts of frames, and for none."""
        mask = known.mask.flatten(2)
        whole = mask.all(dim=2).equal(mask.any(dim=2)) and bool(mask.any(dim=(1, 2)).all())
        self.check_keeps(mask.shape[1], whole)
        return known.latents, mask.all(dim=2)
