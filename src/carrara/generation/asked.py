"""What may be asked of a model: texts, numbers, sizes, sampling, and what it can be told of pictures and clips.

Every check raises ValueError: one line with the value, what was expected and the remedy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from math import isfinite
from typing import TYPE_CHECKING, Any

from carrara.core.config import choose
from carrara.core.types import VideoShape, check_frames, check_multiple
from carrara.diffusion.guidance import Guidance
from carrara.diffusion.samplers import SAMPLERS
from carrara.generation.conditions import Conditions
from carrara.generation.timeline import Timeline
from carrara.systems.latent import LatentVideo, Sampling
from carrara.systems.pixel_system import PixelSystem
from carrara.systems.wan_image import check_images

if TYPE_CHECKING:
    from carrara.generation.request import Plan, Request

FAR = 2.5
"""Times the usual area, or one over it. Released models are made for 832 x 480 and for 1280 x 720, 2.3 times that."""
SAMPLING = tuple(field.name for field in fields(Sampling))


def check_known(timeline: Timeline, conditions: Conditions, system: LatentVideo, later: bool) -> None:
    """Refuse what the model was not trained to be told. later: whether frames behind a beginning are told."""
    by, knows = conditions.known_by or "hold", system.defaults.knows
    if later and by != "hold":
        raise ValueError(f"known_by={by}: keeps a beginning or a region; later frames need hold")
    if later and "keyframes" not in knows:
        said = next(name for name in ("last", "loop", "between", "before", "interpolate") if name in conditions.said())
        raise ValueError(f"{said}: tells a frame behind the beginning, which this model was not trained for")
    if timeline.kept and by == "hold" and "levels" not in knows:
        raise ValueError(
            "this model was not trained to keep what is given, nor where windows meet: known_by=guide or "
            "known_by=replace keeps it, less well"
        )


def check_images_told(timeline: Timeline, conditions: Conditions, system: LatentVideo) -> None:
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


def check_pixels(
    request: Request, timeline: Timeline, conditions: Conditions, system: PixelSystem, later: bool
) -> None:
    """Refuse what a system of pixels cannot be told, before its first window is made. later: whether frames behind a
    beginning are told."""
    by = conditions.known_by
    if later or timeline.strength < 1:
        said = next(name for name in conditions.said() if name not in ("image", "fit", "known_by", "guide_weight"))
        raise ValueError(f"{said}: this model is told text, and what a clip begins with; nothing else of a clip")
    if by is not None and by not in system.KEEPS_BY:
        ways = f"expected one of {', '.join(system.KEEPS_BY)}" if system.KEEPS_BY else "this model has a way of its own"
        raise ValueError(f"known_by={by}: {ways}; leave it out")
    if system.READS_FRAMES and timeline.kept:
        for name in ("prompt_at", "negative"):
            if getattr(request, name):
                raise ValueError(
                    f"{name}: where frames are given, or a clip goes on, this model reads no text; leave it out"
                )
    if timeline.kept:
        for window in timeline.windows:
            system.check_keeps(window.frames, timeline.hole is None)


def check_strides(request: Request, system: LatentVideo) -> None:
    """Refuse other ways to sample, and other beginnings, of a model that has learned the strides of one path alone."""
    own, conditions = system.defaults.sampling, request.conditions
    if not system.defaults.strides:
        return
    learned = f"this model has learned to go from noise to a clip in {own.steps} strides, guidance included"
    for name in SAMPLING:
        value = getattr(request, name)
        if value is not None and value != getattr(own, name) and name != "reuse":  # which changes no stride
            raise ValueError(f"{name}={value!r}: {learned}; leave {name} out")
    if request.negative:
        raise ValueError(f"negative={request.negative!r}: {learned}; leave negative out")
    if "edit" in conditions.said() or conditions.strength not in (None, 1):
        raise ValueError(f"edit: {learned}, and would begin between them; use the model that taught it")
    if "inpaint" in conditions.said() and (conditions.known_by or "hold") == "hold":
        raise ValueError(f"inpaint: {learned}, and not to be told of a region; known_by=replace keeps it, less well")


def unknown_words(prompt: str, system: LatentVideo) -> str | None:
    """One line about the words that the model has never seen, with what it knows; None if it knows them all."""
    unknown = system.unknown_words(prompt)
    if not unknown:
        return None
    known = system.known_words()
    names = ", ".join(repr(word) for word in unknown)
    return f"this model has never seen {names} and may ignore them; it knows {_some(known)}"


def unread_prompt(plan: Plan, system: LatentVideo) -> str | None:
    """One line where a prompt is given that is not read, because frames are; None otherwise."""
    reads_frames = isinstance(system, PixelSystem) and system.READS_FRAMES and bool(plan.timeline.windows[0].prefix)
    return "this model reads the frames that are given, and not the prompt" if reads_frames and plan.prompt else None


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


def check_prompt(name: str, text: Any, system: LatentVideo) -> None:
    if not isinstance(text, str):
        raise ValueError(f"{name}={text!r}: must be a text")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"the {name} {text!a} holds bytes that are no text; write it in UTF-8") from None
    count, most = system.count_tokens(text), system.defaults.max_prompt_tokens
    if count > most:
        raise ValueError(f"the {name} has {count} tokens; this model reads at most {most}: shorten it")


def check_number(name: str, value: Any, low: float, high: float, whole: bool = False) -> None:
    kind = int if whole else (int, float)
    if isinstance(value, bool) or not isinstance(value, kind) or not isfinite(value) or not low <= value <= high:
        wanted = "a whole number" if whole else "a number"
        raise ValueError(f"{name}={value!r}: must be {wanted} from {low} to {high}")


def shape_asked(request: Request, system: LatentVideo) -> VideoShape:
    defaults, stride, patch = system.defaults, system.stride, system.patch
    size = (defaults.width, defaults.height) if request.size is None else request.size
    if not isinstance(size, (tuple, list)) or len(size) != 2:
        raise ValueError(f"size={size!r}: expected (width, height) in pixels, such as (128, 96)")
    width, height = size
    frames = defaults.frames if request.frames is None else request.frames
    check_number("frames", frames, 1, 10**6, whole=True)
    if not request.conditions.loop:  # whose last frame leads back to the first
        check_frames(frames, stride.time)
    for name, value, step in (("width", width, stride.space * patch[2]), ("height", height, stride.space * patch[1])):
        check_number(name, value, 1, 10**6, whole=True)
        check_multiple(name, value, step)
    replace(VideoShape(frames, height, width), frames=1).latent(stride).tokens(patch)
    return VideoShape(frames, height, width)


def sampling_asked(request: Request, system: LatentVideo) -> Sampling:
    named = {name: getattr(request, name) for name in SAMPLING if getattr(request, name) is not None}
    sampling = replace(system.defaults.sampling, **named)
    check_number("steps", sampling.steps, 1, 1000, whole=True)
    check_number("guidance", sampling.guidance, 0, 100)
    if sampling.low_guidance is not None:
        check_number("low_guidance", sampling.low_guidance, 0, 100)
        if getattr(system, "low_denoiser", None) is None:  # systems of pixels have no such part
            raise ValueError(
                f"low_guidance={sampling.low_guidance:g}: is of the second of two experts, and this model has one "
                "network for all noise; use guidance"
            )
    check_number("shift", sampling.shift, 0.01, 100)
    check_number("rescale", sampling.rescale, 0, 1)
    choose("sampler", str(sampling.sampler), SAMPLERS)
    Guidance(sampling.guidance, sampling.interval, sampling.rescale)
    if isinstance(system, PixelSystem):
        system.check_sampling(sampling)
    sampling.points()
    return sampling
