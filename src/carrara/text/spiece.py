"""A SentencePiece file (`spiece.model`) as a tokenizer of the `tokenizers` package, with the same ids.

Such a file is a protocol buffer; the few fields that decide ids are read here, so neither `sentencepiece` nor
`protobuf` is needed (sentencepiece_model.proto of google/sentencepiece). Only what T5's family uses is read: unigram
models with SentencePiece's own way with spaces. The hundreds of `<extra_id_N>` of T5's training are no part of the
file, and no prompt needs them.
"""

from __future__ import annotations

import struct
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors

_PIECES, _TRAINER, _NORMALIZER = 1, 2, 3  # of the model
_PIECE, _SCORE, _KIND = 1, 2, 3  # of a piece
_CONTROL, _USER_DEFINED = 3, 4  # kinds of pieces
_MODEL, _AS_SUFFIX, _BYTES, _UNKNOWN = 3, 24, 35, 40  # of the trainer: how it was made, and what that asks for
_CHARACTERS, _PREFIX, _FEWER_SPACES, _ESCAPE = 2, 3, 4, 5  # of the normalizer
_UNIGRAM = 1
_SPACE = "▁"

Value = int | bytes


def read_spiece(path: Path, end: str) -> tokenizers.Tokenizer:
    """The tokenizer of a file, with the piece `end` after every prompt. Raises ValueError where it is another kind."""
    try:
        model = list(_fields(path.read_bytes()))
        trainer, normalizer = (dict(_fields(_last(model, number))) for number in (_TRAINER, _NORMALIZER))
        pieces = [_piece(value) for number, value in model if number == _PIECES]
    except (IndexError, KeyError, TypeError, UnicodeDecodeError, struct.error) as error:
        raise ValueError(f"{path}: damaged, or no SentencePiece model ({error})") from None
    if trainer.get(_MODEL, _UNIGRAM) != _UNIGRAM:
        raise ValueError(f"{path}: not a unigram model; expected one of the UMT5 family")
    if trainer.get(_AS_SUFFIX) or not all(normalizer.get(setting, 1) for setting in (_PREFIX, _FEWER_SPACES, _ESCAPE)):
        raise ValueError(f"{path}: treats spaces in another way than the UMT5 family, which is not read here")
    if all(name != end for name, _, _ in pieces):
        raise ValueError(f"{path}: has no {end} piece; expected one of the UMT5 family")
    characters = normalizer.get(_CHARACTERS, b"")
    try:
        _check_map(characters)
    except (IndexError, TypeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: its character map is damaged ({error}); fetch the file again") from None
    try:
        return _assemble(pieces, trainer, characters, end)
    except Exception as error:  # the binding raises bare Exception
        raise ValueError(f"{path}: damaged, or no SentencePiece model ({error})") from None


def _assemble(
    pieces: list[tuple[str, float, int]], trainer: dict[int, Any], characters: Any, end: str
) -> tokenizers.Tokenizer:
    names = [name for name, _, _ in pieces]
    vocabulary = [(name, score) for name, score, _ in pieces]
    backend = tokenizers.Tokenizer(models.Unigram(vocabulary, trainer.get(_UNKNOWN, 0), bool(trainer.get(_BYTES))))
    steps = [normalizers.Precompiled(characters)] if characters else []
    # The last: a sign for the space that was written is not the one that begins every text.
    spaces = [(rf"\A +|[ {_SPACE}]+\z", ""), (" {2,}", " "), (rf"\A{_SPACE}", _SPACE * 2)]
    backend.normalizer = normalizers.Sequence([*steps, *(normalizers.Replace(Regex(old), new) for old, new in spaces)])
    backend.pre_tokenizer = pre_tokenizers.Metaspace(_SPACE, prepend_scheme="always", split=False)
    backend.decoder = decoders.Sequence(
        [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.post_processor = processors.TemplateProcessing(
        single=f"$A {end}", pair=f"$A {end} $B {end}", special_tokens=[(end, names.index(end))]
    )
    for kind, special in ((_CONTROL, True), (_USER_DEFINED, False)):
        backend.add_tokens([AddedToken(name, normalized=False, special=special) for name, _, k in pieces if k == kind])
    return backend


def _check_map(content: Value) -> None:
    """Whether any text can be looked up in a character map, or there is none.

    `tokenizers` trusts what such a map refers to, and panics in the middle of a prompt where that is not there. A map
    is a size in bytes, a trie of that size (a double array as darts-clone makes it: units of 32 bits) and what
    characters become, each text with a zero behind it. Raises IndexError, TypeError or UnicodeDecodeError.
    """
    if not isinstance(content, bytes):
        raise TypeError("a number in its place")
    if not content:
        return
    size, texts = int.from_bytes(content[:4], "little"), content[4:]
    if not 4 <= size <= len(texts) or size % 4:
        raise IndexError(f"no trie of {size} bytes in {len(texts)}")
    units, texts = struct.unpack(f"<{size // 4}I", texts[:size]), texts[size:]
    texts.decode()
    children = defaultdict(list)  # places by their node, which is the number that they differ from by their byte
    for place, unit in enumerate(units):
        if 0 < (byte := unit & 0x8000_00FF) < 256:
            children[place ^ byte].append(place)
    nodes, seen = [(_offset(units[0]), 0)], set[tuple[int, int]]()  # each with whether a text stands there
    while nodes:
        node, ends = nodes.pop()
        if node | 255 >= len(units):  # any byte may come next
            raise IndexError(f"place {node | 255} in a trie of {len(units)}")
        if ends:
            start = units[node] & 0x7FFF_FFFF
            if start >= len(texts) or texts[start] & 0xC0 == 0x80:  # behind them all, or within a character
                raise IndexError(f"no text at byte {start} of {len(texts)}")
        below = {(place ^ _offset(units[place]), units[place] & 1 << 8) for place in children[node]} - seen
        seen |= below
        nodes += below


def _offset(unit: int) -> int:
    return unit >> 10 << (unit >> 6 & 8)


def _piece(message: Value) -> tuple[str, float, int]:
    """Its text, its logarithmic probability, its kind."""
    fields = dict(_fields(message))
    name, score, kind = fields[_PIECE], fields.get(_SCORE, bytes(4)), fields.get(_KIND, 1)
    if not (isinstance(name, bytes) and isinstance(score, bytes) and isinstance(kind, int)):
        raise TypeError("a piece of other fields")
    return name.decode(), struct.unpack("<f", score)[0], kind


def _last(model: list[tuple[int, Value]], number: int) -> Value:
    return [value for found, value in model if found == number][-1]


def _fields(message: Value) -> Iterator[tuple[int, Value]]:
    """Numbers and values of a message's fields, in order: integers, and bytes of everything else."""
    if not isinstance(message, bytes):
        raise TypeError("a number in the place of a message")
    at = 0

    def integer() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = message[at]
            value, shift, at = value | (byte & 127) << shift, shift + 7, at + 1
            if byte < 128:
                return value

    while at < len(message):
        number, wire = divmod(integer(), 8)
        if wire == 0:
            yield number, integer()
            continue
        if wire not in (1, 2, 5):
            raise IndexError(f"a field of the unknown type {wire}")
        size = integer() if wire == 2 else {1: 8, 5: 4}[wire]
        if at + size > len(message):
            raise IndexError("it ends in the middle of a field")
        yield number, message[at : at + size]
        at += size
