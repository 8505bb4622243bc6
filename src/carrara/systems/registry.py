"""Which system a model folder holds: the `_class_name` in its `model_index.json`, and who reads it.

A new system is a file, a recipe and a line here.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from carrara.core.config import read_json
from carrara.core.precision import dtype_of
from carrara.systems.system import System


def _vdm(folder: Path) -> System:
    from carrara.systems.vdm import VDM

    return VDM.load(folder)


def _make_a_video(folder: Path) -> System:
    from carrara.systems.make_a_video import MakeAVideo

    return MakeAVideo.load(folder)


READERS: dict[str, Callable[[Path], System]] = {"CarraraVDM": _vdm, "CarraraMakeAVideo": _make_a_video}
"""By class name; every other folder is for `LatentVideo`, which says what it cannot run."""


def load_system(folder: Path, offload: bool = False, device: str = "cpu", precision: str = "") -> Any:
    """The `System` of a model folder, on a device; offload: see `LatentVideo.load`, others have no such way.

    precision: what its networks compute in, as `core.precision` names it.
    Raises ValueError, one line, for one that is foreign or damaged, and for another precision.
    """
    dtype = dtype_of(precision)
    folder = Path(folder)
    index = folder / "model_index.json"
    name = read_json(index).get("_class_name") if index.is_file() else None
    if isinstance(name, str) and name in READERS:
        if offload:
            raise ValueError(f"{folder}: models of this kind are not offloaded; leave out --offload")
        made = READERS[name](folder).to(device)
        made.precision = precision
        return made
    from carrara.systems.folder import assemble, recognise

    found = recognise(folder)
    system = assemble(found, dtype, staged=found.foreign, offload=offload, device=device)
    system.precision = precision
    return system
