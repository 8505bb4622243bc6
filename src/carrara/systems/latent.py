"""The latent video system: text -> noise field -> transformer -> latents -> causal decoder -> video.

The spine that the bundled model and the public Wan weights share (Wan technical report, 2025; latent diffusion,
Rombach et al. 2022; flow matching, Lipman et al. 2023). Its folder is the diffusers layout: see `systems/folder.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self

import torch
from einops import reduce, repeat
from torch import Tensor, nn

from carrara.autoencoders.causal import State
from carrara.autoencoders.video import VideoAutoencoder, chunk_frames
from carrara.core.config import choose
from carrara.core.types import Keyframes, Stride, TextStates, VideoShape
from carrara.denoisers.dit import DiT
from carrara.denoisers.first_block import check_threshold
from carrara.diffusion.conditioning import GUIDE_WEIGHT, Start, cut, keep_known
from carrara.diffusion.grids import (
    Denoise,
    Grid,
    GridPoint,
    cosine_grid,
    diffusers_euler_grid,
    diffusers_unipc_grid,
    flow_grid,
    wan_dpmpp_grid,
    wan_grid,
)
from carrara.diffusion.guidance import Guidance
from carrara.diffusion.predictions import add_noise
from carrara.diffusion.samplers import SAMPLERS, draw_noise, evaluations, sample_generators
from carrara.systems.denoising import Given, ImageContext, guided
from carrara.systems.experts import Experts
from carrara.systems.image_tower import ImageTower
from carrara.systems.offload import StagedTextEncoder
from carrara.systems.refiner import Refiner
from carrara.text.encoder import TextEncoder
from carrara.text.tokenizer import Tokenizer

__all__ = ["GRIDS", "Defaults", "ImageContext", "Known", "LatentVideo", "Sampling", "Start", "chunk_frames"]

GRIDS: dict[str, Callable[[int, float], Grid]] = {
    "diffusers-unipc": diffusers_unipc_grid,
    "diffusers-euler": diffusers_euler_grid,
    "wan": wan_grid,
    "wan-dpmpp": wan_dpmpp_grid,
    "flow": flow_grid,
    "cosine": cosine_grid,
}

Progress = Callable[[int, int], None]
Watch = Callable[[GridPoint, Tensor, Tensor], None]
"""Sees every evaluation of a sampler: the point, x there, and the estimate of the data (guided)."""


@dataclass(frozen=True)
class Sampling:
    """How latents are drawn: solver, its grid and the guidance. The defaults are what diffusers runs for Wan.

    low_guidance: of the expert for low noise, where there are two; None: the same;
    reuse: relative change of the first block up to which the rest of the network is skipped; 0 never, and is exact.
    """

    steps: int = 50
    guidance: float = 5.0
    sampler: str = "unipc"
    shift: float = 3.0
    grid: str = "diffusers-unipc"
    rescale: float = 0.0
    interval: tuple[float, float] = (0.0, 1.0)
    low_guidance: float | None = None
    reuse: float = 0.0

    def __post_init__(self) -> None:
        choose("sampler", self.sampler, SAMPLERS)
        choose("grid", self.grid, GRIDS)
        check_threshold(self.reuse)

    def points(self) -> Grid:
        """The sampling grid. Raises ValueError for an unknown grid."""
        return choose("grid", self.grid, GRIDS)(self.steps, self.shift)


@dataclass(frozen=True)
class Defaults:
    """What a model makes when the user does not say: its native clip and the sampling it was chosen with.

    knows: what it was trained to be told beside the prompt, "levels" of single positions and "keyframes"; strides: it
    has learned the steps of `sampling` alone, guidance included, as a distilled model has.
    """

    frames: int = 81
    height: int = 480
    width: int = 832
    fps: float = 16.0
    sampling: Sampling = field(default_factory=Sampling)
    negative: str = ""
    max_prompt_tokens: int = 512
    knows: tuple[str, ...] = ("levels", "keyframes")
    strides: bool = False

    @property
    def steps(self) -> int:
        return self.sampling.steps

    @property
    def guidance(self) -> float:
        return self.sampling.guidance

    @property
    def sampler(self) -> str:
        return self.sampling.sampler

    @property
    def shift(self) -> float:
        return self.sampling.shift


@dataclass(frozen=True)
class Known:
    """Latents to keep while sampling: values `b c f h w` and a bool mask `b f h w`, True where kept.

    A token covers a patch of latents; it is told that it is clean where all of its patch is kept, and what is kept of
    another token is shown at that token's level. by: "hold", or a way for a model that knows one level only, see
    `diffusion.conditioning`; weight: of the way "guide", None for the system's own.
    """

    latents: Tensor
    mask: Tensor
    by: str = "hold"
    weight: float | None = None

    def whole(self, patch: tuple[int, int, int]) -> Tensor:
        """Where all of a token is kept, `b f h w`."""
        _, p, q = patch
        tokens = reduce(self.mask, "b f (h p) (w q) -> b f h w", "min", p=p, q=q)
        return repeat(tokens, "b f h w -> b f (h p) (w q)", p=p, q=q)


class LatentVideo:
    """The parts of a latent text-to-video model, and how they make latents from prompts and video from latents."""

    def __init__(
        self,
        autoencoder: VideoAutoencoder,
        denoiser: DiT,
        text_encoder: TextEncoder | StagedTextEncoder,
        tokenizer: Tokenizer,
        defaults: Defaults | None = None,
        fingerprint: str = "",
        low_denoiser: DiT | None = None,
        boundary: float = 0.875,
        image_tower: ImageTower | None = None,
        refiner: Refiner | None = None,
    ) -> None:
        self.autoencoder = autoencoder
        self.denoiser = denoiser
        self.text_encoder = text_encoder
        self.tokenizer = tokenizer
        self.defaults = defaults or Defaults()
        self.fingerprint = fingerprint
        self.low_denoiser, self.boundary = low_denoiser, boundary
        self.image_tower = image_tower
        self.refiner = refiner
        self.precision = ""  # what it was asked to be loaded in, as `core.precision` names it
        self.taught: set[str] = set()  # words that adapters taught, which the tokenizer does not know whole

    @classmethod
    def load(
        cls, folder: Path, dtype: torch.dtype | None = None, staged: bool = False, offload: bool = False
    ) -> LatentVideo:
        """Read a model folder in the diffusers layout or in that of the published Wan weights.

        dtype None: float32 for a model made here, the published precision for another (`systems/parts.py`);
        staged: the text encoder is held only while prompts are read; offload: of a transformer only the blocks in use
        are (`systems/offload.py`). Raises ValueError that names what is wrong with the folder.
        """
        from carrara.systems.folder import read_folder

        return read_folder(Path(folder), dtype, staged, offload)

    def save(self, folder: Path, dtype: torch.dtype = torch.float16) -> None:
        """Write a model folder that Carrara and diffusers' WanPipeline both read."""
        from carrara.systems.folder import write_folder

        write_folder(self, Path(folder), dtype)

    @property
    def network(self) -> DiT | Experts:
        """What answers while sampling: the denoiser; with a second one for levels below the boundary, both."""
        return Experts(self.denoiser, self.low_denoiser, self.boundary) if self.low_denoiser else self.denoiser

    @property
    def stride(self) -> Stride:
        return self.autoencoder.stride

    def to(self, device: torch.device | str) -> Self:
        """Move every network there. Offloaded blocks compute where they were loaded for; a staged text encoder follows
        when it is loaded."""
        for network in self.networks():
            network.to(device)
        return self

    def networks(self) -> list[nn.Module | StagedTextEncoder]:
        """Every network there is."""
        parts = (self.denoiser, self.low_denoiser, self.autoencoder, self.text_encoder, self.image_tower, self.refiner)
        return [part for part in parts if part is not None]

    @property
    def device(self) -> torch.device:
        return next(self.denoiser.parameters()).device

    @property
    def patch(self) -> tuple[int, int, int]:
        return self.denoiser.config.patch

    @property
    def latent_channels(self) -> int:
        return self.autoencoder.latent_channels

    def unknown_words(self, prompt: str) -> list[str]:
        return [word for word in self.tokenizer.unknown_words(prompt) if word.lower() not in self.taught]

    def known_words(self) -> list[str]:
        return self.tokenizer.known_words()

    def count_tokens(self, prompt: str) -> int:
        return self.tokenizer.lengths([prompt])[0]

    def read(self, prompts: Sequence[str]) -> TextStates:
        """Encode prompts for the denoiser; "" is the null caption."""
        ids, mask = self.tokenizer.encode(prompts)
        return self.text_encoder(ids.to(self.device), mask.to(self.device))

    def release_text(self) -> None:
        """All prompts of a clip have been read: a text encoder that can be loaded again gives its memory back."""
        if isinstance(self.text_encoder, StagedTextEncoder):
            self.text_encoder.release()

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
        image: ImageContext | None = None,
    ) -> Tensor:
        """Draw normalised latents `b c f h w`, one prompt and one seed each.

        `known` latents are kept (a beginning, a region); `keyframes` are frames known at other times; sampling begins
        at `start`, where given, instead of at pure noise. `watch` is shown every evaluation and changes nothing.
        `image` is what an image-to-video network reads of its image.
        Raises ValueError for a shape that the model cannot make or an unknown sampler.
        """
        gradients = known is not None and known.by == "guide"
        with torch.inference_mode(not gradients), torch.no_grad():
            sampler = choose("sampler", sampling.sampler, SAMPLERS)
            latent = shape.latent(self.stride)
            latent.tokens(self.patch)
            grid = sampling.points()
            generators = sample_generators(seeds)
            noise = draw_noise((self.latent_channels, latent.frames, latent.height, latent.width), generators)
            x = noise = noise.to(self.device)
            if start is not None:
                grid = cut(grid, start.level)
                x = add_noise(start.latents, noise, grid.points[0].alpha, grid.points[0].sigma)
            guidance = Guidance(sampling.guidance, sampling.interval, sampling.rescale)
            held = None if known is None or known.by != "hold" else known.mask
            denoise = guided(
                self.network,
                self.read(prompts),
                lambda: self.read([negative] * len(prompts)),
                guidance,
                sampling.low_guidance,
                Given(held, keyframes, image or ImageContext()),
                sampling.reuse,
            )
            self.release_text()
            if known is not None:
                whole = known.whole(self.patch)
                weight = GUIDE_WEIGHT if known.weight is None else known.weight
                denoise = keep_known(known.by, denoise, known.latents, known.mask, noise, whole, weight)
            if progress is not None:
                denoise = _counted(denoise, progress, evaluations(sampling.sampler, grid.steps))
            if watch is not None:
                denoise = _watched(denoise, watch)
            return sampler(denoise, x, grid, generators)

    def finish(self, video: Tensor, prompts: Sequence[str], first: int = 0) -> Tensor:
        """Decoded clips `b 3 t h w`, from frame `first` of their videos on, as they are shown: drawn again by the
        refiner, where the model has one."""
        if self.refiner is None:
            return video
        text = self.read(prompts)
        precision = self.precision or ("bfloat16" if video.dtype == torch.bfloat16 else "")
        return self.refiner.refine(video, replace(text, states=text.states.float()), precision, first)

    def decode_chunks(self, latents: Tensor) -> Iterator[Tensor]:
        """Video `b 3 t h w` in [-1, 1], chunk after chunk, in constant memory."""
        return self.autoencoder.decode_chunks(latents)

    def decode_more(self, latents: Tensor, state: State | None = None) -> Iterator[tuple[Tensor, State]]:
        """The next latents of a clip as chunks `b 3 t h w`, each with the state to go on from."""
        return self.autoencoder.decode_more(latents, state)


def _watched(denoise: Denoise, watch: Watch) -> Denoise:
    """Show every evaluation."""

    def watched(x: Tensor, point: GridPoint) -> Tensor:
        denoised = denoise(x, point)
        watch(point, x, denoised)
        return denoised

    return watched


def _counted(denoise: Denoise, progress: Progress, total: int) -> Denoise:
    """Report every evaluation as (done, total)."""
    done = 0

    def counted(x: Tensor, point: GridPoint) -> Tensor:
        nonlocal done
        denoised = denoise(x, point)
        done += 1
        progress(done, total)
        return denoised

    return counted
