"""What the user asks for, and the checked plan that it becomes before anything is computed."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from math import isfinite
from typing import Any

from carrara.core.config import choose
from carrara.core.types import VideoShape, check_frames, check_multiple
from carrara.diffusion.guidance import Guidance
from carrara.diffusion.samplers import SAMPLERS
from carrara.generation.manifest import Manifest
from carrara.generation.memory import check_memory
from carrara.systems.latent import LatentVideo, Sampling

MAX_SEED = 2**63 - 1
_SAMPLING = tuple(field.name for field in fields(Sampling))


@dataclass(frozen=True)
class Request:
    """A prompt and what the user wants of it. None: the model's own default; seed None: one drawn and recorded.

    size is (width, height) in pixels; guidance 1 is off.
    """

    prompt: str
    negative: str | None = None
    seed: int | None = None
    frames: int | None = None
    size: tuple[int, int] | None = None
    fps: float | None = None
    steps: int | None = None
    guidance: float | None = None
    sampler: str | None = None
    shift: float | None = None
    grid: str | None = None
    rescale: float | None = None
    interval: tuple[float, float] | None = None
    low_guidance: float | None = None
    reuse: float | None = None
    model: str = "pond"

    @classmethod
    def from_manifest(cls, manifest: Manifest, model: str | None = None) -> Request:
        """The request that makes the manifest's clip again, whatever the model's defaults are by now."""
        return cls(
            prompt=manifest.prompt,
            negative=manifest.negative,
            seed=manifest.seed,
            frames=manifest.frames,
            size=(manifest.width, manifest.height),
            fps=manifest.fps,
            model=model or manifest.model,
            **{name: getattr(manifest.sampling, name) for name in _SAMPLING},
        )


@dataclass(frozen=True)
class Plan:
    """A request in which every setting is known and checked."""

    prompt: str
    negative: str
    seed: int
    shape: VideoShape
    fps: float
    sampling: Sampling
    model: str


def resolve(request: Request, system: LatentVideo, available: int | None = None) -> Plan:
    """Fill in the model's defaults and check everything, before any computing.

    available: bytes of memory that may be used, by default what the machine has free.
    Raises ValueError: one line with the value, what was expected and the remedy.
    """
    defaults = system.defaults
    _check_prompt("prompt", request.prompt, system)
    if not request.prompt.strip():
        raise ValueError('the prompt is empty; describe a scene, for example "a red ball bounces on the grass"')
    negative = defaults.negative if request.negative is None else request.negative
    _check_prompt("negative prompt", negative, system)
    seed = secrets.randbelow(2**32) if request.seed is None else request.seed
    _check_number("seed", seed, 0, MAX_SEED, whole=True)
    fps = defaults.fps if request.fps is None else request.fps
    _check_number("fps", fps, 1, 120)
    shape = _shape(request, system)
    sampling = _sampling(request, defaults.sampling)
    check_memory(system, shape, available)
    return Plan(request.prompt, negative, seed, shape, float(fps), sampling, request.model)


def unknown_words(prompt: str, system: LatentVideo) -> str | None:
    """One line about the words that the model has never seen, with what it knows; None if it knows them all."""
    unknown = system.unknown_words(prompt)
    if not unknown:
        return None
    known = system.known_words()
    names = ", ".join(repr(word) for word in unknown)
    return f"this model has never seen {names} and may ignore them; it knows {_some(known)}"


def _some(words: Sequence[str], most: int = 120) -> str:
    shown = ", ".join(words[:most])
    return shown if len(words) <= most else f"{shown} and {len(words) - most} more"


def _check_prompt(name: str, text: Any, system: LatentVideo) -> None:
    if not isinstance(text, str):
        raise ValueError(f"{name}={text!r}: must be a text")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"the {name} {text!a} holds bytes that are no text; write it in UTF-8") from None
    count, most = system.count_tokens(text), system.defaults.max_prompt_tokens
    if count > most:
        raise ValueError(f"the {name} has {count} tokens; this model reads at most {most}: shorten it")


def _check_number(name: str, value: Any, low: float, high: float, whole: bool = False) -> None:
    kind = int if whole else (int, float)
    if isinstance(value, bool) or not isinstance(value, kind) or not isfinite(value) or not low <= value <= high:
        wanted = "a whole number" if whole else "a number"
        raise ValueError(f"{name}={value}: must be {wanted} from {low} to {high}")


def _shape(request: Request, system: LatentVideo) -> VideoShape:
    defaults, stride, patch = system.defaults, system.stride, system.patch
    width, height = (defaults.width, defaults.height) if request.size is None else request.size
    frames = defaults.frames if request.frames is None else request.frames
    _check_number("frames", frames, 1, 10**6, whole=True)
    check_frames(frames, stride.time)
    for name, value, step in (("width", width, stride.space * patch[2]), ("height", height, stride.space * patch[1])):
        _check_number(name, value, 1, 10**6, whole=True)
        check_multiple(name, value, step)
    shape = VideoShape(frames, height, width)
    shape.latent(stride).tokens(patch)
    return shape


def _sampling(request: Request, default: Sampling) -> Sampling:
    named = {name: getattr(request, name) for name in _SAMPLING if getattr(request, name) is not None}
    sampling = replace(default, **named)
    _check_number("steps", sampling.steps, 1, 1000, whole=True)
    _check_number("guidance", sampling.guidance, 0, 100)
    if sampling.low_guidance is not None:
        _check_number("low_guidance", sampling.low_guidance, 0, 100)
    _check_number("shift", sampling.shift, 0.01, 100)
    _check_number("rescale", sampling.rescale, 0, 1)
    choose("sampler", str(sampling.sampler), SAMPLERS)
    Guidance(sampling.guidance, sampling.interval, sampling.rescale)
    sampling.points()
    return sampling
