"""How `inference.py` measures: alternating medians, the rates of the machine, the memory of a process."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import conv3d


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(run: Callable[[], object], device: torch.device) -> float:
    synchronise(device)
    begin = time.perf_counter()
    run()
    synchronise(device)
    return time.perf_counter() - begin


def alternate(runs: Sequence[Callable[[], object]], repeats: int, device: torch.device) -> list[float]:
    """The median seconds of each, run in turn after one round that warms up, so that all see the same disturbances."""
    taken = [[seconds(run, device) for run in runs] for _ in range(repeats + 1)][1:]
    return [statistics.median(column) for column in zip(*taken)]


def matrix_rate(dtype: torch.dtype, device: torch.device) -> float:
    """Operations a second of large square products."""
    side = 8192 if device.type == "cuda" else 2048
    a = torch.randn(side, side, device=device).to(dtype)
    return 2 * side**3 / alternate([lambda: a @ a], 7, device)[0]


def convolution_rate(dtype: torch.dtype, device: torch.device) -> float:
    """Operations a second of a 3 x 3 x 3 convolution, 192 channels to 192, of 4 x 64 x 64, channels last."""
    layout = torch.channels_last_3d
    x = torch.randn(1, 192, 4, 64, 64, device=device).to(dtype).to(memory_format=layout)
    weight = torch.randn(192, 192, 3, 3, 3, device=device).to(dtype).to(memory_format=layout)
    taken = alternate([lambda: conv3d(x, weight, padding=1)], 5, device)[0]
    return 2 * 192 * 192 * 27 * 4 * 64 * 64 / taken


def held_bytes() -> int:
    """What this process holds now; `peak_bytes` counts from here on (Linux)."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return _status("VmRSS")


def peak_bytes() -> int:
    """The most that it has held since."""
    return _status("VmHWM")


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def in_process(script: str, arguments: Sequence[str]) -> dict[str, Any]:
    """Run a script that prints JSON on its last line, in a process of its own."""
    done = subprocess.run([sys.executable, script, *arguments], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{script} {' '.join(arguments)} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])
