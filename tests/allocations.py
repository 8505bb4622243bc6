"""Bytes of tensors at the worst moment of a run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from torch.profiler import ProfilerActivity, profile


def peak(run: Callable[[], object], folder: Path) -> int:
    """Bytes of tensors at the worst moment of a run, above what was there before it, by torch's own allocator."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        run()
    profiled.export_chrome_trace(str(folder / "trace.json"))
    events = json.loads((folder / "trace.json").read_text())["traceEvents"]
    found = sorted((event["ts"], event["args"]) for event in events if event["name"] == "[memory]")
    totals = [arguments["Total Allocated"] for _, arguments in found]
    return max(totals) - (totals[0] - found[0][1]["Bytes"])
