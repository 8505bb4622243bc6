"""Does a model find what is possible likelier than what is not: denoising errors of valid and invalid twins.

The plausibility preference error of LikePhys (Yuan et al. 2025, arXiv 2510.11512): both clips of a pair get the same
noise, and the share of pairs in which the one that breaks a law is undone with the smaller error is 50% by chance and
0% at best. Nothing is generated and no other network judges. Two scorers that know no physics stand beside the model:
one scores by chance, one by how much neighbouring frames differ. Where a model is no better than that one, its
preference is for stillness, not for physics.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from carrara.core.types import VideoShape
from carrara.evaluation.physics.twins import BALL_LAWS, CONTROL, POND_LAWS, Twins, make_twins
from carrara.evaluation.prompts import HELD_IN_START, MOST_PROMPTS, check_seed
from carrara.evaluation.statistics import Estimate, Share, mean_estimate

LEVELS = (0.1, 0.3, 0.5, 0.7, 0.9)
CHANCE, ROUGHNESS = "chance", "change between frames"


class ScoresNoise(Protocol):
    """Says how well noise on clips is undone, lower for clips that are likelier.

    clips: uint8 `b t h w 3`; levels: noise levels in (0, 1); the noise of a level is drawn from the seed and the same
    for all clips. Returns losses `(b, levels)`.
    """

    def __call__(self, clips: Tensor, prompt: str, levels: Sequence[float], seed: int) -> Tensor: ...


def by_chance(clips: Tensor, prompt: str, levels: Sequence[float], seed: int) -> Tensor:
    """The control that does not look: losses drawn from the seed."""
    return torch.rand(len(clips), len(levels), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_change(clips: Tensor, prompt: str, levels: Sequence[float], seed: int) -> Tensor:
    """The control that sees pixels and no laws: the mean square difference of neighbouring frames, at every level."""
    change = clips.double().diff(dim=1).square().flatten(1).mean(1)
    return change[:, None].repeat(1, len(levels))


@dataclass(frozen=True)
class Preference:
    """One pair: the losses of both twins, per level.

    `wrong` says that the invalid one has the smaller sum, `wrong_at` the same per level.
    """

    law: str
    seed: int
    moment: int
    valid: tuple[float, ...]
    invalid: tuple[float, ...]

    @property
    def wrong(self) -> bool:
        return sum(self.invalid) <= sum(self.valid)

    @property
    def wrong_at(self) -> tuple[bool, ...]:
        return tuple(b <= a for a, b in zip(self.valid, self.invalid))

    def plain(self) -> dict[str, Any]:
        losses = {name: [float(f"{v:.6g}") for v in getattr(self, name)] for name in ("valid", "invalid")}
        return {"seed": self.seed, "moment": self.moment, **losses}


@dataclass(frozen=True)
class Preferences:
    """Per (scorer, law) a `Preference` per pair; shown: the first pair of each law."""

    world: str
    found: Mapping[tuple[str, str], tuple[Preference, ...]]
    shown: Mapping[str, Twins] = field(repr=False)
    levels: tuple[float, ...]
    pairs: int
    seed: int

    @property
    def scorers(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(scorer for scorer, _ in self.found))

    @property
    def laws(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(law for _, law in self.found))

    def error(self, scorer: str, law: str) -> Share:
        """The share of wrong pairs of a law, by the sum over levels."""
        pairs = self.found[scorer, law]
        return Share(sum(pair.wrong for pair in pairs), len(pairs))

    def overall(self, scorer: str, level: int | None = None) -> Estimate:
        """The share of wrong pairs over all laws that are broken, by the sum over levels or at one.

        Laws are broken in scenes of the same seeds, often in the same scene, so its interval is over seeds.
        """
        columns = zip(*(self.found[scorer, law] for law in self.laws if law != CONTROL), strict=True)
        wrong = [[pair.wrong if level is None else pair.wrong_at[level] for pair in pairs] for pairs in columns]
        return mean_estimate([sum(each) / len(each) for each in wrong], share=True)


def measure_preference(
    model: ScoresNoise | None,
    world: str,
    shape: VideoShape,
    fps: float,
    *,
    pairs: int = 20,
    seed: int = 0,
    levels: Sequence[float] = LEVELS,
    draws: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Preferences:
    """Score `pairs` twins per law of a world ("balls" or "pond") by the model and by the two controls.

    draws: how many times noise is drawn for a pair; losses are means over them. The same arguments give the same
    result. Raises ValueError before anything is rendered.
    """
    check_seed(seed)
    if not 1 <= pairs <= MOST_PROMPTS or draws < 1:
        raise ValueError(f"pairs={pairs}, draws={draws}: give 1 to {MOST_PROMPTS} pairs and at least one draw")
    laws = tuple(BALL_LAWS if world == "balls" else POND_LAWS)
    scorers: dict[str, ScoresNoise] = {CHANCE: by_chance, ROUGHNESS: by_change}
    if model is not None:
        scorers = {"model": model, **scorers}
    found: dict[tuple[str, str], list[Preference]] = {(name, law): [] for name in scorers for law in laws}
    shown: dict[str, Twins] = {}
    for at, law in enumerate(laws):
        for number in range(pairs):
            scene = HELD_IN_START + seed * MOST_PROMPTS + number
            twins = make_twins(world, law, scene, shape, fps)
            shown.setdefault(law, twins)
            both = torch.stack([twins.valid, twins.invalid])
            for name, score in scorers.items():
                pair = (seed * len(laws) + at) * MOST_PROMPTS + number
                noises = [pair * draws + draw for draw in range(draws)]
                losses = torch.stack([score(both, twins.prompt, levels, noise) for noise in noises]).mean(0)
                valid, invalid = losses.double().tolist()
                found[name, law].append(Preference(law, scene, twins.moment, tuple(valid), tuple(invalid)))
            if progress:
                progress(at * pairs + number + 1, len(laws) * pairs)
    done = {key: tuple(prefs) for key, prefs in found.items()}
    if not np.isfinite([p.valid + p.invalid for prefs in done.values() for p in prefs]).all():
        raise ValueError("a loss is not finite; is the model damaged, or its precision too low?")
    return Preferences(world, done, shown, tuple(levels), pairs, seed)
