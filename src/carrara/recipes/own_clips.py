"""Clips of a finished model, each drawn from a scene of the pond that it saw through noise, so that what it should have
been is known: what its refiner learns from beside simulated melting.

    shard-00000.safetensors     made uint8 `n t h w 3`; in its metadata what made them and, of each, scene and caption
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from carrara.core.config import at_least, from_dict, to_dict
from carrara.core.files import replace_file
from carrara.core.types import VideoShape
from carrara.data.pond.render import render
from carrara.data.pond.sampling import Mix, sample_scene
from carrara.data.pond.world import Scene
from carrara.recipes.pond_data import Captioning
from carrara.systems.latent import LatentVideo, Start
from carrara.systems.phases import to_bytes, to_unit

SHARD, BATCH = 256, 8


@dataclass(frozen=True)
class OwnClips:
    """Clips of the model itself beside simulated ones.

    clips: how many are made before the training begins, in shards of 256, 0 for none; share: of the steps that are on
    them; mix: which scenes; levels: noise levels at which the scenes are shown to the model, and `weights`, how often
    each: at low ones it keeps what there is and melts it, at high ones it draws other things.
    """

    clips: int = 0
    share: float = 0.5
    mix: Mix = field(default_factory=lambda: Mix(two=0.35, camera=0.2))
    levels: tuple[float, ...] = (0.571, 0.706, 0.8, 0.87, 0.923)
    weights: tuple[float, ...] = (0.15, 0.28, 0.3, 0.2, 0.07)

    def __post_init__(self) -> None:
        at_least(self, 0, "clips")
        if not 0 <= self.share <= 1:
            raise ValueError(f"share={self.share}: a share lies between 0 and 1")
        if not self.levels or len(self.levels) != len(self.weights):
            raise ValueError(f"{len(self.levels)} levels and {len(self.weights)} weights: give one weight for each")
        if not all(0 < level < 1 for level in self.levels):
            raise ValueError(f"levels={self.levels}: a noise level lies between 0, the truth, and 1, noise alone")
        if min(self.weights) < 0 or not sum(self.weights):
            raise ValueError(f"weights={self.weights}: expected numbers of at least 0, one of them above it")


class OwnShards:
    """Made clips, read in any order."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._made: list[Tensor] = []
        self._records: list[dict[str, Any]] = []
        for path in paths:
            with safe_open(path, framework="pt") as file:  # mapped: read where it is used
                self._made.append(file.get_tensor("made"))
                self._records += json.loads(file.metadata()["rows"])

    def __len__(self) -> int:
        return len(self._records)

    def __call__(self, rows: Sequence[int]) -> tuple[Tensor, list[Scene], list[str]]:
        """These clips, uint8 `b t h w 3`, what they should have shown, and their captions."""
        made = torch.stack([self._made[row // SHARD][row % SHARD] for row in rows])
        return made, self.scenes(rows), [self._records[row]["caption"] for row in rows]

    def scenes(self, rows: Sequence[int]) -> list[Scene]:
        """What these clips should have shown."""
        return [from_dict(Scene, self._records[row]["scene"], "scene") for row in rows]


def make_own(
    folder: Path,
    own: OwnClips,
    captioning: Captioning,
    first: int,
    count: int,
    fingerprint: str,
    model: Callable[[], LatentVideo],
) -> OwnShards:
    """Fill a folder with `count` clips, of the scenes from `first` on, or finish one that was begun.

    fingerprint: of the model; model: it, asked for where a shard is missing, and not otherwise. Raises ValueError for
    shards of another model or of other settings.
    """
    settings = {name: value for name, value in to_dict(own).items() if name not in ("clips", "share")}
    about = {"model": fingerprint, "first": first, "captioning": to_dict(captioning), **settings}
    paths = []
    for at in range(0, count, SHARD):
        path, rows = folder / f"shard-{at // SHARD:05d}.safetensors", min(SHARD, count - at)
        if _rows(path, about) < rows:
            folder.mkdir(parents=True, exist_ok=True)
            made, records = _draw(model(), own, captioning, range(first + at, first + at + rows))
            metadata = {"about": json.dumps(about), "rows": json.dumps(records, ensure_ascii=False)}
            replace_file(path, partial(save_file, {"made": made}, metadata=metadata))
            print(f"{folder.name}: {at + rows} of {count} clips made", flush=True)
        paths.append(path)
    return OwnShards(paths)


def _rows(path: Path, about: dict[str, Any]) -> int:
    """How many clips a shard holds, 0 where there is none."""
    if not path.is_file():
        return 0
    try:
        with safe_open(path, framework="pt") as file:
            found, rows = json.loads((file.metadata() or {}).get("about", "{}")), file.get_slice("made").get_shape()[0]
    except SafetensorError as error:
        raise ValueError(f"{path}: damaged ({error}); delete it and run again") from None
    if found.get("model") != about["model"]:
        raise ValueError(f"{path}: made by another model; take a new folder, or delete this one")
    if different := [name for name in about if found.get(name) != about[name]]:
        raise ValueError(f"{path}: made with other {', '.join(different)}; take a new folder, or delete this one")
    return int(rows)


@torch.inference_mode()
def _draw(
    system: LatentVideo, own: OwnClips, captioning: Captioning, numbers: range
) -> tuple[Tensor, list[dict[str, Any]]]:
    """Clips of these scenes, and of each the record."""
    defaults, told = system.defaults, (captioning.short, captioning.medium, captioning.dense)
    shape = VideoShape(defaults.frames, defaults.height, defaults.width)
    made, records = [], []
    for at in range(0, len(numbers), BATCH):
        these = numbers[at : at + BATCH]
        rng = random.Random(these.start)
        scenes = [sample_scene(number, own.mix) for number in these]
        captions = [
            captioning.say(scene, False, rng.choices(range(3), told)[0], rng.random(), captioning.synonyms_from, number)
            for scene, number in zip(scenes, these)
        ]
        level = rng.choices(own.levels, own.weights)[0]
        shown = to_unit(render(scenes, shape, defaults.fps, system.device).video).to(
            next(system.autoencoder.parameters()).dtype
        )
        start = Start(system.autoencoder.encode(shown), level)
        drawn = system.sample(captions, list(these), shape, defaults.sampling, start=start)
        made.append(to_bytes(system.autoencoder.decode(drawn)).cpu())
        records += [{"scene": to_dict(scene), "caption": caption} for scene, caption in zip(scenes, captions)]
    return torch.cat(made).contiguous(), records
