"""Adapters on a model that generates: read before it is loaded, put on it, named so that a clip can be made again."""

from __future__ import annotations

from collections.abc import Sequence

from carrara.systems.latent import LatentVideo
from carrara.systems.lora import Asked, apply
from carrara.systems.lora_files import Adapter, read_adapter
from carrara.systems.system import System

Loras = tuple[tuple[str, float, str], ...]
"""(path, weight, SHA-256) of each."""


def read_loras(wanted: Sequence[str]) -> list[tuple[Asked, Adapter]]:
    """Adapters by FOLDER or FOLDER:WEIGHT. Raises ValueError for what is missing, damaged or of another kind."""
    return [(asked, read_adapter(asked.path)) for asked in map(Asked.parse, wanted)]


def put_on(system: System, adapters: Sequence[tuple[Asked, Adapter]]) -> Loras:
    """Put them on, in order. Raises ValueError for an adapter that does not fit, and for a model that takes none."""
    if adapters and not isinstance(system, LatentVideo):
        raise ValueError(f"{adapters[0][0].path}: models of this kind take no adapters; leave out --lora")
    for asked, adapter in adapters:
        assert isinstance(system, LatentVideo)
        apply(system, adapter, asked.strength)
    return tuple((asked.path, float(asked.strength), adapter.fingerprint) for asked, adapter in adapters)


def other_base(system: System, wanted: Sequence[str]) -> str | None:
    """One line about the first adapter that says it was trained on other weights; None if none does."""
    for asked, adapter in read_loras(wanted):
        if adapter.base and adapter.base != system.fingerprint:
            name = adapter.about.get("base", {}).get("name", "another model")
            return f"{asked.path} was trained on other weights ({name}, {adapter.base[:12]}) and may show little of it"
    return None
