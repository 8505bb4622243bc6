"""Adapters on a latent model: which of its layers, under any of their names; put on and taken off.

A layer has three names: ours, diffusers' and Wan's own (`denoisers/dit_weights.py`); patterns and files may use any.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import torch
from torch import Generator, nn

from carrara.core.config import nearest
from carrara.denoisers.dit import DiT, DiTConfig
from carrara.denoisers.dit_weights import DIFFUSERS, WAN
from carrara.nn import lora
from carrara.nn.lora import LowRank
from carrara.systems.latent import LatentVideo
from carrara.systems.lora_files import FIRST, SECOND, Adapter, Pair
from carrara.systems.offload import OffloadedBlocks

TARGETS = ("self_attention.*", "cross_attention.*", "mlp.*")
"""Every matrix of the blocks."""
Terms = Mapping[str, Mapping[str, LowRank]]
"""By part of the model ("transformer", of two experts also "transformer_2") and by our name of the layer."""


@dataclass(frozen=True)
class Asked:
    """An adapter as it is asked for: a path, and how strongly it counts."""

    path: str
    strength: float = 1.0

    def __post_init__(self) -> None:
        if not math.isfinite(self.strength):
            raise ValueError(f"{self.path}: weight {self.strength}: expected a number; 1 is as it was trained")

    @classmethod
    def parse(cls, text: str) -> Asked:
        """FOLDER or FOLDER:WEIGHT."""
        path, colon, weight = text.rpartition(":")
        if colon and not Path(text).exists():
            try:
                return cls(path, float(weight))
            except ValueError:
                if not re.search(r"[\\/]", weight):  # what follows the colon is no path
                    raise ValueError(
                        f"{text}: {weight!r} is no weight; expected FOLDER:NUMBER, such as FOLDER:0.8"
                    ) from None
        return cls(text)


def layers_of(config: DiTConfig) -> dict[str, nn.Linear]:
    """The linear layers of such a transformer by our names, without storage."""
    with torch.device("meta"):
        return lora.linear_layers(DiT(config))


def spellings(names: Sequence[str]) -> dict[str, str]:
    """Every name of these layers -> ours; names with underscores for dots too."""
    known = {}
    for ours in names:
        for name in (WAN.to_theirs(ours), DIFFUSERS.to_theirs(ours), ours):
            known[name.replace(".", "_")] = known[name] = ours
    return known


def choose_layers(config: DiTConfig, targets: Sequence[str]) -> dict[str, nn.Linear]:
    """The layers that these patterns mean: whole names or their ends, `*` for anything, in any of the three spellings.

    Raises ValueError, with the nearest names, for a pattern that means none.
    """
    layers = layers_of(config)
    known = {name: ours for name, ours in spellings(list(layers)).items() if "." in name or name == ours}
    if not targets:
        raise ValueError(f"targets: name the layers to adapt; {' '.join(TARGETS)} are the matrices of the blocks")
    chosen: set[str] = set()
    for target in targets:
        found = {o for name, o in known.items() if fnmatchcase(name, target) or fnmatchcase(name, f"*.{target}")}
        if not found:
            raise ValueError(f"targets: no layer is called {target!r}; {_nearest_end(target, known)}")
        chosen |= found
    return {name: layer for name, layer in layers.items() if name in chosen}


def _nearest_end(target: str, known: Mapping[str, str]) -> str:
    """The nearest ends of layers' names, in any spelling; where nothing is near, all of ours."""
    parts = [name.split(".") for name in known]
    close = nearest(target, sorted({".".join(each[start:]) for each in parts for start in range(len(each))}))
    ours = sorted({re.sub(r"^blocks\.\d+\.", "", name) for name in known.values()})
    return close if close.startswith("did you mean") else f"known: {', '.join(ours)}"


def fresh_terms(
    system: LatentVideo, rank: int, alpha: float, targets: Sequence[str], generator: Generator
) -> dict[str, dict[str, LowRank]]:
    """Untrained terms for every expert of a model; with them on it makes the same bits."""
    if not alpha > 0 or not math.isfinite(alpha):
        raise ValueError(f"alpha={alpha}: expected a number above 0; as large as the rank is usual")
    return {
        part: {
            name: term.to(system.device)
            for name, term in lora.fresh(choose_layers(denoiser.config, targets), rank, alpha, generator).items()
        }
        for part, denoiser in denoisers(system).items()
    }


