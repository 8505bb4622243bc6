"""What a run tells: `metrics.jsonl` for programs, a progress line for people, sample sheets for eyes.

Every line of the file is one JSON object with a "kind": "train" (means since the line before), "validation", or
"event" (started, resumed, skipped, decay, stopped, finished).
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, TextIO

from PIL import Image
from torch import Tensor


class MetricsFile:
    """Appends lines to a file. Opening it for a resumed run drops what lies beyond the step that is resumed from.

    Without a path nothing is written: of several processes one tells.
    """

    def __init__(self, path: Path | None, step: int) -> None:
        self._file: TextIO | None = None
        if path is None:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            kept = [line for line in read_metrics(path) if line["step"] <= step] if step else []
            partial = path.with_suffix(".partial")
            partial.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
            partial.replace(path)
        self._file = path.open("a", encoding="utf-8", buffering=1)

    def write(self, kind: str, step: int, **values: Any) -> None:
        """Add one line; numbers that JSON cannot say (not finite) become null."""
        if self._file is None:
            return
        self._file.write(json.dumps({"kind": kind, "step": step, **_plain(values)}, allow_nan=False) + "\n")

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics file; a last one that a crash cut short is left out."""
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            continue
        if isinstance(line, dict) and "step" in line:
            lines.append(line)
    return lines


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, float):
        return float(f"{value:.9g}") if math.isfinite(value) else None
    return value


class Window:
    """Means of the loss parts, and counts, since the last line."""

    def __init__(self) -> None:
        self.sums: dict[str, float] = {}
        self.steps = self.samples = self.skipped = 0

    def add(self, parts: Mapping[str, float], samples: int) -> None:
        self.steps += 1
        self.samples += samples
        for name, value in parts.items():
            self.sums[name] = self.sums.get(name, 0.0) + value

    def skip(self, samples: int) -> None:
        self.skipped += 1
        self.samples += samples

    def means(self) -> dict[str, float]:
        return {name: total / self.steps for name, total in self.sums.items()}


class Progress:
    """One line that rewrites itself on a terminal; elsewhere plain lines, no more than one in ten seconds.

    quiet: nothing at all, for all but one of several processes.
    """

    def __init__(self, out: TextIO | None = None, every: float = 10.0, quiet: bool = False) -> None:
        self.out = out or sys.stderr
        self.quiet = quiet
        self.live = self.out.isatty()
        self.every = every
        self._last = -math.inf
        self._open = False

    def show(self, line: str, now: float) -> None:
        """Show the present state; `now` in seconds decides whether a plain line is due."""
        if self.quiet:
            return
        if self.live:
            self.out.write(f"\r\x1b[K{line}")
            self._open = True
        elif now - self._last >= self.every:
            self._last = now
            self.out.write(line + "\n")
        self.out.flush()

    def say(self, line: str) -> None:
        """A line that stays."""
        if self.quiet:
            return
        self.out.write(("\r\x1b[K" if self._open else "") + line + "\n")
        self._open = False
        self.out.flush()

    def close(self) -> None:
        if self._open:
            self.out.write("\n")
            self._open = False


def clock_time(seconds: float) -> str:
    """A duration as people say it: 1h05m, 12m30s, 8s."""
    whole = round(seconds)
    hours, minutes = whole // 3600, whole // 60 % 60
    if hours:
        return f"{hours}h{minutes:02d}m"
    return f"{minutes}m{whole % 60:02d}s" if minutes else f"{whole}s"


def sample_count(batch: Any) -> int:
    """How many clips a batch holds: the first axis of the first tensor found in it (1 if there is none)."""
    if isinstance(batch, Tensor):
        return batch.shape[0] if batch.ndim else 1
    return next((int(tensor.shape[0]) for tensor in _tensors(batch) if tensor.ndim), 1)


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if is_dataclass(value) and not isinstance(value, type):
        value = [getattr(value, field.name) for field in fields(value)]
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return [tensor for item in value for tensor in _tensors(item)]
    return []


def save_picture(image: Tensor, path: Path) -> None:
    """Write an image `h w 3` uint8 as PNG, under its name only when it is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    Image.fromarray(image.cpu().contiguous().numpy()).save(partial, format="PNG")
    partial.replace(path)
