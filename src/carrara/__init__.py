"""Carrara: text to video. `load` a model, `generate` a `Clip`, save it.

Names are looked up when they are first used, so that importing the package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from carrara.generation.clip import Clip
    from carrara.generation.conditions import Conditions
    from carrara.generation.run import generate, load

__all__ = ["Clip", "Conditions", "__version__", "generate", "load"]

_HOMES = {
    "Clip": "carrara.generation.clip",
    "Conditions": "carrara.generation.conditions",
    "generate": "carrara.generation.run",
    "load": "carrara.generation.run",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("carrara")
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'carrara' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
