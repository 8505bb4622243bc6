"""Files over the machines of a Ray cluster that share the file system. An extra: `pip install 'carrara[ray]'`.

Each task is a batch of files in one process of `pool.py`, so that what holds on one machine (crashes, stalls, the same
results whatever the order) holds here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from carrara.core.config import from_dict, to_dict
from carrara.data.prepare.settings import Settings
from carrara.data.prepare.sources import Item

_BATCH = 16  # files of a task, at most


def check_ray() -> Any:
    """The module. Raises ValueError where it is not installed."""
    try:
        import ray
    except ImportError:
        raise ValueError("--ray: Ray is not installed; pip install 'carrara[ray]', or leave the option out") from None
    return ray


def on_ray(
    source: Path, work: Path, items: Sequence[Item], settings: Settings, done: Callable[[int], None], address: str
) -> None:
    """On every core of the cluster at `address`; "local" starts one on this machine.

    Raises RuntimeError where the cluster cannot be reached or a task fails.
    """
    ray = check_ray()
    if not items:
        return
    try:
        ray.init(address=None if address == "local" else address, log_to_driver=False, include_dashboard=False)
    except (ConnectionError, RuntimeError, ValueError, TypeError) as error:
        raise RuntimeError(f"--ray {address}: no cluster can be reached ({error})") from None
    try:
        task = ray.remote(num_cpus=1, max_retries=1)(_batch)
        size = max(1, min(_BATCH, len(items) // max(1, int(ray.cluster_resources().get("CPU", 1)))))
        batches = [[item.plain() for item in items[first : first + size]] for first in range(0, len(items), size)]
        running = [task.remote(str(source), str(work), batch, to_dict(settings)) for batch in batches]
        while running:
            ready, running = ray.wait(running, num_returns=1)
            for number in ray.get(ready[0]):
                done(number)
    except ray.exceptions.RayError as error:
        raise RuntimeError(f"a task on the cluster failed: {' '.join(str(error).split())[-300:]}") from None
    finally:
        ray.shutdown()


def _batch(source: str, work: str, items: list[dict[str, Any]], settings: dict[str, Any]) -> list[int]:
    from carrara.data.prepare.pool import in_processes

    ended: list[int] = []
    listed = [from_dict(Item, item, "item") for item in items]
    in_processes(Path(source), Path(work), listed, from_dict(Settings, settings, "settings"), ended.append, 1)
    return ended
