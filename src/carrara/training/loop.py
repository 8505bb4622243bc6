"""The training loop: one for every trainable part, behind the `Phase` protocol.

Not standard: a run's randomness is a function of (seed, step) and its learning rate of (step, decay), so a checkpoint
is only weights, averages, optimizer state and a few numbers, and a resumed run repeats the uninterrupted one bit for
bit (at an equal thread count). A step whose loss or gradient is not finite is skipped before it touches anything.
"""

from __future__ import annotations

import math
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import torch
from torch import nn

from carrara.core.config import to_dict, write_json
from carrara.core.types import Phase
from carrara.data.batches import mix
from carrara.training.checkpoint import TrainState, checkpoints, load_checkpoint, load_ema, read_state, save_checkpoint
from carrara.training.config import FREE, TrainConfig
from carrara.training.metrics import MetricsFile, Progress, Window, clock_time, sample_count, save_picture
from carrara.training.optim import Average, Optimizers, block_matrices, ema_decay, trainable
from carrara.training.process import Ahead, keep_freed_memory, random_state_kept, stop_requests, thread_count
from carrara.training.schedule import decay_due, rate, seconds_left

__all__ = ["Stopped", "TrainConfig", "load_ema", "train"]


class Stopped(Exception):
    """Training was asked to stop (Ctrl-C or a signal) and has saved where it stands; the message says how to resume."""

    exit_code = 130


