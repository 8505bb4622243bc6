"""Prompts to token ids, with the light `tokenizers` package alone (importing `transformers` would take seconds).

A tokenizer trained here knows whole words: each word of the captions is one token, whatever its case, and every other
word falls back to its UTF-8 bytes, so that no word is ever lost. Foreign UMT5 folders are read too.

Not standard: the model is a BPE without merges that takes a word whole when the vocabulary has it (`ignore_merges`).
"""

from __future__ import annotations

import json
import re
import string
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import tokenizers
import torch
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, processors
from torch import Tensor

from carrara.core.config import write_json
from carrara.text.cleaning import clean_prompt
from carrara.text.spiece import read_spiece

PAD, END, UNKNOWN = "<pad>", "</s>", "<unk>"  # ids 0, 1 and 2, as in UMT5
MAX_LENGTH = 512  # tokens of a prompt, the end token included (Wan)
_WORD_START = "Ġ"  # how the byte alphabet writes the space before a word
_BYTE_TOKEN = re.compile(r"<0x[0-9A-Fa-f]{2}>")
_WORDS_AND_SIGNS = re.compile(r"\w+(?:['’]\w+)*|[^\w\s]")
_SPLIT = Regex(r" ?[\p{L}\p{M}\p{N}_]+| ?[^\s\p{L}\p{M}\p{N}_]|\s+(?!\S)|\s")
# Every word is written with a space before it, after a bracket and at the start too: one token wherever it stands.
_SIGN_THEN_WORD = Regex(r"(?<=[^\s\p{L}\p{M}\p{N}_])(?=[\p{L}\p{M}\p{N}_])")


