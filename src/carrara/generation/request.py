"""What the user asks for, and the checked plan that it becomes before anything is computed."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from math import isfinite
from typing import Any

import numpy as np

from carrara.core.config import choose
from carrara.core.types import VideoShape, check_frames, check_multiple
from carrara.diffusion.guidance import Guidance
from carrara.diffusion.samplers import SAMPLERS
from carrara.generation.conditions import Conditions
from carrara.generation.manifest import Manifest
from carrara.generation.material import gather
from carrara.generation.memory import check_memory
from carrara.generation.modes import Length, lay_out
from carrara.generation.passes import keyframe_indices, reads_image
from carrara.generation.timeline import Timeline, Window
from carrara.systems.latent import LatentVideo, Sampling
from carrara.systems.wan_image import check_images

MAX_SEED = 2**63 - 1
FAR = 2.5
"""Times the usual area, or one over it. Released models are made for 832 x 480 and for 1280 x 720, 2.3 times that."""
_SAMPLING = tuple(field.name for field in fields(Sampling))


@dataclass(frozen=True)
class Request:
    """A prompt and what the user wants of it. None: the model's own default; seed None: one drawn and recorded.

    size is (width, height) in pixels; guidance 1 is off. frames: made in one pass; seconds: of what is made, in windows
    of `window` frames; prompt_at: (seconds, prompt) from which on another prompt holds; conditions: pictures and clips
    that it is made from, and inputs the SHA-256 that they must have, by name.
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
    conditions: Conditions = field(default_factory=Conditions)
    seconds: float | None = None
    window: int | None = None
    prompt_at: tuple[tuple[float, str], ...] = ()
    inputs: tuple[tuple[str, str], ...] = ()

    @classmethod
    def from_manifest(cls, manifest: Manifest, model: str | None = None) -> Request:
        """The request that makes the manifest's clip again, whatever the model's defaults are by now."""
        conditions = manifest.asked()
        counted = manifest.seconds is None and conditions.clip is None
        return cls(
            prompt=manifest.prompt,
            negative=manifest.negative,
            seed=manifest.seed,
            frames=manifest.frames if counted else None,
            size=(manifest.width, manifest.height),
            fps=manifest.fps,
            model=model or manifest.model,
            conditions=conditions,
            seconds=manifest.seconds,
            window=manifest.window,
            prompt_at=manifest.prompt_at,
            inputs=manifest.inputs,
            **{name: getattr(manifest.sampling, name) for name in _SAMPLING},
        )


@dataclass(frozen=True)
class Plan:
    """A request in which every setting is known and checked, and every input is read.

    shape: of the whole clip; timeline: what is known of it and in which windows the rest is made; prompts: (frame,
    prompt) from which on it holds; conditions, inputs, seconds, window, prompt_at: for the manifest.
    """

    prompt: str
    negative: str
    seed: int
    shape: VideoShape
    fps: float
    sampling: Sampling
    model: str
    timeline: Timeline
    prompts: tuple[tuple[int, str], ...] = ()
    conditions: Conditions = field(default_factory=Conditions)
    inputs: tuple[tuple[str, str], ...] = ()
    seconds: float | None = None
    window: int | None = None
    prompt_at: tuple[tuple[float, str], ...] = ()

    def prompt_of(self, window: Window) -> str:
        """The prompt in force where the window begins to make frames."""
        return next((prompt for frame, prompt in reversed(self.prompts) if frame <= window.fresh), self.prompt)

    def seed_of(self, number: int) -> int:
        """The seed of a window's noise: the clip's own for the first, drawn from it for the others."""
        if not number:
            return self.seed
        return int(np.random.SeedSequence((self.seed, number)).generate_state(1, np.uint64)[0] >> np.uint64(1))

    def shape_of(self, window: Window) -> VideoShape:
        return VideoShape(window.frames, self.shape.height, self.shape.width)