def train(
    phase: Phase,
    config: TrainConfig,
    folder: Path,
    settings: Mapping[str, Any] | None = None,
    out: TextIO | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Path:
    """Train a phase to the end of its budget and export it with averaged weights to `folder/model`, which is returned.

    In the folder: `config.json`, `metrics.jsonl`, `pictures/step-<n>.png`, `checkpoints/`, and the exports of
    `config.keep` in `kept/step-<n>`. Where it already holds a checkpoint, the run goes on from there. `settings` are
    JSON values that define the run besides `config` (the recipe): a resumed run must have the same. Raises ValueError
    for a checkpoint of other settings or a damaged one, Stopped after Ctrl-C or SIGTERM, FloatingPointError after
    `config.max_skips` steps in a row that were not finite.
    """
    keep_freed_memory()
    with thread_count(config.threads), random_state_kept(), stop_requests() as stop:
        run = _Run(phase, config, folder, settings or {}, Progress(out), clock)
        try:
            run.go(stop)
            return run.finish()
        except KeyboardInterrupt:
            run.stop()
            raise Stopped(
                f"stopped after step {run.state.step}; run the same command again to resume in {folder}"
            ) from None
        finally:
            run.close()


class _Run:
    """One run of one phase: what the steps of the loop share."""

    def __init__(
        self,
        phase: Phase,
        config: TrainConfig,
        folder: Path,
        settings: Mapping[str, Any],
        progress: Progress,
        clock: Callable[[], float],
    ) -> None:
        self.phase, self.config, self.folder, self.progress, self.clock = phase, config, folder, progress, clock
        self.settings = {"train": to_dict(config), "recipe": dict(settings)}
        self.module: nn.Module = phase.module
        parameters = trainable(self.module)
        self.device = next(iter(parameters.values())).device
        self.average = Average(parameters)
        self.optimizers = Optimizers(parameters, getattr(phase, "is_matrix", block_matrices(self.module)), config)
        self.generator = torch.Generator(self.device)
        self.state = TrainState()
        self.saved_at: int | None = None
        self.whole = True  # false while an update is under way: such a state is never saved
        found = checkpoints(folder)
        if found:
            self.state, past = read_state(found[-1])
            _check_same(past, self.settings, found[-1])
            load_checkpoint(found[-1], self.module, self.average, self.optimizers)
            self.saved_at = self.state.step
        write_json(folder / "config.json", self.settings)
        self.metrics = MetricsFile(folder / "metrics.jsonl", self.state.step)
        self.metrics.write("event", self.state.step, event="resumed" if found else "started")
        self.progress.say(f"{'resuming after' if found else 'training from'} step {self.state.step} in {folder}")
        self.window = Window()
        self.began = self.logged = self.saved = clock()

    def go(self, stop: threading.Event) -> None:
        """Step until the decay has ended."""
        self.logged = self.saved = self.clock()
        self.began = self.logged - self.state.seconds
        with Ahead(self.phase.batch, self.config.prefetch) as ahead:
            while not self._ended():
                batch = ahead.get(self.state.step)
                parts, norm = self._gradients(batch)
                if all(math.isfinite(value) for value in (norm, *parts.values())):
                    self._update(norm)
                    self.window.add({**parts, "gradient_norm": norm}, sample_count(batch))
                else:
                    self._skip(parts, norm, sample_count(batch))
                self._report()
                if stop.is_set():
                    raise KeyboardInterrupt

    def _ended(self) -> bool:
        """Whether the run is over; the one place where time may start the decay."""
        state = self.state
        state.seconds = self.clock() - self.began
        if state.decay is None:
            state.decay = decay_due(self.config, state.step, state.seconds)
            if state.decay is not None:
                self.metrics.write("event", state.step, event="decay", start=state.decay.start, end=state.decay.end)
                self.progress.say(f"decay from step {state.decay.start} to the end at {state.decay.end}")
        return state.decay is not None and state.step >= state.decay.end

    def _gradients(self, batch: Any) -> tuple[dict[str, float], float]:
        """Leave gradients in the parameters; returns the loss parts and the gradients' norm (one wait for a GPU)."""
        seed = mix(self.config.seed, self.state.step)
        torch.manual_seed(seed)  # for what draws from the global generator, such as dropout
        self.optimizers.zero_grad()
        with self._autocast():
            parts = self.phase.loss(batch, self.state.step, self.generator.manual_seed(seed))
        parts["loss"].backward()
        norm = nn.utils.get_total_norm([p.grad for p in self.average.parameters.values() if p.grad is not None])
        *values, length = torch.stack([v.detach().float().to(self.device) for v in (*parts.values(), norm)]).tolist()
        return dict(zip(parts, values)), length

    def _update(self, norm: float) -> None:
        state = self.state
        self.whole = False
        if self.config.clip and norm > self.config.clip:
            torch._foreach_mul_(
                [p.grad for p in self.average.parameters.values() if p.grad is not None], self.config.clip / norm
            )
        self.optimizers.step(rate(state.step, self.config.warmup, state.decay))
        self.average.update(ema_decay(state.step - state.skipped, self.config.ema))
        state.step += 1
        state.skipped_in_row = 0
        self.whole = True

    def _skip(self, parts: Mapping[str, float], norm: float, samples: int) -> None:
        """Count and report a step that is not finite; nothing has been changed by it."""
        state = self.state
        state.step += 1
        state.skipped += 1
        state.skipped_in_row += 1
        self.window.skip(samples)
        self.metrics.write("event", state.step, event="skipped", parts=dict(parts), gradient_norm=norm)
        bad = next((name for name, value in parts.items() if not math.isfinite(value)), "gradient")
        self.progress.say(f"step {state.step}: skipped, {bad} is not finite")
        if state.skipped_in_row >= self.config.max_skips:
            raise FloatingPointError(
                f"step {state.step}: {bad} not finite for {state.skipped_in_row} steps in a row; "
                f"lower the learning rate and go on from {self.folder / 'checkpoints'}"
            )

    def _report(self) -> None:
        """Whatever is due after this step: a line, validation, a picture, a checkpoint."""
        config, step, now = self.config, self.state.step, self.clock()
        self.state.seconds = now - self.began
        if _due(config.log_every, step):
            self._log(now)
        if _due(config.validate_every, step) or step in config.keep:
            self._validate()
        if _due(config.picture_every, step):
            self._picture()
        if step in config.keep:
            self._export(self.folder / "kept" / f"step-{step:08d}")
        minutes = config.checkpoint_every_minutes
        if _due(config.checkpoint_every, step) or (minutes and now - self.saved >= 60 * minutes):
            self._save()
        self.logged += self.clock() - now  # the rate that is shown is that of steps

    def _log(self, now: float) -> None:
        state, window = self.state, self.window
        seconds = max(now - self.logged, 1e-9)
        done = window.steps + window.skipped
        share = rate(state.step - 1, self.config.warmup, state.decay)
        means, samples = window.means(), window.samples / seconds
        self.metrics.write(
            "train",
            state.step,
            **means,
            learning_rate=self.config.learning_rate * share,
            samples_per_second=samples,
            seconds=state.seconds,
            skipped=state.skipped,
        )
        left = seconds_left(self.config, state.decay, state.step, state.seconds, seconds / max(done, 1))
        end = state.decay.end if state.decay else self.config.steps
        parts = "  ".join(f"{name} {value:.4g}" for name, value in means.items())
        self.progress.show(
            f"step {state.step}{f'/{end}' if end else ''}  {parts}  {samples:.3g} samples/s  {clock_time(left)} left",
            now,
        )
        self.window, self.logged = Window(), now

    def _validate(self) -> None:
        with self._averaged():
            values = self.phase.validate()
        if values:
            self.metrics.write("validation", self.state.step, **values)
            parts = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
            self.progress.say(f"step {self.state.step}  validation: {parts}")

    def _picture(self) -> None:
        with self._averaged():
            image = self.phase.picture()
        if image is not None:
            save_picture(image, self.folder / "pictures" / f"step-{self.state.step:06d}.png")

    def _save(self) -> None:
        if self.saved_at != self.state.step:
            save_checkpoint(self.folder, self.module, self.average, self.optimizers, self.state, self.settings)
            self.saved_at = self.state.step
        self.saved = self.clock()

    def _export(self, target: Path) -> None:
        """Export averaged weights under this name, which is there only once it is whole."""
        partial = target.with_name(f".{target.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        with self._averaged():
            self.phase.export(partial)
        shutil.rmtree(target, ignore_errors=True)
        partial.rename(target)

    def stop(self) -> None:
        """Save the state, unless an update was cut in two (then the last checkpoint stands)."""
        if self.whole:
            self._save()
            self.metrics.write("event", self.state.step, event="stopped")

    def finish(self) -> Path:
        """Validate, draw and save a last time, and export under the name `model` only once it is whole."""
        if self.saved_at != self.state.step:
            validated = _due(self.config.validate_every, self.state.step) or self.state.step in self.config.keep
            if self.config.validate_every and not validated:
                self._validate()
            if self.config.picture_every and not _due(self.config.picture_every, self.state.step):
                self._picture()
            self._save()
        self._export(model := self.folder / "model")
        self.metrics.write("event", self.state.step, event="finished", seconds=self.state.seconds)
        self.progress.say(f"finished after {self.state.step} steps in {clock_time(self.state.seconds)}: {model}")
        return model

    def close(self) -> None:
        self.progress.close()
        self.metrics.close()

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bfloat16")

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """Averaged weights, evaluation mode and no gradients, in the precision of training."""
        training = self.module.training
        self.module.eval()
        try:
            with self.average.swapped_in(), torch.no_grad(), self._autocast():
                yield
        finally:
            self.module.train(training)


def _due(every: int, step: int) -> bool:
    return every > 0 and step % every == 0


def _check_same(past: Mapping[str, Any], now: Mapping[str, Any], path: Path, prefix: str = "") -> None:
    """Refuse to resume under other settings, naming the first that differs."""
    for key in [*past, *(key for key in now if key not in past)]:
        name, old, new = f"{prefix}{key}", past.get(key), now.get(key)
        if prefix == "train." and key in FREE:
            continue
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            _check_same(old, new, path, f"{name}.")
        elif old != new:
            raise ValueError(
                f"{path}: was trained with {name}={old!r}, now it is {new!r}; "
                "set it back to resume, or train in a new folder"
            )
