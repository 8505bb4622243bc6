"""UMT5 from a foreign folder: its names as published, its sizes by shapes, and the states that Wan's pipeline makes."""

from __future__ import annotations

import pytest
import torch
from diffusers import WanPipeline
from tests.systems.foreign import parts, write_diffusers, write_original
from transformers import AutoTokenizer

from carrara.systems.folder import recognise
from carrara.text.encoder import UMT5_XXL, TextEncoder
from carrara.text.tokenizer import Tokenizer
from carrara.text.umt5 import PUBLISHED, published_config

PROMPTS = ["two cats &amp;amp; a  green frog", "", "A déjà-vu ✨ on\nthe grass — 青蛙", "red " * 200]


def published_names(layers: int) -> set[str]:
    """Every tensor of models_t5_umt5-xxl-enc-bf16.pth, written out from its description."""
    names = {"token_embedding.weight", "norm.weight"}
    for index in range(layers):
        layers_of_block = ["norm1", "attn.q", "attn.k", "attn.v", "attn.o", "pos_embedding.embedding"]
        layers_of_block += ["norm2", "ffn.gate.0", "ffn.fc1", "ffn.fc2"]
        names |= {f"blocks.{index}.{layer}.weight" for layer in layers_of_block}
    return names


def test_names_and_sizes_are_the_published_ones():
    with torch.device("meta"):
        ours = {name: tuple(value.shape) for name, value in TextEncoder(UMT5_XXL).state_dict().items()}
    assert {PUBLISHED.to_theirs(name) for name in ours} == published_names(24)
    assert {PUBLISHED.to_ours(name) for name in published_names(24)} == set(ours)
    config = published_config({PUBLISHED.to_theirs(name): shape for name, shape in ours.items()})
    assert config.to_json() | {"dropout_rate": 0.1} == UMT5_XXL.to_json()
    assert sum(torch.Size(shape).numel() for shape in ours.values()) / 1e9 == pytest.approx(5.68, abs=0.005)


def test_shapes_of_something_else_are_refused():
    with pytest.raises(ValueError, match="not UMT5 as Wan published it"):
        published_config({"shared.weight": (3, 4)})


@pytest.fixture(scope="module")
def pipeline() -> WanPipeline:
    made = parts("t2v", 5)
    return WanPipeline(tokenizer=made["tokenizer"], text_encoder=made["text_encoder"], vae=made["vae"], scheduler=None)


@pytest.mark.parametrize("write", [write_diffusers, write_original])
def test_states_are_those_of_the_wan_pipeline(pipeline, tmp_path, write):
    write(tmp_path, "t2v", parts("t2v", 5))
    found = recognise(tmp_path)
    encoder, tokenizer = found.load("text_encoder", torch.float32), Tokenizer.load(found.tokenizer)
    expected, _ = pipeline.encode_prompt(PROMPTS, do_classifier_free_guidance=False, max_sequence_length=512)
    text = encoder(*tokenizer.encode(PROMPTS))
    assert text.padded_length == expected.shape[1] == 512
    states = torch.zeros_like(expected)
    states[:, : text.states.shape[1]] = text.states
    torch.testing.assert_close(states, expected, rtol=1e-5, atol=1e-5)
    theirs = AutoTokenizer.from_pretrained(found.tokenizer)
    assert tokenizer.encode([PROMPTS[2]])[0][0].tolist() == theirs("A déjà-vu ✨ on the grass — 青蛙").input_ids
