"""UMT5 as Wan published it: `models_t5_umt5-xxl-enc-bf16.pth`, a pickle of tensors under names of its own.

The encoder itself is `TextEncoder` and its tokenizer `Tokenizer`; here are the names, and the sizes that such a file,
which carries no configuration, has by its shapes. What Wan makes of a prompt is what `TextStates` says: the text is
cleaned, the states of its tokens are kept, and zero rows follow up to 512.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from carrara.core.weights import NameTable
from carrara.text.encoder import TextEncoderConfig

_BLOCK = {
    "layer.0.layer_norm": "norm1",
    "layer.0.SelfAttention.q": "attn.q",
    "layer.0.SelfAttention.k": "attn.k",
    "layer.0.SelfAttention.v": "attn.v",
    "layer.0.SelfAttention.o": "attn.o",
    "layer.0.SelfAttention.relative_attention_bias": "pos_embedding.embedding",
    "layer.1.layer_norm": "norm2",
    "layer.1.DenseReluDense.wi_0": "ffn.gate.0",
    "layer.1.DenseReluDense.wi_1": "ffn.fc1",
    "layer.1.DenseReluDense.wo": "ffn.fc2",
}
PUBLISHED = NameTable(
    (
        ("shared", "token_embedding"),
        *((f"encoder.block.{{}}.{ours}", f"blocks.{{}}.{theirs}") for ours, theirs in _BLOCK.items()),
        ("encoder.final_layer_norm", "norm"),
    )
)


def published_config(shapes: Mapping[str, Sequence[int]]) -> TextEncoderConfig:
    """The sizes of a published encoder, read from the shapes of its tensors. Raises ValueError where it is another."""
    try:
        vocab_size, width = shapes["token_embedding.weight"]
        inner, _ = shapes["blocks.0.attn.q.weight"]
        buckets, heads = shapes["blocks.0.pos_embedding.embedding.weight"]
        hidden, _ = shapes["blocks.0.ffn.fc1.weight"]
    except (KeyError, ValueError):
        raise ValueError(
            "not UMT5 as Wan published it, which has token_embedding, blocks.0.attn, blocks.0.pos_embedding and "
            "blocks.0.ffn; expected models_t5_umt5-xxl-enc-bf16.pth"
        ) from None
    blocks = {int(match[1]) for name in shapes if (match := re.match(r"blocks\.(\d+)\.", name))}
    return TextEncoderConfig(
        vocab_size,
        width,
        inner // heads,
        hidden,
        max(blocks) + 1,
        heads,
        relative_attention_num_buckets=buckets,
    )
