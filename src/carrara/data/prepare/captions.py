"""Captions as people keep them: metadata files, text files beside the clips, text and JSON in tars.

A metadata file that cannot be right is an error before anything is decoded; a text file that is none costs its
clip alone.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

from carrara.core.config import nearest

METADATA = ("metadata.jsonl", "metadata.csv")
COLUMNS = ("caption", "text")
_LICENCES = ("licence", "license")
_LONGEST = 20_000  # characters of a caption
_LARGEST = 1 << 20  # bytes of a text or JSON file


@dataclass(frozen=True)
class Row:
    """What a metadata file says of a file. outside: its path leads out of the folder."""

    file: str
    line: int
    caption: str | None
    licence: str | None
    outside: bool = False


def clean(text: str | None) -> str | None:
    """One line; nothing for what is empty."""
    return " ".join(text.split()) or None if text else None


def read_metadata(folder: Path, files: Iterable[str], column: str) -> dict[str, Row]:
    """Rows by the path of the file they name, below the folder.

    Raises ValueError, with file and line, for what is no JSON or CSV or no UTF-8, for a row without a file name, a
    second row of a file, a caption that is no text, and where no row has the asked column.
    """
    rows: dict[str, Row] = {}
    places = set()
    columns: set[str] = set()
    for name in files:
        path = folder / name
        where = os.path.dirname(name)
        if where in places:
            raise ValueError(f"{folder / where}: holds both {' and '.join(METADATA)}; keep one")
        places.add(where)
        for line, content in _rows(path):
            columns |= set(content)
            row = _row(path, name, line, content, column)
            said = content["file_name"]
            target = os.path.normpath(os.path.join(where, said)).replace(os.sep, "/")
            if os.path.isabs(said) or target == ".." or target.startswith("../"):
                target, row = said, replace(row, outside=True)
            if target in rows:
                raise ValueError(f"{path}: line {line}: {said!r} has a row already, line {rows[target].line}; keep one")
            rows[target] = row
    if column and rows and column not in columns:
        raise ValueError(
            f"caption column {column!r}: no metadata file has it; {nearest(column, columns - {'file_name'})}"
        )
    return rows


def _row(path: Path, name: str, line: int, content: dict[str, Any], column: str) -> Row:
    said = content.get("file_name")
    if not isinstance(said, str) or not said.strip() or "\0" in said:
        raise ValueError(f"{path}: line {line}: no file_name; every row names its file, relative to this one")
    try:
        return Row(name.replace(os.sep, "/"), line, _caption(content, column), _licence(content))
    except ValueError as error:
        raise ValueError(f"{path}: line {line}: {error}") from None


def _caption(content: dict[str, Any], column: str) -> str | None:
    for name in [column] if column else COLUMNS:
        value = content.get(name)
        if value is None:
            continue
        if not isinstance(value, str):
            raise ValueError(f"{name} is {type(value).__name__}, expected text")
        return clean(_checked(value))
    return None


def _licence(content: dict[str, Any]) -> str | None:
    for name in _LICENCES:
        if isinstance(value := content.get(name), str) and value.strip():
            return clean(_checked(value))
    return None


def _checked(text: str) -> str:
    if len(text) > _LONGEST:
        raise ValueError(f"a caption of {len(text)} characters; at most {_LONGEST} are read")
    if any(0xD800 <= ord(character) <= 0xDFFF for character in text):
        raise ValueError("a caption holds bytes that are no text; save it as UTF-8")
    return text


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line, columns) of a metadata file, line by line."""
    with path.open("rb") as file:
        if path.name.endswith(".csv"):
            yield from _csv_rows(path, file)
            return
        for line, packed in enumerate(file, 1):
            text = _text(path, line, packed)
            if not text.strip():
                continue
            try:
                content = json.loads(text)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{path}: line {line}: not valid JSON ({error})") from None
            if not isinstance(content, dict):
                raise ValueError(
                    f"{path}: line {line}: expected an object with file_name, found {type(content).__name__}"
                )
            yield line, content


def _csv_rows(path: Path, file: BinaryIO) -> Iterator[tuple[int, dict[str, Any]]]:
    lines = (_text(path, line, packed) for line, packed in enumerate(file, 1))
    reader = csv.DictReader(lines, strict=True)
    try:
        if "file_name" not in (reader.fieldnames or ()):
            said = ", ".join(reader.fieldnames or ()) or "none"
            raise ValueError(f"{path}: line 1: no column file_name; its columns: {said}")
        for content in reader:
            if None in content or None in content.values():
                raise ValueError(f"{path}: line {reader.line_num}: not as many columns as the first line has")
            yield reader.line_num, {**content}
    except csv.Error as error:
        raise ValueError(f"{path}: line {reader.line_num}: not valid CSV ({error})") from None


def _text(path: Path, line: int, packed: bytes) -> str:
    try:
        return packed.decode("utf-8-sig" if line == 1 else "utf-8")
    except UnicodeDecodeError:
        raise ValueError(f"{path}: line {line}: not UTF-8; save the file as UTF-8") from None


def find_caption_file(folder: Path, name: str) -> str | None:
    """The text of the `.txt` beside a file, if there is one. Raises ValueError where it is no text."""
    path = folder / f"{os.path.splitext(name)[0]}.txt"
    if not path.is_file():
        return None
    if path.is_symlink() and not path.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"{path.name} is a link that leads out of the folder")
    with path.open("rb") as file:
        return clean(_checked(_small_text(path.name, file, path.stat().st_size)))


def _small_text(name: str, file: BinaryIO, size: int) -> str:
    if size > _LARGEST:
        raise ValueError(f"{name} has {size} bytes; a caption has at most {_LARGEST}")
    try:
        return file.read().decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{name} is not UTF-8; save it as UTF-8") from None


@dataclass(frozen=True)
class Caption:
    """What the members of a tar say of a sample; a text file goes before JSON. error: why it cannot be read."""

    text: str | None = None
    licence: str | None = None
    error: str = ""
    plain: bool = False

    def join(self, suffix: str, file: Any, size: int, column: str) -> Caption:
        """With another member of the sample."""
        try:
            text = _small_text(f"its {suffix} member", io.BytesIO(file.read(_LARGEST + 1)), size)
            if suffix != ".json":
                return replace(self, text=clean(_checked(text)), plain=True)
            content = json.loads(text)
            if not isinstance(content, dict):
                raise ValueError("its .json member is no object")
            said = self.text if self.plain else _caption(content, column)
            return replace(self, text=said, licence=_licence(content))
        except (ValueError, RecursionError) as error:
            return replace(self, error=str(error))
