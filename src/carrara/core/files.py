"""Files: whether they can be written to a place, asked before the work that would fill them; written whole or not at
all; and what is in one."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path


def check_folder(folder: str | Path, file: str | Path | None = None) -> None:
    """Refuse a folder, there already or not, that nothing could be written to; leaves nothing behind.

    file: what the error names, if not the folder itself. Raises ValueError.
    """
    named, folder = file or folder, Path(folder).absolute()
    try:
        while not folder.exists():
            folder = folder.parent
        if not folder.is_dir():
            raise ValueError(f"{named}: {folder} is a file, not a folder; choose another path")
        with tempfile.TemporaryFile(dir=folder):  # asks the file system itself: permission bits say little to root
            pass
    except OSError as error:
        raise ValueError(f"{named}: cannot be written ({error.strerror}); choose another path") from None


def check_file(path: str | Path) -> Path:
    """The path of a file that is there. Raises ValueError for a folder and for what is not there or cannot be."""
    path = Path(path)
    try:
        if path.is_file():
            return path
        kind = "is a folder, not a file" if path.is_dir() else "no such file"
    except (OSError, ValueError):  # a name that no file can have
        kind = "no such file"
    raise ValueError(f"{path}: {kind}")


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a file beside this one, which then takes its place: it is the old one or the new one whenever
    writing stops, and nothing is left of what fails."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        write(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def sha256(path: Path) -> str:
    """Of a file's contents, as 64 hexadecimal digits; read piece by piece, whatever its size."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
