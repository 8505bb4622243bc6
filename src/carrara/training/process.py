"""What a training run borrows from its process: signals, threads, random state, and one thread for the next batch."""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import re
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""No space left, quota exceeded, file too large for the limit of the process."""


class Ahead:
    """Batches by step, the next one prepared in a thread while this one is used. Exact, for a batch is a function."""

    def __init__(self, batch: Callable[[int], Any], prefetch: bool) -> None:
        self.batch = batch
        self.pool = ThreadPoolExecutor(1, thread_name_prefix="batch") if prefetch else None
        self.coming: tuple[int, Future[Any]] | None = None

    def get(self, step: int) -> Any:
        if self.pool is None:
            return self.batch(step)
        ready = self.coming[1] if self.coming and self.coming[0] == step else self.pool.submit(self.batch, step)
        result = ready.result()
        self.coming = (step + 1, self.pool.submit(self.batch, step + 1))
        return result

    def __enter__(self) -> Ahead:
        return self

    def __exit__(self, *_: object) -> None:
        if self.pool is not None:
            self.pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def stop_requests(once: bool = True) -> Iterator[threading.Event]:
    """An event that the first Ctrl-C or SIGTERM sets; a second one interrupts at once.

    once: false among other processes, to which launchers send several signals; none of them may leave a step alone.
    """
    stop = threading.Event()

    def request(*_: object) -> None:
        if stop.is_set() and once:
            raise KeyboardInterrupt
        stop.set()

    if threading.current_thread() is not threading.main_thread():  # Python delivers signals to the main thread only
        yield stop
        return
    past = {number: signal.signal(number, request) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in past.items():
            signal.signal(number, handler)


def keep_freed_memory() -> None:
    """Have the C library keep what a step frees for the next one, for the rest of the process.

    Otherwise blocks of this size go back to the system and return page by page, zeroed: 5% of a step on two cores.
    Nothing happens where the library is not glibc.
    """
    if platform.libc_ver()[0] == "glibc":
        library, trim_threshold, mmap_threshold = ctypes.CDLL(None), -1, -3  # numbers from malloc.h
        library.mallopt(mmap_threshold, 2**30)
        library.mallopt(trim_threshold, 2**31 - 1)


@contextmanager
def full_disk_told(folder: Path) -> Iterator[None]:
    """Turn what libraries say of a full disk into an OSError that names the folder and the last good checkpoint."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        code = error.errno if isinstance(error, OSError) and error.errno else None
        found = re.search(r"os error (\d+)", str(error))
        code = code or (int(found.group(1)) if found else None)
        if code not in _FULL:
            raise
        last = sorted(path.name for path in (folder / "checkpoints").glob("step-*") if path.suffix != ".partial")
        kept = f"the last good checkpoint is {last[-1]}" if last else "there is no checkpoint yet"
        raise OSError(
            f"{folder}: {os.strerror(code)} ({error}); {kept}: free some space and run the same command again"
        ) from error


@contextmanager
def thread_count(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def random_state_kept() -> Iterator[None]:
    """Every step seeds the global generators; the caller finds the CPU's as it was."""
    state = torch.get_rng_state()
    try:
        yield
    finally:
        torch.set_rng_state(state)
