"""Files side by side in processes of their own, none of which can take the others down.

Not standard: a process that crashes, or says nothing for too long, costs its file alone; it is replaced, a crash is
tried once more, and then the file is dropped with that reason. Results go through the disk, so their order does
not matter.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from carrara.core.config import to_dict
from carrara.data.prepare.item import give_up, prepare_item
from carrara.data.prepare.settings import Settings
from carrara.data.prepare.sources import Item

_TRIES = 2  # of a file whose process crashes
_LOOK = 0.5  # seconds between looks at the clock
# What a piece frees is kept for the next one, else the system zeroes it page by page (glibc; others do not read these).
_KEEP = {"MALLOC_MMAP_THRESHOLD_": str(32 << 20), "MALLOC_TRIM_THRESHOLD_": str(128 << 20)}
_ALONE = {"OPENBLAS_NUM_THREADS": "1"}  # a worker is one thread; NumPy's products would keep the other cores spinning

Answer = dict[str, Any]


def in_this_process(
    source: Path, work: Path, items: Sequence[Item], settings: Settings, done: Callable[[int], None]
) -> None:
    """One after the other, without protection from crashes."""
    for item in items:
        prepare_item(source, work, item, settings, lambda: None)
        done(item.number)


def in_processes(
    source: Path, work: Path, items: Sequence[Item], settings: Settings, done: Callable[[int], None], workers: int
) -> None:
    """On so many processes; `done` is called with the number of each item, in the order in which they end.

    Raises RuntimeError where results cannot be written, or a process fails for a reason that is not the file's.
    """
    waiting, tries = deque(items), Counter[int]()
    answers: queue.Queue[tuple[_Worker, Answer | None]] = queue.Queue()
    setup = {"source": str(source), "work": str(work), "settings": to_dict(settings)}
    team: list[_Worker] = []

    def give(worker: _Worker) -> None:
        if waiting:
            item = waiting.popleft()
            tries[item.number] += 1
            worker.take(item)

    def replace(worker: _Worker) -> None:
        team.remove(worker)
        worker.stop()
        if waiting:
            team.append(_Worker(setup, answers))
            give(team[-1])

    def settle(worker: _Worker, reason: str, sentence: str) -> None:
        assert worker.item is not None
        give_up(work, worker.item, reason, sentence)
        done(worker.item.number)

    try:
        for _ in range(min(workers, len(items))):
            team.append(_Worker(setup, answers))
            give(team[-1])
        while team:
            with contextlib.suppress(queue.Empty):
                worker, answer = answers.get(timeout=_LOOK)
                if worker in team:
                    worker.heard = time.monotonic()
                    if answer is None and worker.item is not None:  # it is gone
                        item = worker.item
                        if tries[item.number] < _TRIES:
                            waiting.appendleft(item)
                        else:
                            settle(worker, "crashed", f"its process ended with code {worker.process.wait()}")
                        replace(worker)
                    elif answer is not None and answer["said"] != "alive":
                        if answer["said"] == "failed":
                            raise RuntimeError(_failed(worker.item, answer))
                        done(answer["number"])
                        worker.item = None
                        give(worker)
                        if worker.item is None:
                            team.remove(worker)
                            worker.stop()
            for worker in team:
                if time.monotonic() - worker.heard > settings.stall:
                    settle(worker, "crashed", f"it stood still for {settings.stall:g} s")
                    replace(worker)
    finally:
        for worker in team:
            worker.stop()


def _failed(item: Item | None, answer: Answer) -> str:
    where = item.source if item else answer["number"]
    if answer["disk"] != "0":
        return f"{where}: results cannot be written: {os.strerror(int(answer['disk']))}; run the same command again"
    return f"{where}: {answer['error']}; this is an error of the program, not of the file"


class _Worker:
    """A process, and a thread that listens to it."""

    def __init__(self, setup: dict[str, Any], answers: queue.Queue[tuple[_Worker, Answer | None]]) -> None:
        self.item: Item | None = None
        self.heard = time.monotonic()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "carrara.data.prepare.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**_KEEP, **_ALONE, **os.environ},
            start_new_session=True,  # Ctrl-C comes to the parent, which ends them in order
        )
        self._send(setup)
        threading.Thread(target=self._listen, args=(answers,), daemon=True).start()

    def take(self, item: Item) -> None:
        """Begin with an item."""
        self.item, self.heard = item, time.monotonic()
        self._send(item.plain())

    def stop(self) -> None:
        """End it, whatever it does."""
        self.process.kill()
        with contextlib.suppress(OSError):
            if self.process.stdin:
                self.process.stdin.close()
        self.process.wait()

    def _send(self, content: dict[str, Any]) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):  # a process that is gone is noticed by its listener
            self.process.stdin.write(json.dumps(content) + "\n")
            self.process.stdin.flush()

    def _listen(self, answers: queue.Queue[tuple[_Worker, Answer | None]]) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            for line in lines:
                with contextlib.suppress(ValueError):
                    answers.put((self, json.loads(line)))
        answers.put((self, None))
