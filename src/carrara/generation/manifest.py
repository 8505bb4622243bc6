"""The manifest: everything that is needed to make a clip again, as JSON inside its file.

No time stamps and no paths of the machine, so that the same clip is the same bytes.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch

from carrara.core.config import from_dict, to_dict
from carrara.core.media import read_video
from carrara.systems.latent import LatentVideo, Sampling

KEY = "carrara"  # under which files carry it


@dataclass(frozen=True)
class Software:
    """What computed the clip. Other versions, threads or processors may differ in the last bits."""

    carrara: str
    torch: str
    python: str
    machine: str
    capability: str
    device: str
    dtype: str
    threads: int

    @classmethod
    def here(cls, system: LatentVideo) -> Software:
        weight = next(system.denoiser.parameters())
        return cls(
            carrara=version("carrara"),
            torch=torch.__version__,
            python=platform.python_version(),
            machine=platform.machine(),
            capability=torch.backends.cpu.get_cpu_capability(),
            device=str(weight.device),
            dtype=str(weight.dtype).removeprefix("torch."),
            threads=torch.get_num_threads(),
        )


@dataclass(frozen=True)
class Manifest:
    """Prompt, seed, model and its weights' SHA-256, every setting, and the software."""

    prompt: str
    negative: str
    seed: int
    model: str
    fingerprint: str
    frames: int
    width: int
    height: int
    fps: float
    sampling: Sampling
    software: Software

    def to_json(self) -> str:
        return json.dumps(to_dict(self), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str, where: str) -> Manifest:
        """The inverse. Raises ValueError that names the file and what is wrong."""
        try:
            values = json.loads(text)
        except ValueError as error:
            raise ValueError(f"{where}: its manifest is damaged ({error})") from None
        if not isinstance(values, dict):
            raise ValueError(f"{where}: its manifest is damaged (not a JSON object)")
        return from_dict(cls, values, f"{where}: manifest")

    def metadata(self) -> dict[str, str]:
        """As the mapping that media files carry."""
        return {KEY: self.to_json()}

    def differences(self, here: Software) -> list[str]:
        """What is not as it was when the clip was made. Threads do not count: they can be set."""
        then, now = to_dict(self.software), to_dict(here)
        names = [name for name in then if name != "threads" and then[name] != now[name]]
        return [f"{name} {then[name]} then, {now[name]} here" for name in names]


def read_manifest(path: Path) -> Manifest:
    """The manifest of a clip's file, .mp4, .gif, .webp or .png. Raises ValueError where there is none."""
    return find_manifest(read_video(path)[2], str(path))


def find_manifest(metadata: Mapping[str, str], where: str) -> Manifest:
    """The manifest among a file's metadata. Raises ValueError where there is none."""
    if KEY not in metadata:
        raise ValueError(f"{where}: carries no manifest, so it was not made by carrara, or was converted since")
    return Manifest.from_json(metadata[KEY], where)