def resolve(request: Request, system: LatentVideo, available: int | None = None) -> Plan:
    """Fill in the model's defaults, read the inputs and check everything, before any computing.

    available: bytes of memory that may be used, by default what the machine has free.
    Raises ValueError: one line with the value, what was expected and the remedy.
    """
    defaults, conditions = system.defaults, request.conditions
    if not isinstance(conditions, Conditions):
        kind = type(conditions).__name__
        raise ValueError(f'conditions is a {kind}: expected Conditions, such as Conditions(image="first.png")')
    conditions.check()
    _check_prompt("prompt", request.prompt, system)
    if not request.prompt.strip() and not conditions.pictured:
        raise ValueError('the prompt is empty; describe a scene, for example "a red ball bounces on the grass"')
    pairs = request.prompt_at if isinstance(request.prompt_at, (tuple, list)) else [None]
    if not all(isinstance(pair, (tuple, list)) and len(pair) == 2 for pair in pairs):
        raise ValueError(
            f"prompt_at={request.prompt_at!r}: expected pairs of seconds and a prompt, ((2.0, prompt), ...)"
        )
    for _, prompt in request.prompt_at:
        _check_prompt("prompt of prompt_at", prompt, system)
        if not prompt.strip():
            raise ValueError("the prompt of prompt_at is empty; say what to show from then on")
    negative = defaults.negative if request.negative is None else request.negative
    _check_prompt("negative prompt", negative, system)
    seed = secrets.randbelow(2**32) if request.seed is None else request.seed
    _check_number("seed", seed, 0, MAX_SEED, whole=True)
    if request.fps is not None:
        _check_number("fps", request.fps, 1, 120)
    shape = _shape(request, system)
    sampling = _sampling(request, system)
    if not request.prompt and not negative and not request.prompt_at and request.guidance is None:
        sampling = replace(sampling, guidance=1.0)  # it would compare the null caption with itself

    length = Length(
        request.frames,
        request.seconds,
        request.fps,
        request.window,
        defaults.frames,
        defaults.fps,
        system.stride.time,
        1 if reads_image(system) else None,
    )
    length.check(conditions)
    plain = not conditions.said() and request.seconds is None and request.window is None and not request.prompt_at
    if plain and not reads_image(system):
        timeline = Timeline(shape.frames, 0, shape.frames, (Window(0, shape.frames),))
        check_memory(system, shape, available)
        return Plan(
            request.prompt, negative, seed, shape, float(request.fps or defaults.fps), sampling, request.model, timeline
        )
    check_memory(system, VideoShape(1, shape.height, shape.width), available)  # before pictures are made so large
    material = gather(conditions, shape.height, shape.width, dict(request.inputs), length.step)
    timeline, fps, prompts = lay_out(conditions, length, material, request.prompt_at)
    if request.fps is None and not 1 <= fps <= 120:
        said = f"the result would have {fps:g} frames a second, and must have from 1 to 120"
        raise ValueError(f"{material.name}: {said}; say another rate with fps")
    tokens = max(len(_tokens(timeline, window, length.step)) for window in timeline.windows)
    if reads_image(system):
        _check_images(timeline, conditions, system)
    else:
        _check_known(timeline, conditions, system, bool(tokens))
    longest = VideoShape(timeline.longest, shape.height, shape.width)
    check_memory(system, replace(longest, frames=longest.frames + tokens * system.stride.time), available)
    return Plan(
        request.prompt,
        negative,
        seed,
        replace(shape, frames=timeline.frames),
        float(fps),
        sampling,
        request.model,
        timeline,
        prompts,
        conditions,
        material.hashes,
        request.seconds,
        length.pass_frames(int(conditions.loop)),
        request.prompt_at,
    )


def _check_known(timeline: Timeline, conditions: Conditions, system: LatentVideo, later: bool) -> None:
    """Refuse what the model was not trained to be told. later: whether frames behind a beginning are told."""
    by, knows = conditions.known_by or "hold", system.defaults.knows
    if later and by != "hold":
        raise ValueError(f"known_by={by}: keeps a beginning or a region; later frames need hold")
    if later and "keyframes" not in knows:
        said = next(name for name in ("last", "loop", "between", "before", "interpolate") if name in conditions.said())
        raise ValueError(f"{said}: tells a frame behind the beginning, which this model was not trained for")
    kept = timeline.hole is not None or any(window.prefix for window in timeline.windows)
    if kept and by == "hold" and "levels" not in knows:
        raise ValueError(
            "this model was not trained to keep what is given, nor where windows meet: known_by=guide or "
            "known_by=replace keeps it, less well"
        )


