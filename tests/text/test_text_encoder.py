from __future__ import annotations

import pytest
import torch
from diffusers import WanPipeline
from transformers import AutoTokenizer, UMT5Config, UMT5EncoderModel

from carrara.core.weights import save_weights
from carrara.text.encoder import UMT5_XXL, TextEncoder, TextEncoderConfig
from carrara.text.tokenizer import Tokenizer, train_tokenizer

PROMPTS = ["a red ball bounces on the grass", "", "a Green  frog &amp; a toad", "two frogs"]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(PROMPTS)


@pytest.fixture
def encoder(tokenizer: Tokenizer) -> TextEncoder:
    torch.manual_seed(0)
    config = TextEncoderConfig(tokenizer.vocab_size, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4)
    return TextEncoder(config).eval()


def test_equals_transformers_on_the_folder_it_saves(encoder: TextEncoder, tokenizer: Tokenizer, tmp_path) -> None:
    encoder.save(tmp_path)
    theirs, report = UMT5EncoderModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    ids, mask = tokenizer.encode(PROMPTS)
    text = encoder(ids, mask)
    expected = theirs.eval()(ids, attention_mask=mask).last_hidden_state
    torch.testing.assert_close(text.states[mask > 0], expected[mask > 0], rtol=0, atol=0)
    assert text.lengths.tolist() == mask.sum(dim=1).tolist()
    assert text.states[mask == 0].abs().sum() == 0


def test_equals_the_wan_pipeline_after_zero_padding(encoder: TextEncoder, tokenizer: Tokenizer, tmp_path) -> None:
    encoder.save(tmp_path / "text_encoder")
    tokenizer.save(tmp_path / "tokenizer")
    pipeline = WanPipeline(
        tokenizer=AutoTokenizer.from_pretrained(tmp_path / "tokenizer"),
        text_encoder=UMT5EncoderModel.from_pretrained(tmp_path / "text_encoder"),
        vae=None,
        scheduler=None,
    )
    expected = pipeline._get_t5_prompt_embeds(PROMPTS, max_sequence_length=512, device="cpu")
    text = encoder(*tokenizer.encode(PROMPTS))
    padded = torch.zeros_like(expected)
    padded[:, : text.states.shape[1]] = text.states
    assert text.padded_length == expected.shape[1] == 512
    torch.testing.assert_close(padded, expected, rtol=1e-5, atol=1e-6)


def test_more_padding_changes_nothing(encoder: TextEncoder, tokenizer: Tokenizer) -> None:
    ids, mask = tokenizer.encode(PROMPTS)
    more = torch.nn.functional.pad(ids, (0, 9)), torch.nn.functional.pad(mask, (0, 9))
    near, far = encoder(ids, mask), encoder(*more)
    torch.testing.assert_close(far.states[:, : ids.shape[1]], near.states)
    assert far.states[:, ids.shape[1] :].abs().sum() == 0
    assert torch.equal(far.lengths, near.lengths)
    alone = encoder(*tokenizer.encode(PROMPTS[3:]))
    torch.testing.assert_close(near.states[3:, : alone.states.shape[1]], alone.states)


@pytest.mark.parametrize("layout", ["shared", "embed_tokens", "both", "sharded"])
def test_loads_what_transformers_saves(tokenizer: Tokenizer, layout: str, tmp_path) -> None:
    torch.manual_seed(1)
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 3, "num_heads": 2}
    theirs = UMT5EncoderModel(UMT5Config(vocab_size=tokenizer.vocab_size, **sizes)).eval()
    theirs.save_pretrained(tmp_path, max_shard_size="20KB" if layout == "sharded" else "1GB")
    if layout in ("embed_tokens", "both"):  # the tied table's other name
        tensors = {name: value.clone() for name, value in theirs.state_dict().items()}
        if layout == "embed_tokens":
            del tensors["shared.weight"]
        save_weights(tensors, tmp_path / "model.safetensors")
    assert (layout == "sharded") == (tmp_path / "model.safetensors.index.json").exists()
    ours = TextEncoder.load(tmp_path)
    assert not ours.training
    ids, mask = tokenizer.encode(PROMPTS)
    expected = theirs(ids, attention_mask=mask).last_hidden_state
    torch.testing.assert_close(ours(ids, mask).states[mask > 0], expected[mask > 0], rtol=0, atol=0)


def test_round_trip_in_another_precision(encoder: TextEncoder, tmp_path) -> None:
    encoder.save(tmp_path, dtype=torch.bfloat16)
    half = TextEncoder.load(tmp_path)
    full = TextEncoder.load(tmp_path, dtype=torch.float32)
    assert half.config == full.config == encoder.config
    assert encoder.shared.weight.dtype == torch.float32
    for name, value in encoder.state_dict().items():
        assert half.state_dict()[name].dtype == torch.bfloat16
        assert torch.equal(full.state_dict()[name], value.bfloat16().float())
    assert UMT5EncoderModel.from_pretrained(tmp_path).dtype == torch.bfloat16


@pytest.mark.parametrize("mixed", [False, True])
def test_every_weight_learns(encoder: TextEncoder, tokenizer: Tokenizer, mixed: bool) -> None:
    encoder.train()
    ids, mask = tokenizer.encode(PROMPTS)
    with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        text = encoder(ids, mask)
    plain = encoder(ids, mask)
    torch.testing.assert_close(text.states.float(), plain.states, rtol=0.1, atol=0.15)
    (text.states.float() ** 3).sum().backward()
    for name, weight in encoder.named_parameters():
        assert weight.grad is not None, name
        assert weight.grad.isfinite().all(), name
        assert weight.grad.abs().sum() > 0, name


def test_the_large_configuration_is_that_of_umt5_xxl() -> None:
    with torch.device("meta"):
        encoder = TextEncoder(UMT5_XXL)
    assert sum(weight.numel() for weight in encoder.parameters()) == 5_680_910_336
    assert TextEncoderConfig.from_json(UMT5_XXL.to_json()) == UMT5_XXL


def test_foreign_and_damaged_folders_are_refused_by_name(encoder: TextEncoder, tmp_path) -> None:
    with pytest.raises(ValueError, match=r"config\.json: no such file"):
        TextEncoder.load(tmp_path)
    for change, message in (
        ({"model_type": "t5"}, "model_type='t5'; this encoder is 'umt5'"),
        ({"feed_forward_proj": "relu"}, "feed_forward_proj='relu'"),
        ({"num_layers": 0}, "num_layers=0"),
        ({"dropout_rate": 1.0}, "dropout_rate=1.0"),
    ):
        with pytest.raises(ValueError, match=message):
            TextEncoderConfig.from_json({**encoder.config.to_json(), **change})
    encoder.save(tmp_path)
    damaged = dict(encoder.state_dict())
    del damaged["encoder.final_layer_norm.weight"]
    save_weights(damaged, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"'encoder\.final_layer_norm\.weight' is missing"):
        TextEncoder.load(tmp_path)
