"""A SentencePiece file alone: prompts have the ids that SentencePiece gives them, and those of a tokenizer.json.

`tiny_spiece.model` was trained by SentencePiece 0.2.3, on sentences of thirty words: unigram, 324 pieces, byte
fallback, characters normalised (A to a, full width to ASCII, a circled 1 to 1, white space to spaces).
"""

from __future__ import annotations

import contextlib
import json
import struct
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tests.text.test_tokenizer import foreign_umt5
from transformers import PreTrainedTokenizerFast

from carrara.text.spiece import read_spiece
from carrara.text.tokenizer import Tokenizer

TINY = Path(__file__).parent / "tiny_spiece.model"
BY_SENTENCEPIECE = {  # SentencePieceProcessor.encode, and the end
    "A red ball bounces": [267, 271, 323, 278, 1],
    "  two   toads ": [268, 289, 1],
    "日本 größe x": [283, 263, 259, 295, 1],
    "": [1],
    "ＡＢ ①": [259, 68, 69, 259, 52, 1],
    "a\tb\nc": [267, 259, 312, 259, 309, 1],
    "zebra 😀!": [259, 125, 322, 312, 318, 321, 259, 243, 162, 155, 131, 287, 1],
    "▁▁ball": [259, 259, 323, 1],
    "ball ▁ ": [323, 1],
    "naïve，café": [269, 284, 309, 321, 306, 292, 1],
}


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "spiece.model").write_bytes(TINY.read_bytes())
    return tmp_path


@pytest.mark.parametrize("text", BY_SENTENCEPIECE)
def test_ids_are_those_of_sentencepiece(text):
    assert read_spiece(TINY, "</s>").encode(text).ids == BY_SENTENCEPIECE[text]


def test_a_folder_with_the_file_alone_is_read_and_saved_as_a_tokenizer_json_of_the_same_ids(folder):
    prompts = [*BY_SENTENCEPIECE, "a (red) ball", "</s> <pad>"]
    ours = Tokenizer.load(folder)
    assert ours.pad_id == 0
    assert ours.vocab_size == 324
    assert ours.unknown_words("a red zebra") == ["zebra"]
    ours.save(folder / "saved")
    ids, mask = ours.encode(prompts)
    again = Tokenizer.load(folder / "saved").encode(prompts)
    theirs = PreTrainedTokenizerFast.from_pretrained(folder / "saved")
    cleaned = [ours.backend.encode(prompt).ids for prompt in prompts]
    assert again[0].equal(ids)
    assert again[1].equal(mask)
    assert theirs(prompts)["input_ids"] == cleaned


def message(*fields: tuple[int, int | float | bytes]) -> bytes:
    """A protocol buffer of these fields, all shorter than 16 KiB."""
    made = b""
    for number, value in fields:
        if isinstance(value, int):
            made += _integer(number << 3) + _integer(value)
        elif isinstance(value, float):
            made += _integer(number << 3 | 5) + struct.pack("<f", value)
        else:
            made += _integer(number << 3 | 2) + _integer(len(value)) + value
    return made


def _integer(value: int) -> bytes:
    low, high = value & 127, value >> 7
    return bytes([low | 128, *_integer(high)]) if high else bytes([low])


def twin(trainer: bytes = message((3, 1), (35, 1), (40, 2)), normalizer: bytes = b"") -> bytes:
    """The file that SentencePiece would have of the pieces of `foreign_umt5`."""
    kinds = {"<pad>": 3, "</s>": 3, "<unk>": 2}
    pieces = [
        message((1, name.encode()), (2, score), (3, kinds.get(name, 6 if name.startswith("<") else 1)))
        for name, score in json.loads(foreign_umt5().to_str())["model"]["vocab"]
    ]
    return message(*((1, piece) for piece in pieces), (2, trainer), (3, normalizer))


