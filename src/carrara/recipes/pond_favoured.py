"""Clips of the pond that are drawn more often than others: those that show what is hard to learn."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from carrara.core.config import at_least, choose
from carrara.data.latents import LatentCache
from carrara.data.pond.world import ACTORS, BACKGROUNDS, CAMERAS, COLOURS, MOTIONS, RELATIONS, SIZES, WALLS

NAMES = (*ACTORS, *MOTIONS, *SIZES, *COLOURS, *CAMERAS, *BACKGROUNDS, *RELATIONS, *WALLS)


@dataclass(frozen=True)
class Favoured:
    """Clips that are drawn `times` as often as others: those of scenes with any of `attributes`, a scene's words for
    what is in it (a kind of actor, a motion, a colour, a size, a camera, a background, a relation, a wall)."""

    attributes: tuple[str, ...] = ()
    times: int = 2

    def __post_init__(self) -> None:
        for name in self.attributes:
            choose("favoured attribute", name, dict.fromkeys(NAMES))
        at_least(self, 1, "times")

    def places(self, cache: LatentCache) -> Tensor:
        """The cache's clips `(n,)`, the favoured ones as often as they are drawn."""
        if not self.attributes:
            return torch.arange(len(cache))
        often = torch.tensor([self.shown(record["scene"]) for record in cache.records(slice(None))])
        return torch.arange(len(cache)).repeat_interleave(torch.where(often, self.times, 1))

    def shown(self, scene: Mapping[str, Any]) -> bool:
        """Whether a scene, as its record says it, has one of the attributes."""
        said = {scene[key] for key in ("background", "camera", "relation", "wall")}
        for actor in scene["actors"]:
            said |= {actor[key] for key in ("kind", "motion", "colour", "size")}
        return not said.isdisjoint(self.attributes)


EVERY_CLIP = Favoured()
