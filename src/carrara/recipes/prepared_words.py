"""What recipes take of a prepared folder's captions: a tokenizer, whether they can be read, and one to try."""

from __future__ import annotations

from carrara.data.clip_latents import captions_of
from carrara.data.prepared import Prepared
from carrara.text.tokenizer import Tokenizer, train_tokenizer

WORDS = 20_000


def words_of(prepared: Prepared, limit: int = WORDS) -> Tokenizer:
    """A tokenizer that has the most frequent words of the captions as one token each."""
    return train_tokenizer((row.caption for row in prepared.rows if row.caption), limit)


def check_captions(prepared: Prepared, tokenizer: Tokenizer) -> None:
    """Refuse a caption that is longer than is read (ValueError), naming its clip."""
    for caption in captions_of(prepared):
        try:
            tokenizer.encode([caption])
        except ValueError as error:
            key = next(row.key for row in prepared.rows if row.caption == caption)
            raise ValueError(f"{prepared.folder}: the caption of clip {key} is too long: {error}") from None


def example_of(prepared: Prepared) -> str:
    """A prompt to try a model with: a caption that it learned, of those that a shell takes between quotes."""
    captions = (row.caption for row in prepared.rows if row.caption)
    return next((caption for caption in captions if not set('"$`!\\') & set(caption)), "a clip like yours")
