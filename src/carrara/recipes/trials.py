"""Trials: variants of a recipe's denoiser, trained on the autoencoder and the cached latents that one run has made.

Nothing is encoded again, all variants see the same clips, and validation is on the same clips, captions and noise, so
that their losses compare. What a trial has measured is read back from its folder.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from carrara.core.config import from_dict, nearest, to_dict
from carrara.core.weights import fingerprint
from carrara.data.latents import LatentCache
from carrara.recipes.device import chosen_device
from carrara.recipes.pond import PondRecipe
from carrara.training.metrics import read_metrics


def changed(recipe: PondRecipe, settings: Mapping[str, Any]) -> PondRecipe:
    """The recipe with some settings changed, named as on the command line: {"denoiser.train.optimizer": "adamw"}.

    Values are those of JSON. Raises ValueError for a setting that is unknown or a value that does not fit.
    """
    whole = to_dict(recipe)
    for name, value in settings.items():
        place = whole
        *path, last = name.split(".")
        for part in path:
            if not isinstance(place.get(part), dict):
                raise ValueError(f"no setting {name!r}; {nearest(part, place)}")
            place = place[part]
        if last not in place:
            raise ValueError(f"no setting {name!r}; {nearest(last, place)}")
        place[last] = value
    return from_dict(PondRecipe, whole, "recipe")


@dataclass(frozen=True)
class Made:
    """What a run of the recipe has made so far that trials need: a trained autoencoder and its latents."""

    autoencoder: Path
    latents: LatentCache
    validation: LatentCache
    device: torch.device


def open_run(recipe: PondRecipe, run: Path) -> Made:
    """Open a run's autoencoder and latents. Raises ValueError where they are missing or of another recipe."""
    trained = run / "autoencoder" / "model"
    if not (trained / "config.json").is_file():
        raise ValueError(
            f"{run}: no trained autoencoder here; give the folder of a run that has finished its first stage"
        )
    made_by = fingerprint(sorted(trained.iterdir()))
    device = torch.device(chosen_device(recipe.device))
    latents, validation = (LatentCache.open(run / name, made_by, device) for name in ("latents", "latents-validation"))
    model = recipe.autoencoder.model
    sides = recipe.shape.latent(model.stride)
    wanted = (model.latent_channels, sides.frames, sides.height, sides.width)
    if latents.shape != wanted:
        raise ValueError(
            f"{run}: its latents are {latents.shape} (channels, frames, height, width), this recipe's are {wanted}; "
            "name the recipe that the run was made with"
        )
    return Made(trained, latents, validation, device)


def train_trial(recipe: PondRecipe, made: Made, folder: Path) -> Path:
    """Train the recipe's denoiser on what a run has made; resumes, and returns the model folder."""
    return recipe.train_denoiser(folder, made.autoencoder, made.latents, made.validation, made.device)


@dataclass(frozen=True)
class Point:
    """What validation measured after so many clips: `losses` by name ("loss_mean", "loss_at_0.5", ...)."""

    clips: int
    losses: Mapping[str, float]


@dataclass(frozen=True)
class Curve:
    """A trial's validation, oldest first; rate: clips per second of training; constant: clips before the decay."""

    points: Sequence[Point]
    rate: float
    constant: int

    def at(self, clips: int) -> dict[str, float]:
        """The losses after so many clips, between two validations on a straight line of logarithms.

        Raises ValueError outside of what was measured.
        """
        first, last = self.points[0].clips, self.points[-1].clips
        if not first <= clips <= last:
            raise ValueError(f"clips={clips}: this trial was validated from {first} to {last} clips")
        after = next(index for index, point in enumerate(self.points) if point.clips >= clips)
        right = self.points[after]
        if right.clips == clips:
            return dict(right.losses)
        left = self.points[after - 1]
        part = math.log(clips / left.clips) / math.log(right.clips / left.clips)
        return {
            name: math.exp((1 - part) * math.log(left.losses[name]) + part * math.log(right.losses[name]))
            for name in left.losses
        }


def read_curve(folder: Path, batch: int) -> Curve:
    """What a trial's folder tells; batch: clips in a step. Raises ValueError where nothing has been validated."""
    path = folder / "metrics.jsonl"
    lines = read_metrics(path) if path.is_file() else []
    points, rates, decay = {}, [], math.inf
    for line in lines:
        if line["kind"] == "validation":
            losses = {name: value for name, value in line.items() if name.startswith("loss")}
            points[line["step"]] = Point(line["step"] * batch, losses)
        if line.get("seconds"):  # lines of training and of the end
            rates.append(line["step"] * batch / line["seconds"])
        if line.get("event") == "decay":
            decay = line["start"]
    if not points or not rates:
        raise ValueError(f"{folder}: no validation has been recorded here; train it first")
    return Curve([points[step] for step in sorted(points)], rates[-1], int(min(decay, max(points))) * batch)


def equal_clips(curves: Sequence[Curve]) -> int | None:
    """The most clips after which all trials were validated at their full learning rate; None if there are none such."""
    most = min(max((p.clips for p in curve.points if p.clips <= curve.constant), default=0) for curve in curves)
    return most if most >= max(curve.points[0].clips for curve in curves) else None


def for_minutes(recipe: PondRecipe, minutes: float, threads: int = 0, validate_every: int = 250) -> PondRecipe:
    """The recipe with so much time for its denoiser, whatever length it had; pictures only at the end."""
    plan = replace(
        recipe.denoiser.train,
        minutes=minutes,
        steps=None,
        decay_at=None,
        threads=threads,
        validate_every=validate_every,
        picture_every=10**9,
    )
    return replace(recipe, denoiser=replace(recipe.denoiser, train=plan))


def for_clips(recipe: PondRecipe, budgets: Sequence[int], threads: int = 0, validate_every: int = 250) -> PondRecipe:
    """The recipe at a constant rate for the largest budget of clips, its weights kept at every budget.

    Budgets are rounded up to whole steps. Raises ValueError unless there is one and all are positive.
    """
    if not budgets or min(budgets) < 1:
        raise ValueError(f"budgets={list(budgets)}: give numbers of clips, each at least 1")
    steps = tuple(sorted({math.ceil(clips / recipe.denoiser.batch) for clips in budgets}))
    plan = replace(
        recipe.denoiser.train,
        steps=steps[-1],
        minutes=None,
        decay_at=None,
        decay_share=0.0,
        keep=steps,
        threads=threads,
        validate_every=validate_every,
        picture_every=10**9,
    )
    return replace(recipe, denoiser=replace(recipe.denoiser, train=plan))