@pytest.fixture(scope="module")
def twins(tmp_path_factory) -> list[Tokenizer]:
    """The same pieces as either file."""
    folders = [tmp_path_factory.mktemp(name) for name in ("json", "spiece")]
    foreign_umt5().save(str(folders[0] / "tokenizer.json"))
    (folders[1] / "spiece.model").write_bytes(twin())
    return [Tokenizer.load(folder) for folder in folders]


@settings(max_examples=300, deadline=None)
@given(st.text(st.sampled_from("redbals é😀<>x0/"), max_size=30))
@example("red balls a redé</s>")
def test_ids_are_those_of_a_tokenizer_json_of_the_same_pieces(twins, text):
    ids = [each.encode([text])[0] for each in twins]
    assert ids[0].equal(ids[1])


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (twin(trainer=message((3, 2))), "not a unigram model"),
        (twin(normalizer=message((3, 0))), "treats spaces in another way"),
        (twin(trainer=message((24, 1))), "treats spaces in another way"),
        (twin().replace(b"</s>", b"</t>"), "has no </s> piece"),
        (twin().replace(b"<pad>", b"<sad>"), "no <pad> token"),
        (twin(normalizer=message((2, b"no map"))), "damaged"),
        (b"", "damaged"),
        (b"version https://git-lfs.github.com/spec/v1", "damaged"),
    ],
)
def test_other_files_are_refused_by_name(tmp_path, content, told):
    (tmp_path / "spiece.model").write_bytes(content)
    with pytest.raises(ValueError, match=rf"spiece\.model: .*{told}"):
        Tokenizer.load(tmp_path)


TINY_MAP = TINY.read_bytes().index(struct.pack("<I", 1024))  # where it begins: 4 bytes, 256 units, 12 bytes of texts
TEXTS = ["".join(map(chr, range(first, first + 300))) for first in (1, 0x3000, 0xFE00, 0x1F600)]


def damaged(changes: dict[int, int]) -> bytes:
    """The tiny file with other bytes at these places of its character map."""
    content = bytearray(TINY.read_bytes())
    for place, byte in changes.items():
        content[TINY_MAP + place] = byte
    return bytes(content)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({1: 0}, "no trie of 0 bytes"),
        ({0: 3}, "no trie of 1027 bytes"),
        ({1: 5}, "no trie of 1280 bytes"),
        ({6: 255}, r"place \d+ in a trie of 256"),
        ({1024 + 4: 0xFF}, "can't decode byte 0xff"),
        ({1024 + 5: 0xC3, 1024 + 6: 0xA9}, "no text at byte 2 of 12"),  # its second byte
    ],
)
def test_a_damaged_character_map_is_refused_in_one_line_with_the_remedy(tmp_path, changes, told):
    (tmp_path / "spiece.model").write_bytes(damaged(changes))
    with pytest.raises(
        ValueError, match=rf"spiece\.model: its character map is damaged \(.*{told}.*\); fetch the"
    ) as e:
        Tokenizer.load(tmp_path)
    assert "\n" not in str(e.value)


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.integers(0, 1024 + 15), st.integers(0, 255), min_size=1, max_size=20))
def test_a_damaged_character_map_never_ends_a_prompt_in_a_panic(tmp_path_factory, changes):
    path = tmp_path_factory.mktemp("damaged") / "spiece.model"
    path.write_bytes(damaged(changes))
    with contextlib.suppress(ValueError):
        tokenizer = read_spiece(path, "</s>")
        for text in (*TEXTS, *"".join(TEXTS)):
            tokenizer.encode(text)


@pytest.mark.parametrize("size", [0, 1, 20, 3000, 5500, TINY.stat().st_size - 1])
def test_a_file_that_was_cut_off_is_refused_in_words(tmp_path, size):
    (tmp_path / "spiece.model").write_bytes(TINY.read_bytes()[:size])
    with pytest.raises(ValueError, match=r"spiece\.model: damaged, or no SentencePiece model"):
        Tokenizer.load(tmp_path)
