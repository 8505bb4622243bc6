"""The text encoder: UMT5 of `transformers`, as Wan uses it, at any size.

Tensor names are those of a `UMT5EncoderModel` folder. Not standard: the tied token table is held once, as `shared`, so
the state dict is exactly what such a folder's file holds; and states beyond a prompt's end are zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from carrara.core.config import read_json, write_json
from carrara.core.types import TextStates
from carrara.core.weights import NameTable, load_weights, save_weights

# Names in folders: some hold the tied table under its second name, or under both.
TIED = NameTable([("shared", "shared"), ("shared", "encoder.embed_tokens")])
# What an UMT5 config.json means where it is silent.
_SILENT = {"vocab_size": 250112, "d_model": 512, "d_kv": 64, "d_ff": 1024, "num_layers": 8, "num_heads": 6}


@dataclass(frozen=True)
class TextEncoderConfig:
    """Sizes of an UMT5 encoder, named as in its config.json. Feed-forwards are gated GELU (tanh), without biases."""

    vocab_size: int
    d_model: int = 256
    d_kv: int = 64
    d_ff: int = 512
    num_layers: int = 2
    num_heads: int = 4
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    layer_norm_epsilon: float = 1e-6
    dropout_rate: float = 0.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name == "dropout_rate":
                if not 0 <= value < 1:
                    raise ValueError(f"dropout_rate={value}: expected at least 0 and less than 1")
            elif value <= 0:
                raise ValueError(f"{field.name}={value}: expected more than 0")

    def to_json(self) -> dict[str, Any]:
        """The content of config.json as `transformers` reads it."""
        family = {
            "architectures": ["UMT5EncoderModel"],
            "model_type": "umt5",
            "feed_forward_proj": "gated-gelu",
            "dense_act_fn": "gelu_new",
            "is_gated_act": True,
            "is_encoder_decoder": True,
            "pad_token_id": 0,
            "eos_token_id": 1,
            "decoder_start_token_id": 0,
            "tie_word_embeddings": True,
        }
        return {**family, **asdict(self)}

    @classmethod
    def from_json(cls, content: Mapping[str, Any], where: str = "config.json") -> TextEncoderConfig:
        """Read a config.json of the UMT5 family; its bookkeeping keys are passed over. Raises ValueError otherwise."""
        for key, wanted in (("model_type", "umt5"), ("feed_forward_proj", "gated-gelu")):
            if content.get(key, "gated-gelu") != wanted:
                raise ValueError(f"{where}: {key}={content.get(key)!r}; this encoder is {wanted!r}")
        known = {field.name for field in fields(cls)}
        return cls(**{**_SILENT, **{key: value for key, value in content.items() if key in known}})


UMT5_XXL = TextEncoderConfig(vocab_size=256384, d_model=4096, d_ff=10240, num_layers=24, num_heads=64, dropout_rate=0.1)


class TextEncoder(nn.Module):
    """UMT5's encoder over token ids; trainable, and indifferent to how far a batch is padded."""

    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        # Imported here: it takes about two seconds, and who only tokenises need not wait.
        from transformers.models.umt5.configuration_umt5 import UMT5Config
        from transformers.models.umt5.modeling_umt5 import UMT5EncoderModel

        self.config = config
        model = UMT5EncoderModel(UMT5Config(**config.to_json()))
        self.shared = model.shared
        self.encoder = model.encoder
        self.encoder.register_module("embed_tokens", None)  # the same table as `shared`; one name is enough

    def forward(self, ids: Tensor, mask: Tensor) -> TextStates:
        """States of the real tokens, zero beyond. ids, mask: `b n`, mask 1 where real and 0 after the prompt's end."""
        embedded = self.shared(ids)
        states = self.encoder(inputs_embeds=embedded, attention_mask=mask).last_hidden_state
        states = states.masked_fill((mask == 0)[..., None], 0)
        return TextStates(states, mask.sum(dim=1))

    def save(self, folder: str | Path, dtype: torch.dtype | None = None) -> None:
        """Write `config.json` and `model.safetensors`, a folder that `UMT5EncoderModel.from_pretrained` reads."""
        folder = Path(folder)
        written = str(dtype or self.shared.weight.dtype).removeprefix("torch.")
        save_weights(self.state_dict(), folder / "model.safetensors", dtype=dtype)
        write_json(folder / "config.json", {**self.config.to_json(), "dtype": written})

    @classmethod
    def load(cls, folder: str | Path, dtype: torch.dtype | None = None) -> TextEncoder:
        """Read such a folder, whole or sharded, in evaluation mode. Memory holds each tensor once, in `dtype`.

        Raises ValueError that names the setting or tensor that does not fit.
        """
        folder = Path(folder)
        config = TextEncoderConfig.from_json(read_json(folder / "config.json"), str(folder / "config.json"))
        with torch.device("meta"):
            encoder = cls(config)
        load_weights(encoder, folder, "model", table=TIED, dtype=dtype)
        return encoder.eval()