def denoisers(system: LatentVideo) -> dict[str, DiT]:
    """The transformers of a model, by part."""
    both = {FIRST: system.denoiser, SECOND: system.low_denoiser}
    return {part: denoiser for part, denoiser in both.items() if denoiser is not None}


def fit(pairs: Mapping[str, Pair], config: DiTConfig, where: str) -> dict[str, LowRank]:
    """Terms by our names, from pairs by any. Raises ValueError for an unknown layer and for another width."""
    layers = layers_of(config)
    known, terms = spellings(list(layers)), {}
    for name, pair in pairs.items():
        if name not in known:
            raise ValueError(f"{where}: adapts {name!r}, which this model does not have; {nearest(name, known)}")
        ours = known[name]
        wanted = (layers[ours].out_features, layers[ours].in_features)
        if (len(pair.up), pair.down.shape[1]) != wanted:
            raise ValueError(
                f"{where}: is for {name!r} of {len(pair.up)} x {pair.down.shape[1]}, this model's is {wanted[0]} x "
                f"{wanted[1]}; the adapter belongs to a model of another size"
            )
        terms[ours] = LowRank(pair.down, pair.up, pair.alpha, pair.bias).requires_grad_(False)
    return terms


def named_terms(adapter: Adapter) -> dict[str, dict[str, LowRank]]:
    """What an adapter holds, by our names, without its model at hand. Raises ValueError for an unknown layer."""
    deepest = [
        int(n) for pairs in adapter.parts.values() for name in pairs for n in re.findall(r"blocks[._](\d+)", name)
    ]
    outline = DiTConfig(1, 6, max(deepest, default=0) + 1, 6, text_dim=6, frequencies=6, image_dim=6)
    known = spellings(list(layers_of(outline)))
    terms: dict[str, dict[str, LowRank]] = {}
    for part, pairs in adapter.parts.items():
        for name, pair in pairs.items():
            if name not in known:
                raise ValueError(f"{adapter.where}: adapts {name!r}, which no model of this family has")
            terms.setdefault(part, {})[known[name]] = LowRank(pair.down, pair.up, pair.alpha, pair.bias)
    return terms


def attach(system: LatentVideo, terms: Terms, strength: float = 1.0) -> None:
    """Put terms on a model; every further call adds to what is there. On an offloaded model they are held in memory
    and put on every block that comes in. Raises ValueError, before anything is changed, for a part that it lacks."""
    parts = denoisers(system)
    if foreign := [part for part in terms if part not in parts]:
        raise ValueError(f"an adapter for {foreign[0]}: this model has {' and '.join(parts)} only")
    for part, own in terms.items():
        denoiser = parts[part]
        for term in own.values():
            term.strength = strength
        if isinstance(denoiser.blocks, OffloadedBlocks):
            within = {name: term for name, term in own.items() if name.startswith("blocks.")}
            denoiser.blocks.attach({name.removeprefix("blocks."): term for name, term in within.items()})
            own = {name: term for name, term in own.items() if name not in within}
        lora.attach(denoiser, own)


def apply(system: LatentVideo, adapter: Adapter, strength: float = 1.0) -> None:
    """Put an adapter that was read on a model. Raises ValueError, before anything is changed, where it does not fit."""
    parts = denoisers(system)
    if foreign := [part for part in adapter.parts if part not in parts]:
        raise ValueError(f"{adapter.where}: adapts {foreign[0]} too, and this model has {' and '.join(parts)} only")
    terms = {part: fit(pairs, parts[part].config, adapter.where) for part, pairs in adapter.parts.items()}
    for own in terms.values():
        for term in own.values():
            term.to(system.device)
    attach(system, terms, strength)
    system.taught |= set(adapter.words)


def detach(system: LatentVideo) -> None:
    """Take all adapters off: the model is what it was, to the bit."""
    for denoiser in denoisers(system).values():
        if isinstance(denoiser.blocks, OffloadedBlocks):
            denoiser.blocks.detach()
        lora.detach(denoiser)
    system.taught = set()
