"""The training loop: one for every trainable part, behind the `Phase` protocol.

Not standard: a run's randomness is a function of (seed, step) and its learning rate of (step, decay), so a checkpoint
is only weights, averages, optimizer state and a few numbers, and a resumed run repeats the uninterrupted one bit for
bit (at an equal thread count). A step whose loss or gradient is not finite is skipped before it touches anything.
Any number of processes run this same code: what decides a step is agreed on (`parallel.py`), what is theirs of the
weights and of a batch is said elsewhere (`sharding.py`, `pieces.py`), and the first of them writes.
"""

from __future__ import annotations

import math
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import torch
from torch import Tensor, nn

from carrara.core.config import to_dict, write_json
from carrara.core.types import Phase
from carrara.nn.loops import compiled_loops
from carrara.training.checkpoint import (
    TrainState,
    checkpoints,
    load_checkpoint,
    load_ema,
    read_state,
    remove_partial,
    save_checkpoint,
)
from carrara.training.config import TrainConfig, check_same
from carrara.training.metrics import MetricsFile, Progress, Window, clock_time, sample_count, save_picture
from carrara.training.muon import muon_of
from carrara.training.optim import Average, Optimizers, block_matrices, ema_decay
from carrara.training.parallel import Team, join, others_watched
from carrara.training.pieces import Piece, Pieces
from carrara.training.process import (
    Ahead,
    full_disk_told,
    keep_freed_memory,
    random_state_kept,
    stop_requests,
    thread_count,
)
from carrara.training.schedule import decay_due, rate, seconds_left
from carrara.training.sharding import Gathered, spread

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
    JSON values that define the run besides `config` (the recipe): a resumed run must have the same, on any number of
    processes. Raises ValueError for a checkpoint of other settings or a damaged one, Stopped after Ctrl-C or SIGTERM,
    FloatingPointError after `config.max_skips` steps in a row that were not finite, OSError for a full disk, Lost where
    another process of the run has ended. Whatever is raised, the last checkpoint stands.
    """
    keep_freed_memory()
    team = join(config.parallel)
    told, watched = full_disk_told(folder), others_watched(team)
    loops = compiled_loops(config.compile and _on_cpu(phase.module))
    with (
        thread_count(config.threads),
        random_state_kept(),
        stop_requests(once=team.alone) as stop,
        told,
        watched,
        loops,
    ):
        run = _Run(phase, config, folder, settings or {}, Progress(out, quiet=not team.first), clock, team)
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
        team: Team,
    ) -> None:
        self.phase, self.config, self.folder, self.progress = phase, config, folder, progress
        self.team, self.clock = team, team.clock(clock)
        self.settings = {"train": to_dict(config), "recipe": dict(settings)}
        self.module: nn.Module = phase.module.train()  # read from a folder, it may still be as it evaluates
        self.pieces = Pieces.of(config.pieces, team.share, team.shares)
        if team.sequence > 1 and getattr(phase, "content_head", None) is not None:
            raise ValueError(
                f"parallel.sequence={team.sequence}: a content head looks at all tokens at once; "
                "set alignment.weight to 0 or parallel.sequence to 1"
            )
        if config.compile:
            _compile(self.module, team)
        self.held = held = spread(self.module, team, config)
        self.device = next(iter(held.local.values())).device
        self.average = Average(held.local, in_place=bool(held.rows))
        is_matrix = getattr(phase, "is_matrix", block_matrices(self.module))
        self.optimizers = Optimizers(
            held.local, lambda name, _: is_matrix(name, held.parameters[name]), config, muon_of(held)
        )
        self.generator = torch.Generator(self.device)
        self.state = TrainState()
        self.saved_at: int | None = None
        self.stepped = False  # whether anything was trained here
        self.agreed = False  # whether all processes stop after the same step
        self.whole = True  # false while an update is under way: such a state is never saved
        found = checkpoints(folder)
        if found:
            self.state, past = read_state(found[-1])
            check_same(past, self.settings, found[-1])
            self._check_length()
            load_checkpoint(found[-1], held, self.average, self.optimizers)
            self.saved_at = self.state.step
        team.wait()
        if team.first:
            remove_partial(folder)
            write_json(folder / "config.json", self.settings)
        self.metrics = MetricsFile(folder / "metrics.jsonl" if team.first else None, self.state.step)
        self.metrics.write("event", self.state.step, event="resumed" if found else "started")
        self.progress.say(f"{'resuming after' if found else 'training from'} step {self.state.step} in {folder}")
        self.window = Window()
        self.began = self.logged = self.saved = self.clock()

    def go(self, stop: threading.Event) -> None:
        """Step until the decay has ended."""
        self.logged = self.saved = self.clock()
        self.began = self.logged - self.state.seconds
        with Ahead(lambda step: self.pieces.of_step(self.phase, step), self.config.prefetch) as ahead:
            while not self._ended():
                pieces = ahead.get(self.state.step)
                parts, norm = self._gradients(pieces)
                self.stepped = True
                samples = sum(sample_count(piece.batch) for piece in pieces) * self.team.shares
                if all(math.isfinite(value) for value in (norm, *parts.values())):
                    self._update(norm)
                    self.window.add({**parts, "gradient_norm": norm}, samples)
                else:
                    self._skip(parts, norm, samples)
                self._report()
                if self.team.any(stop.is_set()):
                    self.agreed = True
                    raise KeyboardInterrupt

    def _check_length(self) -> None:
        """Refuse a length that has passed before the rate began to fall: its model would never have been made. And one
        that is shorter than where a rate that falls already will end: it would be passed over."""
        fixed, wanted = self.state.decay, self.config.steps
        if fixed is not None and wanted is not None and max(wanted, self.state.step) < fixed.end:
            raise ValueError(
                f"{self.folder}: asked for {wanted} steps in all, and the rate has been falling since step "
                f"{fixed.start}, to 0 at step {fixed.end}, where this run ends; ask for that or leave steps out"
            )
        due = self.state.decay or decay_due(self.config, self.state.step, self.state.seconds)
        if due is not None and due.end < self.state.step:
            raise ValueError(
                f"{self.folder}: asked for {due.end} steps in all, and {self.state.step} are done at a rate that "
                f"has not begun to fall; ask for more than {self.state.step}, or give another folder"
            )

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

    def _gradients(self, pieces: Sequence[Piece]) -> tuple[dict[str, float], float]:
        """Leave gradients in the local weights; returns the loss parts, which are means over all pieces, and the
        gradients' norm (one wait for a GPU)."""
        self.held.zero_gradients()
        names: list[str] = []
        total: Tensor | None = None
        for piece in pieces:
            seed = self.pieces.seed(self.config.seed, self.state.step, piece.number)
            torch.manual_seed(seed)  # for what draws from the global generator, such as dropout
            with self._autocast():
                parts = self.phase.loss(piece.batch, self.state.step, self.generator.manual_seed(seed))
            share = piece.weight / len(pieces)
            (parts["loss"] if share == 1 else parts["loss"] * share).backward()
            names = list(parts)
            values = torch.stack([v.detach().float().to(self.device) for v in parts.values()]) * share
            total = values if total is None else total + values
        assert total is not None
        self.held.take_gradients()
        norm = self.held.norm()
        *means, length = torch.cat((self.team.mean(total), norm.detach().float().to(self.device)[None])).tolist()
        return dict(zip(names, means)), length

    def _update(self, norm: float) -> None:
        state = self.state
        self.whole = False
        if self.config.clip and norm > self.config.clip:
            torch._foreach_mul_(
                [p.grad for p in self.held.local.values() if p.grad is not None], self.config.clip / norm
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
        if image is not None and self.team.first:
            save_picture(image, self.folder / "pictures" / f"step-{self.state.step:06d}.png")

    def _save(self) -> None:
        if self.saved_at != self.state.step:
            save_checkpoint(self.folder, self.held, self.average, self.optimizers, self.state, self.settings)
            self.saved_at = self.state.step
        self.saved = self.clock()

    def _export(self, target: Path) -> None:
        """Export averaged weights under this name, which is there only once it is whole."""
        with self._averaged(), Gathered(self.held):
            if self.team.first:
                partial = target.with_name(f".{target.name}.partial")
                shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir(parents=True)
                try:
                    self.phase.export(partial)
                    shutil.rmtree(target, ignore_errors=True)
                    partial.rename(target)
                finally:
                    shutil.rmtree(partial, ignore_errors=True)
        for buffer in self.module.buffers():  # some phases measure what they export
            self.team.copy_first(buffer)

    def stop(self) -> None:
        """Save the state, unless an update was cut in two or others do not know of it (the last checkpoint stands)."""
        if self.whole and (self.team.alone or self.agreed):
            self._save()
            self.metrics.write("event", self.state.step, event="stopped")

    def finish(self) -> Path:
        """Validate, draw and save a last time, and export under the name `model` only once it is whole."""
        if self.stepped:  # else it was finished before
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


def _compile(module: nn.Module, team: Team) -> None:
    """Let the networks of a phase that can run compiled do so: on a CPU `compiled_loops` does it while they train.

    Raises ValueError where none can.
    """
    found = [part for part in module.modules() if hasattr(part, "compile_blocks")]
    if not found:
        raise ValueError("compile=True: this phase trains nothing that is compiled; leave it out")
    if _on_cpu(module):
        return
    if not team.alone:
        raise ValueError("compile=True: blocks are compiled on one process only; leave it out on several")
    for part in found:
        part.compile_blocks()  # type: ignore[operator]


def _on_cpu(module: nn.Module) -> bool:
    return all(parameter.is_cpu for parameter in module.parameters())


def _due(every: int, step: int) -> bool:
    return every > 0 and step % every == 0
