"""Prompt cleaning, as Wan's text encoder saw it in training: repair broken Unicode, undo HTML, collapse white space."""

from __future__ import annotations

import html


def clean_prompt(text: str) -> str:
    """The prompt as it is tokenised: `ftfy` repairs, HTML entities undone twice (for `&amp;lt;`), single spaces.

    Idempotent on ordinary text. The source of the rule is Wan 2.1's tokenizer with `clean="whitespace"`.
    """
    from ftfy import fix_text

    return " ".join(html.unescape(html.unescape(fix_text(text))).split())
