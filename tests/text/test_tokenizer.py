from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from diffusers.pipelines.wan.pipeline_wan import prompt_clean
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers, processors

from carrara.text.cleaning import clean_prompt
from carrara.text.tokenizer import MAX_LENGTH, Tokenizer, train_tokenizer

CAPTIONS = ["a red ball bounces on the grass", "An orange frog, and two toads.", "a green frog jumps over the pond"]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(CAPTIONS)


@settings(max_examples=200, deadline=None)
@given(st.one_of(st.text(), st.sampled_from(["&amp;lt;b&gt;", " a \n b\t", "schÃ¶n", "“a” frog&nbsp;jumps", ""])))
def test_cleaning_is_that_of_the_wan_pipeline(text: str) -> None:
    assert clean_prompt(text) == prompt_clean(text)


def test_special_ids_and_bytes_come_first(tokenizer: Tokenizer) -> None:
    vocabulary = tokenizer.backend.get_vocab()
    assert [vocabulary[token] for token in ("<pad>", "</s>", "<unk>")] == [0, 1, 2]
    assert sum(len(token) == 1 for token in vocabulary) == 256
    assert tokenizer.vocab_size == len(vocabulary) == 3 + 256 + len(tokenizer.known_words())


def test_a_known_word_is_one_token_whatever_its_case_or_place(tokenizer: Tokenizer) -> None:
    assert tokenizer.lengths(["a red ball bounces on the grass"]) == [8]
    ids = {tuple(tokenizer.encode([text])[0][0].tolist()) for text in ("Red", "red", " RED ", "ＲＥＤ", "r&#101;d")}
    assert len(ids) == 1
    red = ids.pop()[0]
    for text in ("a (red) ball", 'a "red" ball', "a ball,red", "red-ball"):
        assert red in tokenizer.encode([text])[0][0].tolist()


def test_ids_do_not_depend_on_the_order_of_captions(tokenizer: Tokenizer) -> None:
    again = train_tokenizer(reversed(CAPTIONS))
    assert again.backend.to_str() == tokenizer.backend.to_str()


@settings(max_examples=300, deadline=None)
@given(text=st.text().filter(lambda text: not any(special in text for special in ("<pad>", "</s>", "<unk>"))))
def test_any_text_survives_as_bytes(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode([text], max_length=10**6)[0][0].tolist()
    normal = tokenizer.backend.normalizer.normalize_str(clean_prompt(text))
    assert tokenizer.decode(ids) == normal.removeprefix(" ")
    assert ids[-1] == 1
    assert not {0, 2} & set(ids)


def test_batches_are_padded_to_the_longest_only(tokenizer: Tokenizer) -> None:
    ids, mask = tokenizer.encode(["a red ball", "", "frog"])
    assert ids.shape == mask.shape == (3, 4)
    assert ids.dtype == mask.dtype == torch.int64
    assert mask.sum(dim=1).tolist() == [4, 1, 2]
    assert ids[1].tolist() == [1, 0, 0, 0]
    assert tokenizer.encode([])[0].shape == (0, 0)


def test_too_long_is_refused_with_counts(tokenizer: Tokenizer) -> None:
    exact = " ".join(["red"] * (MAX_LENGTH - 1))
    assert tokenizer.encode([exact])[0].shape == (1, MAX_LENGTH)
    with pytest.raises(ValueError, match=r"513 tokens \(512 words\).*at most 512.*by 1 or more"):
        tokenizer.encode(["red", exact + " red"])


def test_unknown_words_are_named_once_in_order(tokenizer: Tokenizer) -> None:
    assert tokenizer.unknown_words("A Zebra, a red ball and a wolf's zebra. Zebra! 😀") == [
        "Zebra",
        "wolf's",
        "zebra",
        "😀",
    ]
    assert tokenizer.unknown_words("") == []
    known = tokenizer.known_words()
    assert known == sorted(
        {word for text in CAPTIONS for word in clean_prompt(text).lower().strip(".").replace(",", "").split()}
    )
    assert tokenizer.unknown_words(" ".join(known)) == []


def test_a_saved_folder_gives_the_same_ids_here_and_in_transformers(tokenizer: Tokenizer, tmp_path) -> None:
    from transformers import AutoTokenizer

    tokenizer.save(tmp_path / "ours")
    theirs = AutoTokenizer.from_pretrained(tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs")
    prompts = ["A red ball, bounces", "", "größe 日本 (red) <x>", "an orange frog"]
    ids, mask = tokenizer.encode(prompts)
    for folder in ("ours", "theirs"):
        again = Tokenizer.load(tmp_path / folder).encode(prompts)
        assert torch.equal(again[0], ids)
        assert torch.equal(again[1], mask)
    batch = theirs(prompts, padding="max_length", max_length=512, truncation=True, return_tensors="pt")
    assert batch.input_ids.shape == (4, 512)
    assert torch.equal(batch.input_ids[:, : ids.shape[1]], ids)
    assert torch.equal(batch.attention_mask.sum(dim=1), mask.sum(dim=1))
    assert (theirs.pad_token_id, theirs.eos_token_id, theirs.unk_token_id, theirs.model_max_length) == (0, 1, 2, 512)


def foreign_umt5() -> Backend:
    """A sentencepiece-like model with bytes, as in google/umt5-xxl, but of a few pieces."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((f"<0x{byte:02X}>", -9.0) for byte in range(256))]
    backend = Backend(models.Unigram([*pieces, ("▁", -3.0), ("▁red", -4.0), ("▁ball", -4.0), ("s", -5.0)], 2, True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always", split=True)
    backend.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    backend.add_special_tokens(["<pad>", "</s>", "<unk>"])
    return backend


def test_a_foreign_umt5_folder_is_read(tmp_path) -> None:
    from transformers import PreTrainedTokenizerFast

    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    theirs = PreTrainedTokenizerFast(tokenizer_object=foreign_umt5(), **special)
    theirs.save_pretrained(tmp_path)
    ours = Tokenizer.load(tmp_path)
    prompts = ["red balls", "a red ballé", ""]
    batch = theirs(prompts, padding="longest", return_tensors="pt")
    ids, mask = ours.encode(prompts)
    assert torch.equal(ids, batch.input_ids)
    assert torch.equal(mask, batch.attention_mask)
    assert ours.unknown_words("red balls é") == ["é"]
    assert ours.known_words() == ["ball", "red"]


def test_wrong_folders_are_refused_by_name(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"tokenizer\.json: no such file"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0"')
    with pytest.raises(ValueError, match=r"tokenizer\.json: damaged"):
        Tokenizer.load(tmp_path)
    Backend(models.WordLevel({"a": 0}, "a")).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ValueError, match="no <pad> token"):
        Tokenizer.load(tmp_path)


def test_the_tokenizer_does_not_wait_for_transformers() -> None:
    program = "import sys, carrara.text.tokenizer, carrara.text.encoder; sys.exit('transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_of_many_words_the_most_frequent_are_kept():
    captions = ["a red ball", "a red cube", "a blue ball", "a zebra"]
    limited = train_tokenizer(captions, limit=3)
    assert limited.known_words() == ["a", "ball", "red"]
    assert limited.unknown_words("a red zebra") == ["zebra"]
    ids, _ = limited.encode(["a blue zebra"])
    assert limited.decode(ids[0].tolist()) == "a blue zebra"
    assert limited.backend.to_str() == train_tokenizer(captions[::-1], limit=3).backend.to_str()
    assert train_tokenizer(captions, limit=99).backend.to_str() == train_tokenizer(captions).backend.to_str()
