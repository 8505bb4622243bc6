"""File names made of prompts."""

from __future__ import annotations

import unicodedata

# Names that Windows reserves for devices, whatever the extension.
_RESERVED = {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(10))}


def safe_name(prompt: str, limit: int = 80) -> str:
    """A file name (without extension) that says the prompt and is valid on every common file system.

    Letters, digits and accents of every script stay, lower case; every run of anything else becomes one "-". At most
    `limit` bytes of UTF-8, cut at a word where possible. Never empty, never hidden, never an option ("-o") and never
    reserved. Different prompts may share a name. Applying it twice changes nothing.
    """
    plain = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", prompt).lower())
    name = "-".join("".join(c if _keeps(c) else " " for c in plain).split())
    if len(name.encode()) > limit:
        cut = name.encode()[:limit].decode(errors="ignore")
        whole_words = cut.rpartition("-")[0] if name[len(cut)] != "-" else cut
        name = whole_words if len(whole_words.encode()) >= limit // 2 else cut
        name = name.strip("-")
    return f"{name}-video" if name in _RESERVED else name or "video"


def _keeps(character: str) -> bool:
    return unicodedata.category(character)[0] in "LN" or unicodedata.category(character) in ("Mn", "Mc")
