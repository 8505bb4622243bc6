"""How much a training took, counted: what systems are compared at."""

from __future__ import annotations

import json
from pathlib import Path

from carrara.core.config import write_json
from carrara.training.metrics import read_metrics


def write_compute(folder: Path, stage: str, step_flops: int) -> None:
    """Write and print `compute.json` of a finished training folder: FLOP of a step, steps, FLOP of all."""
    steps = max(line["step"] for line in read_metrics(folder / "metrics.jsonl"))
    compute = {"stage": stage, "step_flops": step_flops, "steps": steps, "flops": steps * step_flops}
    write_json(folder / "compute.json", compute)
    print(json.dumps(compute))
