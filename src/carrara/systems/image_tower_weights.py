"""The image tower as Wan published it: a part of `models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth`.

That file holds queries, keys and values of a block as one matrix, the tower's text side, which nothing here reads, and
the projection of both into one space. Here its tensors are presented under the names and in the shapes of
`transformers`: views, so that a mapped file stays mapped.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from carrara.core.config import write_json
from carrara.core.pickles import read_pickle
from carrara.core.weights import NameTable, save_weights
from carrara.systems.image_tower import MEAN, STD, ImageTower, ImageTowerConfig

_HEAD_DIM = 80  # of ViT-H; the number of heads leaves no trace in the shapes
_NETWORK = "vision_model"
_BLOCK = {
    "layer_norm1": "norm1",
    "self_attn.out_proj": "attn.proj",
    "layer_norm2": "norm2",
    "mlp.fc1": "mlp.0",
    "mlp.fc2": "mlp.2",
}

# Folders of `transformers` hold the network under its own name or, of late, without it.
FOLDER_NAMES = NameTable(
    [
        (_NETWORK, _NETWORK),
        *((f"{_NETWORK}.{part}", part) for part in ("embeddings", "pre_layrnorm", "encoder", "post_layernorm")),
    ]
)
PUBLISHED = NameTable(
    (
        (f"{_NETWORK}.embeddings.class_embedding", "visual.cls_embedding"),
        (f"{_NETWORK}.embeddings.patch_embedding", "visual.patch_embedding"),
        (f"{_NETWORK}.embeddings.position_embedding.weight", "visual.pos_embedding"),
        (f"{_NETWORK}.pre_layrnorm", "visual.pre_norm"),
        (f"{_NETWORK}.post_layernorm", "visual.post_norm"),
        *((f"{_NETWORK}.encoder.layers.{{}}.{ours}", f"visual.transformer.{{}}.{b}") for ours, b in _BLOCK.items()),
        *((f"{_NETWORK}.encoder.layers.{{}}.self_attn.{x}_proj", f"visual.transformer.{{}}.attn.{x}") for x in "qkv"),
    )
)


def write_tower(tower: ImageTower, folder: Path) -> None:
    """The parts `image_encoder/` and `image_processor/` of a model folder, in float32, as `transformers` reads them."""
    kind = {"architectures": ["CLIPVisionModel"], "model_type": "clip_vision_model"}
    write_json(folder / "image_encoder/config.json", asdict(tower.config) | kind)
    save_weights(tower.state_dict(), folder / "image_encoder/model.safetensors", None, torch.float32)
    side = tower.config.image_size
    write_json(
        folder / "image_processor/preprocessor_config.json",
        {
            "image_processor_type": "CLIPImageProcessor",
            "do_convert_rgb": True,
            "do_resize": True,
            "size": {"shortest_edge": side},
            "resample": 3,
            "do_center_crop": True,
            "crop_size": {"height": side, "width": side},
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": list(MEAN),
            "image_std": list(STD),
        },
    )


def is_not_read(name: str) -> bool:
    """Whether a tensor of an image encoder's folder is a count, or the projection that follows what is read."""
    return name.endswith("position_ids") or name.startswith("visual_projection")


def read_published(path: Path) -> Mapping[str, Tensor]:
    """The tower's tensors in a published file: queries, keys and values apart, without axes of one."""
    found: dict[str, Tensor] = {}
    for name, value in read_pickle(path).items():
        if not name.startswith("visual.") or name == "visual.head":
            continue
        if match := re.fullmatch(r"(visual\.transformer\.\d+\.attn)\.to_qkv\.(weight|bias)", name):
            found |= {f"{match[1]}.{x}.{match[2]}": part for x, part in zip("qkv", value.chunk(3))}
        elif name == "visual.cls_embedding":
            found[name] = value.flatten()
        else:
            found[name] = value[0] if name == "visual.pos_embedding" else value
    if not found:
        raise ValueError(f"{path}: holds no image tower; expected CLIP's file, whose tower is called 'visual'")
    return found


def published_config(shapes: Mapping[str, Sequence[int]]) -> ImageTowerConfig:
    """The tower's sizes by the shapes of `read_published`. Raises ValueError where it is another network."""
    try:
        positions, width = shapes["visual.pos_embedding"]
        patch = shapes["visual.patch_embedding.weight"][-1]
        hidden = shapes["visual.transformer.0.mlp.0.weight"][0]
    except (KeyError, ValueError, IndexError):
        raise ValueError("not CLIP's image tower, which has visual.pos_embedding and visual.transformer") from None
    layers = {int(match[1]) for name in shapes if (match := re.match(r"visual\.transformer\.(\d+)\.", name))}
    return ImageTowerConfig(
        hidden_size=width,
        intermediate_size=hidden,
        num_hidden_layers=max(layers) + 1,
        num_attention_heads=max(1, width // _HEAD_DIM),
        image_size=round((positions - 1) ** 0.5) * patch,
        patch_size=patch,
    )
