"""The settings of a training run. Free of torch, so that recipes and the command line can name them at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from carrara.core.config import to_dict

# What a resumed run may change: how long it goes on and what it reports, but nothing that decides a step.
FREE = frozenset(
    {
        "steps", "minutes", "decay_at", "max_skips", "prefetch", "log_every", "validate_every", "picture_every",
        "checkpoint_every", "checkpoint_every_minutes", "keep", "threads", "parallel",
    }
)  # fmt: skip


@dataclass(frozen=True)
class Parallel:
    """How a run is spread over the processes that torchrun has started; none of it changes what is learned.

    shard: parts that can be (transformers) are split over all processes: weights, gradients, optimizer state and
    averages (FSDP2); otherwise, and for other parts, every process holds a copy. sequence: so many processes work on
    the same clips, each on some of the tokens, for clips too long for one. recompute: blocks of transformers are
    computed again in the backward pass instead of being kept. timeout_minutes: how long a process waits for another.
    """

    shard: bool = True
    sequence: int = 1
    recompute: bool = False
    timeout_minutes: float = 30.0

    def __post_init__(self) -> None:
        _check("parallel.sequence", self.sequence, self.sequence >= 1, "at least 1")
        _check("parallel.timeout_minutes", self.timeout_minutes, self.timeout_minutes > 0, "more than 0")


@dataclass(frozen=True)
class TrainConfig:
    """How one phase is trained.

    Length: `steps`, or `minutes` of training (summed over resumes), or both: whichever ends first. A run of minutes
    starts its decay when (1 - decay_share) of them have passed and records that step; `decay_at` replays a recorded
    one, so that the run repeats bit for bit whatever the machine's speed.
    Learning rates: linear over `warmup` steps, constant, then linear to 0 over the last `decay_share` of the steps.
    `matrix_learning_rate` is for the block matrices under "muon"; everything else takes `learning_rate`.
    `ema` is the decay of the averaged weights, reached by min(ema, (1 + n) / (10 + n)) after n updates.
    Gradients are clipped to the norm `clip` (0: not). `max_skips` non-finite steps in a row end the run.
    Intervals are in steps, 0 for never; `threads` 0 leaves torch's own choice. `keep` are steps whose averaged weights
    are validated and exported to `kept/step-<n>`, so that one run at a constant rate gives models of several budgets.
    `pieces`: every batch is computed in so many parts with draws of their own, one after the other or on as many
    processes; the same run on any number of processes that divides it. 0: as many as there are processes, 1 on one.
    `compile`: transformers train through `torch.compile` (needs a C++ compiler): on a CPU what lies between their
    matrix products, elsewhere their blocks, on one process.
    """

    steps: int | None = None
    minutes: float | None = None
    decay_at: int | None = None
    warmup: int = 500
    decay_share: float = 0.2
    learning_rate: float = 1e-3
    matrix_learning_rate: float = 2e-3
    optimizer: str = "adamw"
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.01
    clip: float = 1.0
    ema: float = 0.999
    precision: str = "bfloat16"
    seed: int = 0
    max_skips: int = 20
    prefetch: bool = True
    log_every: int = 20
    validate_every: int = 1000
    picture_every: int = 1000
    checkpoint_every: int = 0
    checkpoint_every_minutes: float = 5.0
    keep: tuple[int, ...] = ()
    threads: int = 0
    pieces: int = 0
    compile: bool = False
    parallel: Parallel = field(default_factory=Parallel)

    def __post_init__(self) -> None:
        if self.steps is None and self.minutes is None and self.decay_at is None:
            raise ValueError("steps and minutes are both unset: say how long to train, e.g. steps=20000 or minutes=60")
        _among("optimizer", self.optimizer, ("adamw", "muon"))
        _among("precision", self.precision, ("bfloat16", "float32"))
        for name in ("steps", "minutes"):
            value = getattr(self, name)
            _check(name, value, value is None or value > 0, "more than 0")
        for name in ("learning_rate", "matrix_learning_rate"):
            _check(name, getattr(self, name), getattr(self, name) > 0, "more than 0")
        for name in ("decay_share", "ema"):
            _check(name, getattr(self, name), 0 <= getattr(self, name) < 1, "at least 0 and below 1")
        for name in ("warmup", "weight_decay", "clip", "log_every", "validate_every", "picture_every"):
            _check(name, getattr(self, name), getattr(self, name) >= 0, "at least 0")
        for name in ("checkpoint_every", "checkpoint_every_minutes", "threads", "pieces"):
            _check(name, getattr(self, name), getattr(self, name) >= 0, "at least 0")
        _check("decay_at", self.decay_at, self.decay_at is None or self.decay_at >= 0, "a step, at least 0")
        _check("keep", self.keep, all(step >= 1 for step in self.keep), "steps, each at least 1")
        _check("max_skips", self.max_skips, self.max_skips >= 1, "at least 1")
        _check(
            "betas", self.betas, len(self.betas) == 2 and all(0 <= b < 1 for b in self.betas), "two numbers in [0, 1)"
        )


def _check(name: str, value: object, good: bool, wanted: str) -> None:
    if not good:
        raise ValueError(f"{name}={value}: must be {wanted}")


def _among(name: str, value: str, options: tuple[str, ...]) -> None:
    if value not in options:
        raise ValueError(f"{name}={value!r}: must be one of {', '.join(options)}")


def check_same(past: Mapping[str, Any], now: Mapping[str, Any], path: Path, prefix: str = "") -> None:
    """Refuse to resume under other settings, naming the first that differs.

    A setting of training that the checkpoint does not know yet had its default.
    """
    if prefix == "train.":
        past = {**{key: value for key, value in to_dict(TrainConfig(steps=1)).items() if key in now}, **past}
    for key in [*past, *(key for key in now if key not in past)]:
        name, old, new = f"{prefix}{key}", past.get(key), now.get(key)
        if prefix == "train." and key in FREE:
            continue
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            check_same(old, new, path, f"{name}.")
        elif old != new:
            raise ValueError(
                f"{path}: was trained with {name}={old!r}, now it is {new!r}; "
                "set it back to resume, or train in a new folder"
            )
