"""Running a model: requests to latents, latents to clips and files.

Nothing is lost: latents are saved beside the output before they are decoded, and decoding streams into the file, which
appears when it is whole. Nothing false is written: frames that are not finite, or all alike, are an error.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import torch
from einops import rearrange
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from carrara.core.config import nearest
from carrara.core.media import check_format, check_output, write_video
from carrara.core.progress import progress_bar
from carrara.core.types import VideoShape
from carrara.generation.clip import Clip
from carrara.generation.manifest import Manifest, Software, find_manifest, read_manifest
from carrara.generation.request import Plan, Request, resolve
from carrara.systems.latent import LatentVideo, Watch

LATENTS = ".latents.safetensors"
_BUNDLED = Path(__file__).parent.parent / "models"
_FLAT = 2  # a clip whose values all lie within so many levels of 255 shows nothing


class GenerationError(RuntimeError):
    """The model ran and gave nothing that could be shown. The message names the cause and the remedy."""


class Model:
    """A model in memory: loaded once, for any number of prompts. One clip at a time (micro-batches of 1), so that a
    seed gives the same bytes whatever else is asked for."""

    def __init__(self, name: str, system: LatentVideo) -> None:
        self.name = name
        self.system = system

    def generate(
        self,
        prompt: str | Request,
        *,
        seed: int | None = None,
        negative: str | None = None,
        frames: int | None = None,
        size: tuple[int, int] | None = None,
        fps: float | None = None,
        steps: int | None = None,
        guidance: float | None = None,
        sampler: str | None = None,
        shift: float | None = None,
        progress: bool | None = None,
    ) -> Clip:
        """Make a clip; what is not said is the model's default, and a seed that is not given is drawn and recorded.

        size is (width, height); progress is shown on a terminal if None. A Request goes alone and says everything.
        Raises ValueError before any computing, GenerationError if the model's output cannot be shown.
        """
        request = prompt
        if not isinstance(request, Request):
            request = Request(
                request, negative, seed, frames, size, fps, steps, guidance, sampler, shift, model=self.name
            )
        plan = self.plan(request)
        return self.decode(self.sample(plan, progress), self.manifest(plan), progress)

    def plan(self, request: Request) -> Plan:
        """The request with everything filled in and checked; see `resolve`."""
        return resolve(request, self.system)

    def manifest(self, plan: Plan) -> Manifest:
        """What the plan's clip will carry."""
        shape = plan.shape
        return Manifest(
            prompt=plan.prompt,
            negative=plan.negative,
            seed=plan.seed,
            model=plan.model,
            fingerprint=self.system.fingerprint,
            frames=shape.frames,
            width=shape.width,
            height=shape.height,
            fps=plan.fps,
            sampling=plan.sampling,
            software=Software.here(self.system),
        )

    def sample(self, plan: Plan, progress: bool | None = None, watch: Watch | None = None) -> Tensor:
        """The plan's latents `1 c f h w`; `watch` is shown every evaluation.

        Raises GenerationError where they are not finite.
        """
        with progress_bar("denoising", progress) as show:
            latents = self.system.sample(
                [plan.prompt], [plan.seed], plan.shape, plan.sampling, plan.negative, show, watch=watch
            )
        if not latents.isfinite().all():
            settings = f"guidance={plan.sampling.guidance:g}, steps={plan.sampling.steps}"
            raise GenerationError(f"the denoiser's output is not finite; {_cause(self.system, settings)}")
        return latents

    def decode(self, latents: Tensor, manifest: Manifest, progress: bool | None = None) -> Clip:
        """Latents `1 c f h w` as a clip in memory."""
        shape = VideoShape(manifest.frames, manifest.height, manifest.width)
        frames = torch.empty(shape.frames, shape.height, shape.width, 3, dtype=torch.uint8)
        done = 0
        for chunk in self._frames(latents, shape, progress):
            frames[done : done + len(chunk)] = chunk
            done += len(chunk)
        return Clip(frames, manifest.fps, manifest)

    def write(self, plan: Plan, path: str | Path, overwrite: bool = False, progress: bool | None = None) -> Manifest:
        """Make the plan's clip straight into a file, in memory that does not grow with its length.

        Its latents wait beside it as `<path>.latents.safetensors` while they are decoded; they stay only where
        decoding fails, and the error says how to go on from them.
        """
        path = Path(path)
        check_output(path, overwrite)
        check_format(path, plan.shape, plan.fps)
        manifest, kept = self.manifest(plan), path.with_name(path.name + LATENTS)
        latents = self.sample(plan, progress)
        save_latents(kept, latents, manifest)
        try:
            self.write_latents(latents, manifest, path, overwrite, progress)
        except (KeyboardInterrupt, GenerationError):
            kept.unlink(missing_ok=True)  # the user's wish, or latents that show nothing
            raise
        except Exception as error:
            raise GenerationError(
                f"decoding failed ({str(error) or type(error).__name__}); the latents are kept, go on with: "
                f"carrara generate --from {shlex.quote(str(kept))} -o {shlex.quote(str(path))}"
            ) from error
        kept.unlink(missing_ok=True)
        return manifest

    def write_latents(
        self, latents: Tensor, manifest: Manifest, path: Path, overwrite: bool = False, progress: bool | None = None
    ) -> None:
        """Decode latents into a file, chunk by chunk."""
        shape = VideoShape(manifest.frames, manifest.height, manifest.width)
        chunks = self._frames(latents, shape, progress)
        write_video(path, chunks, manifest.fps, manifest.metadata(), overwrite, shape)

    def check_fingerprint(self, manifest: Manifest, where: str | Path) -> None:
        """Refuse to make a clip again with other weights: it would be another clip."""
        if manifest.fingerprint != self.system.fingerprint:
            raise ValueError(
                f"{where}: made by {manifest.model!r} with weights {manifest.fingerprint[:12]}, but {self.name!r} here "
                f"has {self.system.fingerprint[:12] or 'none'}; give the same model with --model FOLDER"
            )

    def _frames(self, latents: Tensor, shape: VideoShape, progress: bool | None) -> Iterator[Tensor]:
        """Chunks uint8 `t h w 3`, watched: a value that is not finite or a clip without contrast is an error."""
        low, high, done = 255, 0, 0
        with progress_bar("decoding", progress) as show:
            for video in self.system.decode_chunks(latents):
                if not video.isfinite().all():
                    raise GenerationError(f"the decoder's output is not finite; {_cause(self.system, 'its precision')}")
                frames = ((video[0].float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
                low, high = min(low, int(frames.min())), max(high, int(frames.max()))
                done += frames.shape[1]
                show(done, shape.frames)
                if done == shape.frames and high - low <= _FLAT:
                    raise GenerationError(
                        f"every pixel of the clip is the same ({low} of 255); {_cause(self.system, 'its training')}"
                    )
                yield rearrange(frames, "c t h w -> t h w c")


def load(model: str | Path = "pond") -> Model:
    """A bundled model by name, or a model folder in the diffusers layout by path.

    Raises ValueError, one line, for an unknown name and for a folder that is foreign or damaged.
    """
    folder = find_model(model)
    try:
        return Model(str(model), LatentVideo.load(folder))
    except (KeyError, TypeError, AttributeError, RuntimeError, OSError) as error:
        raise ValueError(f"{folder}: not a model that runs here, or damaged ({error!r})") from error


def find_model(model: str | Path) -> Path:
    """The folder of a model, by name or path."""
    bundled = {path.name: path for path in _BUNDLED.glob("*") if (path / "model_index.json").is_file()}
    if not str(model):
        raise ValueError("the model's name is empty; give a bundled model or the path of a model folder")
    if str(model) in bundled:
        return bundled[str(model)]
    if Path(model).is_dir():
        return Path(model)
    if os.sep in str(model):
        raise ValueError(f"{model}: no such model folder")
    known = nearest(str(model), bundled) if bundled else "none is bundled with this installation"
    raise ValueError(f"unknown model {str(model)!r}; {known}; or give the path of a model folder")


@lru_cache(maxsize=1)
def _loaded(model: str) -> Model:
    return load(model)


def generate(prompt: str | Request, *, seed: int | None = None, model: str = "pond") -> Clip:
    """Make a clip with a model that is loaded on the first call and stays. For more settings pass a Request."""
    request = prompt if isinstance(prompt, Request) else Request(prompt, seed=seed, model=model)
    return _loaded(request.model).generate(request)


def save_latents(path: Path, latents: Tensor, manifest: Manifest) -> None:
    """Write latents and the manifest of their clip as one safetensors file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".carrara-{os.getpid()}-{os.urandom(4).hex()}.latents")
    try:
        save_file({"latents": latents.detach().cpu().contiguous()}, partial, metadata=manifest.metadata())
        partial.replace(path)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path}: the latents cannot be saved ({error}); choose another folder") from error
    finally:
        partial.unlink(missing_ok=True)


def read_latents(path: Path) -> tuple[Tensor, Manifest]:
    """What `save_latents` wrote. Raises ValueError for a file that is foreign or damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            manifest = find_manifest(file.metadata() or {}, str(path))
            if "latents" not in file.keys():  # noqa: SIM118 (not a dict)
                raise ValueError(f"{path}: holds no latents")
            return file.get_tensor("latents"), manifest
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: not a file of saved latents, or damaged ({error})") from None


def read_source(path: Path) -> tuple[Tensor | None, Manifest]:
    """The manifest of a clip's file or of saved latents, and the latents where it is those."""
    if path.suffix == ".safetensors":
        return read_latents(path)
    return None, read_manifest(path)


def _cause(system: LatentVideo, otherwise: str) -> str:
    """The weights, if they are at fault; else the settings."""
    parts: dict[str, nn.Module] = {
        "transformer": system.denoiser,
        "vae": system.autoencoder,
        "text_encoder": system.text_encoder,
    }
    for part, module in parts.items():
        for name, weight in module.named_parameters():
            if not weight.isfinite().all():
                return f"the model is damaged: its {part} has values that are not finite in {name}; copy it again"
    return f"the weights are finite, so the cause is {otherwise}; try the model's defaults and another seed"
