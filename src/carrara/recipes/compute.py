"""How much a training takes, counted, and how long one is that may take so much: what systems are compared at.

The one place where a budget in FLOP becomes a number of steps, and where what was spent is written down.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from carrara.core.config import read_json, write_json
from carrara.core.types import Phase
from carrara.systems.step_flops import loss_flops
from carrara.training.config import TrainConfig
from carrara.training.loop import train
from carrara.training.metrics import read_metrics

COMPUTE = "compute.json"


@dataclass(frozen=True)
class Cost:
    """FLOP of a training step. step: of every one, or with `alone` of those for which it is false; image_step: of the
    others, which are on single frames."""

    step: int
    image_step: int = 0
    alone: Callable[[int], bool] | None = None

    def of(self, steps: int) -> int:
        """FLOP of the first so many steps."""
        stills = 0 if self.alone is None else sum(map(self.alone, range(steps)))
        return (steps - stills) * self.step + stills * self.image_step

    def within(self, flops: float) -> int:
        """The number of steps that comes nearest to a budget; at least 1."""
        if self.alone is None:
            return max(1, round(flops / self.step))
        steps, spent = 0, 0
        while True:
            next_step = self.image_step if self.alone(steps) else self.step
            if steps and spent + next_step / 2 > flops:
                return steps
            steps, spent = steps + 1, spent + next_step


def check_flops(flops: float | None, name: str = "flops") -> None:
    """Refuse a budget of nothing (ValueError); None is none."""
    if flops is not None and not 0 < flops < float("inf"):
        raise ValueError(f"{name}={flops}: must be above 0, such as 1e15")


def cost_of(phase: Phase) -> Cost:
    """What a step of a phase takes, forward and backward: as the phase counts it itself, or the whole first batch."""
    counted = getattr(phase, "step_flops", None)
    return Cost(loss_flops(phase, phase.batch(0)) if counted is None else counted())


def for_flops(config: TrainConfig, flops: float | None, cost: Cost) -> TrainConfig:
    """The settings of a training that takes so much, whatever length they had; unchanged for None."""
    if flops is None:
        return config
    return replace(config, steps=cost.within(flops), minutes=None, decay_at=None)


def train_counted(
    phase: Phase,
    config: TrainConfig,
    folder: Path,
    settings: Mapping[str, Any],
    stage: str,
    flops: float | None = None,
    cost: Cost | None = None,
) -> Path:
    """Train, for the given compute where there is one, and leave `compute.json` in the folder; returns the model's."""
    cost = cost or cost_of(phase)
    made = train(phase, for_flops(config, flops, cost), folder, settings)
    write_compute(folder, stage, cost)
    return made


def write_compute(folder: Path, stage: str, cost: Cost) -> None:
    """Write and print `compute.json` of a finished training folder: FLOP of a step, steps, FLOP of all."""
    steps = steps_of(folder)
    each = {"step_flops": cost.step} | ({} if cost.alone is None else {"image_step_flops": cost.image_step})
    compute = {"stage": stage, **each, "steps": steps, "flops": cost.of(steps)}
    write_json(folder / COMPUTE, compute)
    print(json.dumps(compute))


def find_counted(folder: Path, stage: str, flops: float | None, phase: Callable[[], Phase]) -> Path | None:
    """The model of a finished stage, None where it is not finished. What a stop has left uncounted is counted; where it
    took another compute than is asked for, that is said: its rate has fallen, it cannot go on."""
    model = folder / "model"
    if not (model / "model_index.json").is_file():
        return None
    if not (folder / COMPUTE).is_file():
        write_compute(folder, stage, cost_of(phase()))
    spent = read_json(folder / COMPUTE)
    if flops is not None and abs(spent["flops"] - flops) > max(spent["step_flops"], 0.01 * flops):
        took = f"was trained with {spent['flops']:.3g} FLOP and is finished"
        print(f"{folder}: {took}; to train it with {flops:.3g}, give another folder (-o)")
    return model


def steps_of(folder: Path) -> int:
    """How many steps a training folder tells of."""
    return max(line["step"] for line in read_metrics(folder / "metrics.jsonl"))


def sum_compute(folder: Path, stages: Iterable[str]) -> None:
    """Write `compute.json` of a run whose stages are in folders of their names: what each took, and all of them."""
    found = [read_json(folder / stage / COMPUTE) for stage in stages]
    write_json(folder / COMPUTE, {"stages": found, "flops": sum(stage["flops"] for stage in found)})
