"""Which folder a model's name means: that of a bundled model, a path, or a model of the hub."""

from __future__ import annotations

import os
from pathlib import Path

from carrara.core.config import nearest
from carrara.systems.hub import fetch, is_hub_name

_BUNDLED = Path(__file__).parent.parent / "models"


def find_model(model: str | Path) -> Path:
    """The folder of a model, by the name of a bundled one, by path, or by its name on the hub, whence it is fetched."""
    name = str(model)
    bundled = {path.name: path for path in _BUNDLED.glob("*") if (path / "model_index.json").is_file()}
    if not name:
        raise ValueError("the model's name is empty; give a bundled model or the path of a model folder")
    if name in bundled:
        return bundled[name]
    if Path(model).is_dir():
        return Path(model)
    if isinstance(model, str) and is_hub_name(name):
        return fetch(name)
    if os.sep in name:
        raise ValueError(f"{model}: no such model folder")
    known = nearest(name, bundled) if bundled else "none is bundled with this installation"
    raise ValueError(
        f"unknown model {name!r}; {known}; or give the path of a model folder, or a name on the hub such as "
        "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"
    )
