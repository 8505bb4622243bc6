"""Running a model: requests to latents, latents to clips and files.

Nothing is lost: every window's latents are saved beside the output before they are decoded, and decoding streams into
the file, which appears when it is whole. Nothing false is written: frames that are not finite, or all alike, are an
error.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor

from carrara.core.devices import chosen_device
from carrara.core.media import check_format, check_output, write_video
from carrara.core.precision import dtype_of
from carrara.core.progress import progress_bar
from carrara.generation.adapters import Loras, put_on, read_loras
from carrara.generation.clip import Clip
from carrara.generation.conditions import Conditions
from carrara.generation.latents import LATENTS, read_latents, save_latents, window_file, windows_there
from carrara.generation.loading import check_room, find_model
from carrara.generation.making import GenerationError, cause, frames_of
from carrara.generation.manifest import Manifest, Software
from carrara.generation.passes import Frame, Told, tell
from carrara.generation.request import Plan, Request, resolve
from carrara.generation.timeline import Timeline, Window
from carrara.systems.compiling import check_compiler, compile_networks
from carrara.systems.latent import LatentVideo, Watch
from carrara.systems.registry import load_system

__all__ = ["GenerationError", "Model", "find_model", "generate", "load"]


class Model:
    """A model in memory: loaded once, for any number of prompts. One clip at a time (micro-batches of 1), so that a
    seed gives the same bytes whatever else is asked for."""

    def __init__(self, name: str, system: LatentVideo, loras: Loras = ()) -> None:
        self.name = name
        self.system = system
        self.loras = loras  # (path, weight, SHA-256) of the adapters that are on it

    def generate(
        self,
        prompt: str | Request = "",
        conditions: Conditions | None = None,
        *,
        seed: int | None = None,
        negative: str | None = None,
        frames: int | None = None,
        seconds: float | None = None,
        window: int | None = None,
        prompt_at: tuple[tuple[float, str], ...] = (),
        size: tuple[int, int] | None = None,
        fps: float | None = None,
        steps: int | None = None,
        guidance: float | None = None,
        sampler: str | None = None,
        shift: float | None = None,
        reuse: float | None = None,
        interval: tuple[float, float] | None = None,
        low_guidance: float | None = None,
        progress: bool | None = None,
    ) -> Clip:
        """Make a clip; what is not said is the model's default, and a seed that is not given is drawn and recorded.

        conditions: pictures and clips that it is made from; frames: all in one pass; seconds: any number, in windows of
        `window` frames; prompt_at: (seconds, prompt) from which on another prompt holds; size is (width, height);
        reuse, interval, low_guidance: see `systems.latent.Sampling`; progress is shown on a terminal if None. A Request
        goes alone and says everything.
        Raises ValueError before any computing, GenerationError if the model's output cannot be shown.
        """
        request = prompt
        if not isinstance(request, Request):
            request = Request(
                request, negative, seed, frames, size, fps, steps, guidance, sampler, shift,
                reuse=reuse, interval=interval, low_guidance=low_guidance, model=self.name,
                conditions=conditions or Conditions(), seconds=seconds, window=window, prompt_at=prompt_at,
            )  # fmt: skip
        plan = self.plan(request)
        return _collected(self.frames(plan, progress), plan.timeline, self.manifest(plan))

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
            conditions=plan.conditions.recorded(),
            inputs=plan.inputs,
            seconds=plan.seconds,
            window=plan.window,
            prompt_at=plan.prompt_at,
            loras=self.loras,
        )

    def sample(self, plan: Plan, progress: bool | None = None, watch: Watch | None = None) -> Tensor:
        """The latents `1 c f h w` of a plan without pictures and of one window; `watch` is shown every evaluation.

        Raises GenerationError where they are not finite.
        """
        if plan.timeline.pictured or len(plan.timeline.windows) > 1:
            raise ValueError(
                "only a clip made from a prompt alone, in one pass, is one tensor of latents; see `frames`"
            )
        return self._draw(plan, 0, Told(), progress, watch)

    def decode(self, latents: Tensor, manifest: Manifest, progress: bool | None = None) -> Clip:
        """Latents `1 c f h w` of a clip without pictures, made in one window, as a clip in memory."""
        timeline = Timeline(manifest.frames, 0, manifest.frames, (Window(0, manifest.frames),))
        frames = frames_of(self.system, timeline, lambda *_: latents, lambda _: manifest.prompt, progress)
        return _collected(frames, timeline, manifest)

    def frames(self, plan: Plan, progress: bool | None = None) -> Iterator[Tensor]:
        """The plan's clip, made while it is asked for, in chunks uint8 `t h w 3`: memory does not grow with it."""

        def latents_of(number: int, window: Window, frame: Frame) -> Tensor:
            return self._draw(plan, number, self._told(plan, window, frame), progress)

        return frames_of(self.system, plan.timeline, latents_of, plan.prompt_of, progress)

    def write(
        self,
        plan: Plan,
        path: str | Path,
        overwrite: bool = False,
        progress: bool | None = None,
        saved: Path | None = None,
    ) -> Manifest:
        """Make the plan's clip straight into a file, in memory that does not grow with its length.

        The latents of its windows wait beside it as `<path>.latents.safetensors`, ... until the file is whole; they
        stay only where something fails, and the error says how to go on from them. saved: such latents to begin with.
        """
        path = Path(path)
        check_output(path, overwrite)
        check_format(path, plan.shape, plan.fps)
        manifest, kept = self.manifest(plan), path.with_name(path.name + LATENTS)
        written: list[Path] = []

        def latents_of(number: int, window: Window, frame: Frame) -> Tensor:
            there = None if saved is None else self._read(window_file(saved, number), plan, window, manifest)
            if there is not None:
                return there
            latents = self._draw(plan, number, self._told(plan, window, frame), progress)
            written.append(window_file(kept, number))
            save_latents(written[-1], latents, manifest)
            return latents

        frames = frames_of(self.system, plan.timeline, latents_of, plan.prompt_of, progress, path.parent)
        try:
            first = next(frames)  # drawn before the file is begun
            write_video(path, chain([first], frames), plan.fps, manifest.metadata(), overwrite, plan.shape)
        except (KeyboardInterrupt, GenerationError):
            _remove(written)  # the user's wish, or latents that show nothing
            raise
        except Exception as error:
            if not written and saved is None:
                raise
            raise GenerationError(
                f"not finished ({str(error) or type(error).__name__}); the latents are kept, go on with: "
                f"carrara generate --from {shlex.quote(str(saved or kept))} -o {shlex.quote(str(path))}"
            ) from error
        _remove(windows_there(kept))  # those of an earlier stop too
        return manifest

    def check_fingerprint(self, manifest: Manifest, where: str | Path) -> None:
        """Refuse to make a clip again with other weights: it would be another clip."""
        if manifest.fingerprint != self.system.fingerprint:
            raise ValueError(
                f"{where}: made by {manifest.model!r} with weights {manifest.fingerprint[:12]}, but {self.name!r} here "
                f"has {self.system.fingerprint[:12] or 'none'}; give the same model with --model FOLDER"
            )
        then, now = ([(weight, made_by) for _, weight, made_by in loras] for loras in (manifest.loras, self.loras))
        if then != now:
            wanted = " ".join(f"--lora {path}:{weight:g}" for path, weight, _ in manifest.loras)
            raise ValueError(
                f"{where}: made with {wanted or 'no adapter'}, and what is on the model here is not the same; give "
                f"{'these very adapters and weights' if wanted else 'none'}"
            )

    def _told(self, plan: Plan, window: Window, frame: Frame) -> Told:
        shape, asked = plan.shape, plan.conditions
        by, weight = asked.known_by or "hold", asked.guide_weight
        return tell(self.system, plan.timeline, window, frame, shape.height, shape.width, by, weight)

    def _draw(
        self, plan: Plan, number: int, told: Told, progress: bool | None = None, watch: Watch | None = None
    ) -> Tensor:
        """The latents of window `number`. Raises GenerationError where they are not finite."""
        windows = plan.timeline.windows
        window, which = windows[number], f" {number + 1}/{len(windows)}" if len(windows) > 1 else ""
        with progress_bar(f"denoising{which}", progress) as show:
            image = {} if told.image is None else {"image": told.image}
            latents = self.system.sample(
                [plan.prompt_of(window)],
                [plan.seed_of(number)],
                plan.shape_of(window),
                plan.sampling,
                plan.negative,
                show,
                told.known,
                told.keyframes,
                watch,
                told.start,
                **image,
            )
        if not latents.isfinite().all():
            settings = f"guidance={plan.sampling.guidance:g}, steps={plan.sampling.steps}"
            raise GenerationError(f"the denoiser's output is not finite; {cause(self.system, settings)}")
        return latents

    def _read(self, path: Path, plan: Plan, window: Window, manifest: Manifest) -> Tensor | None:
        """Saved latents of a window, None where there are none of this very clip. Raises ValueError where they are
        damaged."""
        if not path.is_file():
            return None
        latents, made_as = read_latents(path)
        if replace(made_as, software=manifest.software) != manifest:
            return None  # left by another clip of that name
        shape = plan.shape_of(window).latent(self.system.stride)
        wanted = (1, self.system.latent_channels, shape.frames, shape.height, shape.width)
        if tuple(latents.shape) != wanted:
            raise ValueError(f"{path}: latents of shape {tuple(latents.shape)}, where this clip's are {wanted}")
        return latents.to(self.system.device)


