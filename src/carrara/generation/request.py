"""What the user asks for, and the checked plan that it becomes before anything is computed."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field, replace

import numpy as np

from carrara.core.types import VideoShape
from carrara.generation.asked import (
    SAMPLING,
    check_images_told,
    check_known,
    check_number,
    check_pixels,
    check_prompt,
    check_strides,
    sampling_asked,
    shape_asked,
)
from carrara.generation.conditions import Conditions
from carrara.generation.manifest import Manifest
from carrara.generation.material import gather
from carrara.generation.memory import check_memory
from carrara.generation.modes import Length, lay_out
from carrara.generation.passes import keyframe_indices, reads_image
from carrara.generation.timeline import Timeline, Window
from carrara.systems.latent import LatentVideo, Sampling
from carrara.systems.pixel_system import PixelSystem

MAX_SEED = 2**63 - 1


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
            **{name: getattr(manifest.sampling, name) for name in SAMPLING},
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
    check_prompt("prompt", request.prompt, system)
    if not request.prompt.strip() and not conditions.pictured:
        raise ValueError('the prompt is empty; describe a scene, for example "a red ball bounces on the grass"')
    pairs = request.prompt_at if isinstance(request.prompt_at, (tuple, list)) else [None]
    if not all(isinstance(pair, (tuple, list)) and len(pair) == 2 for pair in pairs):
        raise ValueError(
            f"prompt_at={request.prompt_at!r}: expected pairs of seconds and a prompt, ((2.0, prompt), ...)"
        )
    for _, prompt in request.prompt_at:
        check_prompt("prompt of prompt_at", prompt, system)
        if not prompt.strip():
            raise ValueError("the prompt of prompt_at is empty; say what to show from then on")
    negative = defaults.negative if request.negative is None else request.negative
    check_prompt("negative prompt", negative, system)
    seed = secrets.randbelow(2**32) if request.seed is None else request.seed
    check_number("seed", seed, 0, MAX_SEED, whole=True)
    if request.fps is not None:
        check_number("fps", request.fps, 1, 120)
    shape = shape_asked(request, system)
    sampling = sampling_asked(request, system)
    check_strides(request, system)
    read = not (isinstance(system, PixelSystem) and system.READS_FRAMES and conditions.pictured)
    if read and not request.prompt and not negative and not request.prompt_at and request.guidance is None:
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
    if conditions.known_by is not None and not timeline.pictured and len(timeline.windows) == 1:
        raise ValueError(
            f"known_by={conditions.known_by}: says how what is given is kept, and nothing is; leave it out"
        )
    tokens = max(len(_tokens(timeline, window, length.step)) for window in timeline.windows)
    if reads_image(system):
        check_images_told(timeline, conditions, system)
    elif isinstance(system, PixelSystem):
        check_pixels(request, timeline, conditions, system, bool(tokens))
    else:
        check_known(timeline, conditions, system, bool(tokens))
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


def _tokens(timeline: Timeline, window: Window, step: int) -> list[int]:
    """The keyframe tokens of a window, those that are to be made first counted as there."""

    def frame(index: int) -> bool | None:
        behind = timeline.loop or timeline.backward
        return True if index in timeline.known or (behind and index >= timeline.end) else None

    return keyframe_indices(window, frame, step)
