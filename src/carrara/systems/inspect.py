"""What a foreign folder is, what is in it and what is missing, told without loading it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from carrara.core.types import VideoShape
from carrara.systems.kinds import ModelKind
from carrara.systems.latent import LatentVideo
from carrara.systems.parts import INCOMPLETE, ModelFolder
from carrara.text.tokenizer import Tokenizer

_MAKES = {
    "t2v": "makes clips of text",
    "i2v": "makes clips of text and a first frame",
    "flf2v": "makes clips of text, a first and a last frame",
    "ti2v": "makes clips of text, and of a first frame where one is given",
}


@dataclass(frozen=True)
class Explanation:
    """Rows of (what, how it is), and what keeps the folder from running, in the order in which loading meets it."""

    rows: tuple[tuple[str, str], ...]
    problems: tuple[str, ...]


def explain_folder(
    found: ModelFolder, free: int, estimate: Callable[[LatentVideo, VideoShape], int], fits: float = 0.9
) -> Explanation:
    """Explain a recognised folder to someone with `free` bytes of memory, of which the share `fits` may be used.

    estimate: bytes that a clip takes beside the weights; asked of a system whose networks have no storage.
    """
    rows = [("is", f"{found.kind} in the {found.layout} layout; {_MAKES[found.kind.task]}{_how(found.kind)}")]
    problems: list[str] = []
    whole = 0
    for part, network in found.networks.items():
        try:
            stored, kept = network.stored(), network.kept(found.dtype(part, None))
            types = ", ".join(sorted(str(kind).removeprefix("torch.") for kind in stored.types))
            files = len(network.files())
            rows.append(
                (
                    part,
                    f"{_count(stored.parameters)}, {_size(stored.bytes)} of {types} in {files} file{'s' * (files > 1)}",
                )
            )
            whole += kept
            network.check()
        except ValueError as error:
            problems.append(str(error))
            rows.append((part, f"NOT USABLE: {error}"))
    try:
        if not found.tokenizer.is_dir():
            raise ValueError(f"{found.folder}: no {found.tokenizer.relative_to(found.folder)}/ in it; {INCOMPLETE}")
        rows.append(("tokenizer", f"{Tokenizer.load(found.tokenizer).vocab_size} tokens"))
    except ValueError as error:
        problems.append(str(error))
        rows.append(("tokenizer", f"NOT USABLE: {error}"))
    rows += _defaults(found)
    if not problems:
        try:
            found.check()  # each fits its configuration: do they fit each other?
        except ValueError as error:
            problems.append(str(error))
    if problems:
        rows.append(("runs", f"no: {problems[0]}"))
        return Explanation(tuple(rows), tuple(problems))
    system, defaults = _empty(found), found.defaults
    rows.append(("sizes", _sizes(system)))
    clip = estimate(system, VideoShape(defaults.frames, defaults.height, defaults.width))
    copied = found.converted()
    rows.append(
        (
            "memory",
            f"weights {_size(whole)} ({_size(copied)} converted, the rest mapped from the files), "
            f"the clip above {_size(clip)} more; {_size(free)} are free",
        )
    )
    if copied > fits * free:
        rows.append(("runs", "not here: its weights alone do not fit into memory"))
    elif copied + clip > fits * free:
        rows.append(("runs", "not here at this size: give a smaller --size or fewer --frames, or more memory"))
    elif whole + clip > fits * free:
        rows.append(("runs", "slowly: the mapped weights do not all fit, and are read from the disk at every step"))
    else:
        rows.append(("runs", "yes"))
    return Explanation(tuple(rows), ())


def _how(kind: ModelKind) -> str:
    words = []
    if kind.experts == 2:
        words.append(f"two experts, the high-noise one from level {kind.boundary:g} on")
    if kind.image_tower:
        words.append("the first frame is also seen through CLIP")
    if kind.expand_timesteps:
        words.append("a noise level for every token")
    return "".join(f"; {word}" for word in words)


def _defaults(found: ModelFolder) -> list[tuple[str, str]]:
    defaults, sampling = found.defaults, found.defaults.sampling
    low = "" if sampling.low_guidance is None else f" and {sampling.low_guidance:g}"
    return [
        ("clip", f"{defaults.frames} frames of {defaults.width}x{defaults.height} at {defaults.fps:g} fps"),
        (
            "sampling",
            f"{sampling.sampler} on the grid {sampling.grid}, {sampling.steps} steps, guidance "
            f"{sampling.guidance:g}{low}, shift {sampling.shift:g}",
        ),
    ]


def _empty(found: ModelFolder) -> LatentVideo:
    """The system with networks that have sizes and no storage."""
    networks: dict[str, Any] = {part: network.empty()[0] for part, network in found.networks.items()}
    return LatentVideo(
        networks["vae"],
        networks["transformer"],
        networks["text_encoder"],
        Tokenizer.load(found.tokenizer),
        found.defaults,
        low_denoiser=networks.get("transformer_2"),
        boundary=found.kind.boundary or 0.0,
        image_tower=networks.get("image_encoder"),
        refiner=networks.get("refiner"),
    )


def _sizes(system: LatentVideo) -> str:
    stride, patch = system.stride, system.patch
    return f"multiples of {stride.space * patch[2]}x{stride.space * patch[1]}, {stride.time}k+1 frames"


def _count(parameters: int) -> str:
    return f"{parameters / 1e9:.2f} B parameters" if parameters >= 1e9 else f"{parameters / 1e6:.1f} M parameters"


def _size(count: float) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"
