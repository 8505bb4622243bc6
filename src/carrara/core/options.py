"""Command-line options as frozen dataclasses, through tyro, with errors of one line."""

from __future__ import annotations

import contextlib
import io
import re
from typing import Annotated, Any, TypeVar

import tyro
from tyro.conf import arg

from carrara.core.config import nearest

T = TypeVar("T")


def option(metavar: str | None = None, name: str | None = None, aliases: list[str] | None = None) -> Any:
    """How an option is called and shown. Help says its default only where there is one: not "None", "False" or ""."""
    return arg(name=name, metavar=metavar, aliases=aliases, help_behavior_hint=_default)


def _default(shown: str) -> str:
    return "" if shown in ("None", "False", "") else f"(default: {shown})"


Whole = Annotated[int | None, option("INT")]
Number = Annotated[float | None, option("NUMBER")]
Text = Annotated[str | None, option("TEXT")]
Flag = Annotated[bool, option()]


def parse(kind: type[T], args: list[str], program: str, default: T | None = None) -> T:
    """Options as a frozen dataclass. Raises ValueError, one line, for what tyro would draw a box about."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return _tyro(kind, args, program, default)
    except SystemExit as stop:
        if not stop.code:
            raise
    sentence = _sentence(said.getvalue(), args, kind, program, default)
    raise ValueError(sentence if sentence.endswith("?") else f"{sentence}; see {program} --help")


def _tyro(kind: type[T], args: list[str], program: str, default: T | None) -> T:
    extra: dict[str, Any] = {} if default is None else {"default": default}
    return tyro.cli(kind, args=args, prog=program, config=(tyro.conf.FlagCreatePairsOff,), **extra)


def _sentence(box: str, args: list[str], kind: type[Any], program: str, default: Any) -> str:
    """What tyro's box of an error says, as one sentence."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", box)
    lines = [line.strip(" │") for line in plain.splitlines()[1:]]  # without the title; lines of "-" where no UTF-8
    while lines and not lines[0].strip("─-"):
        lines = lines[1:]
    rule = next((index for index, line in enumerate(lines) if not line.strip("─-╰╯")), len(lines))
    text = " ".join(lines[:rule])
    if match := re.search(r"Unrecognized options: ([^\s,]+)", text):
        token = match[1].split("=")[0]
        if not token.startswith("-"):
            return f"unexpected {token!r}: give arguments before options, and each only once"
        if text_like := [a for a in args if a.startswith(token) and " " in a.split("=")[0]]:
            return f"{text_like[0]!r} looks like an option: give a text that begins with - after --, behind all options"
        said = io.StringIO()
        with contextlib.suppress(SystemExit), contextlib.redirect_stdout(said):
            _tyro(kind, ["--help"], program, default)
        flags = set(re.findall(r"(?<![\w-])--[a-z][\w.-]*", said.getvalue()))
        return f"unknown option {token}; {nearest(token, flags)}"
    several = r"Error parsing (--\S+): (?:no type matching {None}\|{.* from|Could not parse arguments) \[(.*?)\]"
    if match := re.search(several, text):  # the option's own words for its values stand in the help below the rule
        values = next((line for line in lines[rule:] if line.startswith(f"{match[1]} ")), f"{match[1]} other values")
        return f"{match[1]} {match[2]}: expected {values.removeprefix(match[1]).strip()}"
    if match := re.search(r"Error parsing (\S+): .*?(?:matching|as) (\S+) .*from \['(.*)'\]", text):
        return f"{match[1]} {match[3]!r}: expected {match[2].removeprefix('{None}|')}"
    if match := re.search(r"Error parsing (--\S+): .*?(int\(\)|float)[^']*'(.*)'", text):
        return f"{match[1]} {match[3]!r}: expected {match[2].strip('()').upper()}"
    if match := re.search(r"Missing from .*?: (\S+) .*\(required\)", text):
        return f"{match[1]} is missing"
    return text.removeprefix("Error parsing ").removesuffix(".")