def _check_images(timeline: Timeline, conditions: Conditions, system: LatentVideo) -> None:
    """Refuse what a model that reads an image beside the noise cannot be told."""
    if others := [name for name in conditions.said() if name not in ("image", "last", "extend", "fit")]:
        said = "this model is told a first picture, and knows nothing else of a clip; use image"
        raise ValueError(f"{others[0]}: {said}")
    windows = timeline.windows
    last = None if conditions.last is None else timeline.known[timeline.end - 1]
    if not windows[0].prefix:
        raise ValueError("this model makes a clip of a picture: give one as image, or a clip to extend")
    if last is not None and (len(windows) > 1 or windows[0].stop != timeline.end):
        raise ValueError(f"last: this model takes it in one pass of 4k+1 frames; of {timeline.end} it cannot")
    first = timeline.known[windows[0].fresh - 1]
    check_images(system.denoiser.config, system.autoencoder, first, last, system.image_tower)


def _tokens(timeline: Timeline, window: Window, step: int) -> list[int]:
    """The keyframe tokens of a window, those that are to be made first counted as there."""

    def frame(index: int) -> bool | None:
        behind = timeline.loop or timeline.backward
        return True if index in timeline.known or (behind and index >= timeline.end) else None

    return keyframe_indices(window, frame, step)


def unknown_words(prompt: str, system: LatentVideo) -> str | None:
    """One line about the words that the model has never seen, with what it knows; None if it knows them all."""
    unknown = system.unknown_words(prompt)
    if not unknown:
        return None
    known = system.known_words()
    names = ", ".join(repr(word) for word in unknown)
    return f"this model has never seen {names} and may ignore them; it knows {_some(known)}"


def unusual_size(shape: VideoShape, system: LatentVideo) -> str | None:
    """One line about frames whose area is far from that of the model's own; None for all others."""
    own, area = system.defaults, shape.width * shape.height
    usual = own.width * own.height
    if usual / FAR <= area <= FAR * usual:
        return None
    far = f"more than {FAR:g} times" if area > usual else f"less than {1 / FAR:g} times"
    asked = f"{shape.width}x{shape.height} is {far} that, and may look bad"
    return f"this model's own frames are {own.width}x{own.height}; {asked}"


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
        raise ValueError(f"{name}={value!r}: must be {wanted} from {low} to {high}")


def _shape(request: Request, system: LatentVideo) -> VideoShape:
    defaults, stride, patch = system.defaults, system.stride, system.patch
    size = (defaults.width, defaults.height) if request.size is None else request.size
    if not isinstance(size, (tuple, list)) or len(size) != 2:
        raise ValueError(f"size={size!r}: expected (width, height) in pixels, such as (128, 96)")
    width, height = size
    frames = defaults.frames if request.frames is None else request.frames
    _check_number("frames", frames, 1, 10**6, whole=True)
    if not request.conditions.loop:  # whose last frame leads back to the first
        check_frames(frames, stride.time)
    for name, value, step in (("width", width, stride.space * patch[2]), ("height", height, stride.space * patch[1])):
        _check_number(name, value, 1, 10**6, whole=True)
        check_multiple(name, value, step)
    replace(VideoShape(frames, height, width), frames=1).latent(stride).tokens(patch)
    return VideoShape(frames, height, width)


def _sampling(request: Request, system: LatentVideo) -> Sampling:
    named = {name: getattr(request, name) for name in _SAMPLING if getattr(request, name) is not None}
    sampling = replace(system.defaults.sampling, **named)
    _check_number("steps", sampling.steps, 1, 1000, whole=True)
    _check_number("guidance", sampling.guidance, 0, 100)
    if sampling.low_guidance is not None:
        _check_number("low_guidance", sampling.low_guidance, 0, 100)
        if getattr(system, "low_denoiser", None) is None:  # systems of pixels have no such part
            raise ValueError(
                f"low_guidance={sampling.low_guidance:g}: is of the second of two experts, and this model has one "
                "network for all noise; use guidance"
            )
    _check_number("shift", sampling.shift, 0.01, 100)
    _check_number("rescale", sampling.rescale, 0, 1)
    choose("sampler", str(sampling.sampler), SAMPLERS)
    Guidance(sampling.guidance, sampling.interval, sampling.rescale)
    sampling.points()
    return sampling
