"""Strict reading and writing of frozen dataclasses, and the nearest name for a wrong one."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, fields, is_dataclass
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from carrara.core.files import replace_file

T = TypeVar("T")


def nearest(name: str, known: Iterable[str]) -> str:
    """A remedy for an unknown name: the closest known ones, else all of them."""
    options = sorted(known)
    close = difflib.get_close_matches(name, options, n=3, cutoff=0.6)
    return f"did you mean {' or '.join(close)}?" if close else f"known: {', '.join(options)}"


def choose(kind: str, name: str, options: Mapping[str, T]) -> T:
    """The option of that name. Raises ValueError that names the nearest one."""
    if name not in options:
        raise ValueError(f"unknown {kind} {name!r}; {nearest(name, options)}")
    return options[name]


def from_dict(cls: type[T], values: Mapping[str, Any], where: str) -> T:
    """Build a dataclass, nested ones and tuples included, from what JSON gives.

    Raises ValueError, where `where` says in what, for a key that is unknown or missing and for a value of another type.
    """
    if not is_dataclass(cls):
        raise TypeError(f"{cls!r} is not a dataclass")
    hints = _hints(cls)
    known = {field.name for field in fields(cls)}
    for key in values:
        if key not in known:
            raise ValueError(f"{where}: no setting {key!r}; {nearest(key, known)}")
    built: dict[str, Any] = {}
    for key, value in values.items():
        kind = hints[key]
        if isinstance(kind, type) and is_dataclass(kind) and isinstance(value, Mapping):
            value = from_dict(kind, value, f"{where}.{key}")
        elif isinstance(value, list):
            value = tuple(tuple(item) if isinstance(item, list) else item for item in value)
        if not _fits(value, kind):
            raise ValueError(f"{where}: {key}={value!r}: expected {getattr(kind, '__name__', kind)}")
        built[key] = value
    try:
        return cls(**built)
    except TypeError as error:
        raise ValueError(f"{where}: {error}") from None


@cache
def _hints(cls: type) -> dict[str, Any]:
    """The types of a class's fields; resolving them costs more than building the value."""
    return get_type_hints(cls)


def _fits(value: Any, kind: Any) -> bool:
    """Whether a value is of a plain type, an optional one or a tuple of them; other types check themselves."""
    parts = get_args(kind)
    if get_origin(kind) in (Union, UnionType):
        return any(_fits(value, part) for part in parts)
    if get_origin(kind) is tuple:
        if not isinstance(value, tuple):
            return False
        each = parts[:1] * len(value) if parts[-1] is Ellipsis else parts
        return len(each) == len(value) and all(map(_fits, value, each))
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return type(value) is kind if kind in (int, bool, str, NoneType) else True


def to_dict(value: Any) -> dict[str, Any]:
    """A dataclass as plain JSON values."""
    return json.loads(json.dumps(asdict(value)))


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object, with an error that names the file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a JSON object, found {type(content).__name__}")
    return content


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON object with a stable layout; the file is the old one or the new one, whenever writing is stopped."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    replace_file(path, lambda place: place.write_text(text, encoding="utf-8"))


def at_least(settings: object, least: int, *names: str) -> None:
    """Refuse settings below their least value, naming the first."""
    for name in names:
        if getattr(settings, name) < least:
            raise ValueError(f"{name}={getattr(settings, name)}: must be at least {least}")
