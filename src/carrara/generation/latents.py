"""Latents on disk: every window's are saved before they are decoded, so that nothing that was drawn is ever lost.

A clip of several windows has one file for each, `x.mp4.latents.safetensors`, `x.mp4.latents-2.safetensors`, ...: each
appears whole, and memory does not grow with the clip. Whoever goes on from them names the first.
"""

from __future__ import annotations

import os
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from carrara.generation.manifest import Manifest, find_manifest, read_manifest

LATENTS = ".latents.safetensors"


def window_file(first: Path, number: int) -> Path:
    """Where the latents of window `number` (from 0) are, when those of the first are in `first`."""
    if not number:
        return first
    return first.with_name(f"{first.name.removesuffix('.safetensors')}-{number + 1}.safetensors")


def windows_there(first: Path) -> list[Path]:
    """The files of windows beside and behind the first, as many as follow each other."""
    found: list[Path] = []
    while (path := window_file(first, len(found))).is_file():
        found.append(path)
    return found


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


def read_source(path: Path) -> tuple[Path | None, Manifest]:
    """The manifest of a clip's file or of saved latents, and the file where it is those."""
    if path.suffix == ".safetensors":
        return path, read_latents(path)[1]
    return None, read_manifest(path)
