"""`carrara info`: what a model is, makes and knows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional

from carrara.core.options import option, parse

if TYPE_CHECKING:
    from carrara.systems.parts import ModelFolder


@dataclass(frozen=True)
class Info:
    """What a model is, makes and knows."""

    model: Positional[Annotated[str, option(metavar="MODEL")]] = "pond"
    """Bundled model, model folder of any layout, or a name on the hub."""


def info(args: list[str]) -> int:
    """`carrara info`."""
    options = parse(Info, args, "carrara info")
    from carrara.generation.loading import find_model, is_latent
    from carrara.generation.run import load

    folder = find_model(options.model)
    if is_latent(folder):
        from carrara.systems.folder import recognise

        found = recognise(folder)
        if found.foreign:
            return explain_foreign(options.model, found)
    system = load(options.model, device="cpu").system
    defaults, stride = system.defaults, system.stride
    parts = {"denoiser": system.denoiser, "autoencoder": system.autoencoder, "text encoder": system.text_encoder}
    millions = {name: sum(p.numel() for p in part.parameters()) / 1e6 for name, part in parts.items()}
    words = system.known_words()
    rows = {
        "model": options.model,
        "folder": folder,
        "weights": f"sha256 {system.fingerprint}",
        "parameters": ", ".join(f"{name} {count:.1f} M" for name, count in millions.items() if count),
        "clip": f"{defaults.frames} frames of {defaults.width}x{defaults.height} at {defaults.fps:g} fps",
        "sizes": f"multiples of {stride.space * system.patch[2]}x{stride.space * system.patch[1]}, "
        + (f"{stride.time}k+1 frames" if stride.time > 1 else "any number of frames"),
        "sampling": f"{defaults.sampler}, {defaults.steps} steps, guidance {defaults.guidance:g}, "
        f"shift {defaults.shift:g}",
        "prompt": f"at most {defaults.max_prompt_tokens} tokens",
        "words": f"{len(words)}: {', '.join(words[:200])}{' ...' if len(words) > 200 else ''}",
    }
    for name, value in rows.items():
        print(f"{name:<11} {value}")
    return 0


def explain_foreign(name: str, found: ModelFolder) -> int:
    """What a foreign folder is, holds and needs, without loading it; then, as an error, what keeps it from running."""
    from carrara.generation.memory import available_memory, peak_memory
    from carrara.systems.inspect import explain_folder

    explained = explain_folder(found, available_memory(), peak_memory)
    for label, value in (("model", name), ("folder", found.folder), *explained.rows):
        print(f"{label:<13} {value}")
    if explained.problems:
        raise ValueError(explained.problems[0])
    return 0