def _collected(chunks: Iterator[Tensor], timeline: Timeline, manifest: Manifest) -> Clip:
    """Chunks as a clip in memory."""
    frames = torch.empty(timeline.frames, manifest.height, manifest.width, 3, dtype=torch.uint8)
    done = 0
    for chunk in chunks:
        frames[done : done + len(chunk)] = chunk
        done += len(chunk)
    return Clip(frames, manifest.fps, manifest)


def _remove(files: list[Path]) -> None:
    for file in files:
        file.unlink(missing_ok=True)


def load(
    model: str | Path = "pond",
    offload: bool = False,
    loras: Sequence[str] = (),
    compile: bool = False,
    device: str = "auto",
    precision: str = "",
) -> Model:
    """A bundled model by name, a model folder of any layout by path, or a model of the hub by its name there.

    A foreign model's text encoder is held only while prompts are read; offload: the blocks in use of a transformer too;
    loras: adapters to put on it, each FOLDER or FOLDER:WEIGHT; compile: its transformers run through `torch.compile`,
    which costs seconds at the first step of every shape and is the same to rounding; device: "cpu", "cuda", or "auto",
    a GPU where torch sees one; precision: what its networks compute in, "float32" or "bfloat16", "" for the model's
    own: float32, or what a foreign one was published in.
    Raises ValueError, one line, for an unknown name or precision, for a folder that is foreign or damaged, for a model
    that does not fit into memory, for an adapter that does not fit it, and where nothing can be compiled or no GPU is.
    """
    if compile:
        check_compiler()
    device, dtype = chosen_device(device), dtype_of(precision)
    folder = find_model(model)
    adapters = read_loras(loras)
    try:
        check_room(folder, dtype, offload=offload, device=device)
        system = load_system(folder, offload, device, precision)
        made = Model(str(model), system, put_on(system, adapters))
        if compile:
            compile_networks(system)
        return made
    except (KeyError, TypeError, AttributeError, RuntimeError, OSError) as error:
        raise ValueError(f"{folder}: not a model that runs here, or damaged ({error!r})") from error


@lru_cache(maxsize=1)
def _loaded(model: str) -> Model:
    return load(model)


def generate(prompt: str | Request, *, seed: int | None = None, model: str = "pond") -> Clip:
    """Make a clip with a model that is loaded on the first call and stays. For more settings pass a Request."""
    request = prompt if isinstance(prompt, Request) else Request(prompt, seed=seed, model=model)
    return _loaded(request.model).generate(request)
