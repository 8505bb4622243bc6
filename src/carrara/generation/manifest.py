"""The manifest: everything that is needed to make a clip again, as JSON inside its file.

No time stamps and no paths but those that the user gave, so that the same clip is the same bytes. What is not used is
not written: a clip made from a prompt alone says nothing of pictures.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from carrara.core.config import from_dict, to_dict
from carrara.core.media import read_video
from carrara.generation.conditions import Conditions
from carrara.systems.latent import Sampling
from carrara.systems.system import System

KEY = "carrara"  # under which files carry it
_OPTIONAL = ("conditions", "inputs", "seconds", "window", "prompt_at", "loras")


@dataclass(frozen=True)
class Software:
    """What computed the clip. Other versions, threads or processors may differ in the last bits.

    dtype: of the weights, or what they compute in; precision: what was asked for, "" for the model's own.
    """

    carrara: str
    torch: str
    python: str
    machine: str
    capability: str
    device: str
    dtype: str
    threads: int
    compiled: bool = False
    precision: str = ""

    @classmethod
    def here(cls, system: System) -> Software:
        weight = next(system.denoiser.parameters())
        return cls(
            carrara=version("carrara"),
            torch=torch.__version__,
            python=platform.python_version(),
            machine=platform.machine(),
            capability=torch.backends.cpu.get_cpu_capability(),
            device=str(weight.device),
            dtype=system.precision or str(weight.dtype).removeprefix("torch."),
            threads=torch.get_num_threads(),
            compiled=getattr(system.denoiser, "compiled", False),
            precision=system.precision,
        )


@dataclass(frozen=True)
class Manifest:
    """Prompt, seed, model and its weights' SHA-256, every setting, and the software.

    conditions: what else the clip was made from, as `Conditions.recorded`; inputs: (name, SHA-256) of what was read;
    seconds, window, prompt_at: its length where it was not one pass, and its later prompts; loras: (path, weight,
    SHA-256) of the adapters on the model.
    """

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
    conditions: dict[str, Any] = field(default_factory=dict)
    inputs: tuple[tuple[str, str], ...] = ()
    seconds: float | None = None
    window: int | None = None
    prompt_at: tuple[tuple[float, str], ...] = ()
    loras: tuple[tuple[str, float, str], ...] = ()

    def to_json(self) -> str:
        values = to_dict(self)
        unused = [name for name in _OPTIONAL if not values[name]]
        for name in ("compiled", "precision"):
            if not values["software"][name]:
                del values["software"][name]
        return json.dumps({name: value for name, value in values.items() if name not in unused}, ensure_ascii=False)

    def asked(self, where: str = "manifest") -> Conditions:
        """What was asked for beside the prompt."""
        return Conditions.from_recorded(self.conditions, where)

    @classmethod
    def from_json(cls, text: str, where: str) -> Manifest:
        """The inverse. Raises ValueError that names the file and what is wrong."""
        try:
            values = json.loads(text)
        except ValueError as error:
            raise ValueError(f"{where}: its manifest is damaged ({error})") from None
        if not isinstance(values, dict):
            raise ValueError(f"{where}: its manifest is damaged (not a JSON object)")
        if not isinstance(values.get("conditions", {}), dict):
            raise ValueError(f"{where}: manifest: conditions={values['conditions']!r}: expected an object")
        manifest = from_dict(cls, values, f"{where}: manifest")
        manifest.asked(f"{where}: manifest").check()
        return manifest

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
