"""A process that prepares files: JSON lines in, JSON lines out. Started by `pool.py` as `python -m`.

The first line says where and how, each other one is a file. Out come "alive" at most once a second, and "done". It ends
at once when its input ends, also in the middle of a file: nobody is left to ask for it.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
import time
from pathlib import Path
from typing import Any


def main() -> None:
    """Read tasks until the input ends."""
    from carrara.core.config import from_dict
    from carrara.data.prepare.item import prepare_item
    from carrara.data.prepare.settings import Settings
    from carrara.data.prepare.sources import Item

    answers = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(2, 1)  # what a library prints is no answer
    lines: queue.Queue[dict[str, Any]] = queue.Queue()
    threading.Thread(target=_read, args=(lines,), daemon=True).start()
    setup = lines.get()
    settings = from_dict(Settings, setup["settings"], "settings")
    said = 0.0

    def answer(word: str, number: int, **more: str) -> None:
        answers.write(json.dumps({"said": word, "number": number, **more}) + "\n")
        answers.flush()

    while True:
        item = from_dict(Item, lines.get(), "item")

        def alive(number: int = item.number) -> None:
            nonlocal said
            if (now := time.monotonic()) - said >= 1:
                said = now
                answer("alive", number)

        answer("alive", item.number)
        try:
            prepare_item(Path(setup["source"]), Path(setup["work"]), item, settings, alive)
        except Exception as error:  # whatever it is, the others go on, and the parent decides
            answer("failed", item.number, error=f"{type(error).__name__}: {error}", disk=str(_disk(error)))
        else:
            answer("done", item.number)


def _disk(error: BaseException) -> int:
    """The number of the system's error where the place to write to is at fault, else 0."""
    return error.errno or 0 if isinstance(error, OSError) else 0


def _read(lines: queue.Queue[dict[str, Any]]) -> None:
    for line in sys.stdin:
        lines.put(json.loads(line))
    os._exit(0)


if __name__ == "__main__":
    main()