class Tokenizer:
    """A tokenizer read from or written to a folder that `transformers.AutoTokenizer` reads with identical ids."""

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        backend.no_padding()
        backend.no_truncation()
        special: dict[str, int] = {}
        for token in (PAD, END):
            number = backend.token_to_id(token)
            if number is None:
                raise ValueError(f"tokenizer has no {token} token; expected one of the UMT5 family")
            special[token] = number
        if backend.encode("").ids[-1:] != [special[END]]:
            raise ValueError(f"tokenizer does not end a prompt with {END}; expected one of the UMT5 family")
        self.backend = backend
        self.pad_id = special[PAD]
        self._in_bytes = isinstance(backend.decoder, decoders.ByteLevel)

    @classmethod
    def load(cls, folder: str | Path) -> Tokenizer:
        """Read a folder's `tokenizer.json`, or else its `spiece.model`.

        Raises ValueError where there is neither or it is damaged.
        """
        path, older = Path(folder) / "tokenizer.json", Path(folder) / "spiece.model"
        if path.is_file():
            try:
                backend = tokenizers.Tokenizer.from_file(str(path))
            except Exception as error:  # the binding raises bare Exception
                raise ValueError(f"{path}: damaged, or no tokenizer this version reads ({error})") from None
        elif older.is_file():
            path, backend = older, read_spiece(older, END)
        else:
            raise ValueError(f"{path}: no such file, and no spiece.model beside it")
        try:
            return cls(backend)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None

    def save(self, folder: str | Path) -> None:
        """Write `tokenizer.json` and `tokenizer_config.json`, the files of a diffusers `tokenizer/` folder."""
        folder = Path(folder)
        write_json(folder / "tokenizer.json", json.loads(self.backend.to_str()))
        specials = {"pad_token": PAD, "eos_token": END, "unk_token": UNKNOWN}
        settings = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": MAX_LENGTH,
            "clean_up_tokenization_spaces": False,
            "padding_side": "right",
            "truncation_side": "right",
        }
        write_json(folder / "tokenizer_config.json", {**settings, **specials})

    @property
    def vocab_size(self) -> int:
        """How many rows the text encoder's embedding needs: one more than the largest id."""
        return max(self.backend.get_vocab(with_added_tokens=True).values()) + 1

    def lengths(self, prompts: Sequence[str]) -> list[int]:
        """The number of tokens of each prompt, the end token included."""
        return [len(self._ids(prompt)) for prompt in prompts]

    def encode(self, prompts: Sequence[str], max_length: int = MAX_LENGTH) -> tuple[Tensor, Tensor]:
        """Token ids and mask (1 where real), each `b n` int64, n the longest prompt of the batch.

        The empty prompt is legal: it is the null caption, one end token. Raises ValueError for a prompt of more than
        `max_length` tokens; nothing is cut off silently.
        """
        rows = [self._ids(prompt) for prompt in prompts]
        for prompt, row in zip(prompts, rows):
            if len(row) > max_length:
                raise ValueError(
                    f"prompt of {len(row)} tokens ({len(prompt.split())} words) starting {prompt[:40]!r}: "
                    f"at most {max_length} tokens are read; shorten it by {len(row) - max_length} or more tokens"
                )
        longest = max((len(row) for row in rows), default=0)
        ids = torch.full((len(rows), longest), self.pad_id, dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = torch.tensor(row)
            mask[i, : len(row)] = 1
        return ids, mask

    def decode(self, ids: Sequence[int]) -> str:
        """The text of a prompt's ids: what was encoded, cleaned and as the tokenizer normalises it."""
        return self.backend.decode(list(ids), skip_special_tokens=True).removeprefix(" ")

    def unknown_words(self, prompt: str) -> list[str]:
        """The words (and signs other than ASCII punctuation) that have no token of their own, each once, in order."""
        words = dict.fromkeys(_WORDS_AND_SIGNS.findall(clean_prompt(prompt)))
        return [word for word in words if word not in string.punctuation and self._falls_back(word)]

    def known_words(self) -> list[str]:
        """Every whole word that is one token, sorted."""
        start = _WORD_START if self._in_bytes else "▁"
        tokens = (token for token in self.backend.get_vocab(with_added_tokens=False) if token.startswith(start))
        return sorted(word for token in tokens if (word := self._plain(token[len(start) :])) and word[0].isalnum())

    def _ids(self, prompt: str) -> list[int]:
        return self.backend.encode(clean_prompt(prompt)).ids

    def _falls_back(self, word: str) -> bool:
        tokens = self.backend.encode(word, add_special_tokens=False).tokens
        if self._in_bytes:
            return any(len(token) == 1 for token in tokens)
        return any(token == UNKNOWN or _BYTE_TOKEN.fullmatch(token) for token in tokens)

    def _plain(self, token: str) -> str:
        return decoders.ByteLevel().decode([token]) if self._in_bytes else token


def train_tokenizer(captions: Iterable[str], limit: int | None = None) -> Tokenizer:
    """A tokenizer in which every word of these captions is one token; ids do not depend on the captions' order.

    limit: of many words only so many, the most frequent, the others being read as their bytes. Ids 0 to 2 are
    `<pad>`, `</s>`, `<unk>`, then the 256 bytes, then the words in alphabetical order.
    """
    normalizer = normalizers.Sequence(
        [
            normalizers.NFC(),
            normalizers.Lowercase(),
            normalizers.Replace(_SIGN_THEN_WORD, " "),
            normalizers.Prepend(" "),
        ]
    )
    splitter = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(_SPLIT, "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    counts: Counter[str] = Counter()
    for caption in captions:
        text = normalizer.normalize_str(clean_prompt(caption))
        counts.update(piece for piece, _ in splitter.pre_tokenize_str(text) if piece.startswith(_WORD_START))
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = sorted(counts.keys() - set(alphabet), key=lambda word: (-counts[word], word))[:limit]
    tokens = [PAD, END, UNKNOWN, *alphabet, *sorted(words)]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=[], ignore_merges=True))
    backend.normalizer = normalizer
    backend.pre_tokenizer = splitter
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.TemplateProcessing(
        single=f"$A {END}", pair=f"$A {END} $B {END}", special_tokens=[(END, vocabulary[END])]
    )
    backend.add_special_tokens([PAD, END, UNKNOWN])
    return Tokenizer(backend)
