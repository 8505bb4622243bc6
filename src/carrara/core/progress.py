"""Progress on the terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress_bar(what: str, shown: bool | None = None) -> Iterator[Callable[[int, int], None]]:
    """A function of (done, total) that shows them on stderr with the time left; None shows on a terminal only."""
    from tqdm import tqdm

    with tqdm(desc=what, disable=None if shown is None else not shown, leave=False) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield show
