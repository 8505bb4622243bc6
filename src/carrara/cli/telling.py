"""What commands say beside their results, on stderr."""

from __future__ import annotations

import sys


def tell(line: str) -> None:
    print(f"carrara: {line}", file=sys.stderr)


def one_line(error: BaseException) -> str:
    """An error's message as one line, or its kind where it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__
