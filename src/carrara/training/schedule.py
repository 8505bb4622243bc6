"""The learning rate as a function of (step, decay), where the decay is the one thing that wall time may decide.

The decay is found once, recorded in the state, and from then on holds: a run with a given record is the same run on
any machine.
"""

from __future__ import annotations

from dataclasses import dataclass

from carrara.training.config import TrainConfig


@dataclass(frozen=True)
class Decay:
    """The last stretch of a run: the learning rate falls linearly from step `start` on and is 0 at `end`."""

    start: int
    length: int

    @property
    def end(self) -> int:
        """How many steps the run has in all."""
        return self.start + self.length

    @classmethod
    def after(cls, start: int, share: float) -> Decay:
        """The decay that makes up `share` of all steps if it starts after `start` of them."""
        return cls(start, round(start * share / (1 - share)))


def decay_due(config: TrainConfig, step: int, seconds: float) -> Decay | None:
    """The decay that starts before this step (none yet: None), after so many seconds of training."""
    if config.decay_at is not None:
        return Decay.after(config.decay_at, config.decay_share) if step >= config.decay_at else None
    if config.steps is not None:
        length = round(config.steps * config.decay_share)
        if step >= config.steps - length:
            return Decay(config.steps - length, length)
    if config.minutes is not None and seconds >= 60 * config.minutes * (1 - config.decay_share):
        return Decay.after(step, config.decay_share)
    return None


def rate(step: int, warmup: int, decay: Decay | None) -> float:
    """The share of the full learning rate at a step (counted from 0): warm-up times decay."""
    rising = min(1.0, (step + 1) / warmup) if warmup else 1.0
    if decay is None or step < decay.start:
        return rising
    return rising * max(0.0, (decay.end - step) / decay.length if decay.length else 0.0)


def seconds_left(config: TrainConfig, decay: Decay | None, step: int, seconds: float, per_step: float) -> float:
    """An estimate of the training time left, for the progress line."""
    if decay is not None:
        return max(0, decay.end - step) * per_step
    guesses = []
    if config.decay_at is not None:
        guesses.append((Decay.after(config.decay_at, config.decay_share).end - step) * per_step)
    elif config.steps is not None:
        guesses.append((config.steps - step) * per_step)
    if config.minutes is not None and config.decay_at is None:
        guesses.append(60 * config.minutes - seconds)
    return max(0.0, min(guesses))
