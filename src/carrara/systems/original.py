"""The layout in which Wan was published: safetensors and `config.json` of the transformer at the top, pickles beside.

    config.json, diffusion_pytorch_model*.safetensors      the transformer; of two experts instead
    high_noise_model/, low_noise_model/                    the same files of each
    Wan2.1_VAE.pth or Wan2.2_VAE.pth                       the autoencoder
    models_t5_umt5-xxl-enc-bf16.pth, google/umt5-xxl/      the text encoder and its tokenizer
    models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth    the image tower (image to video, Wan 2.1)

The pickles carry no configuration: it is read from the shapes of their tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from carrara.autoencoders import video_weights
from carrara.autoencoders.video import VideoAutoencoder
from carrara.core.config import nearest, read_json
from carrara.core.pickles import read_pickle
from carrara.core.weights import Reader, Shard, shard_files
from carrara.denoisers.dit import DiT
from carrara.denoisers.dit_config import DiTConfig
from carrara.denoisers.dit_weights import WAN, is_island
from carrara.systems import image_tower_weights
from carrara.systems.image_tower import ImageTower
from carrara.systems.parts import INCOMPLETE, ModelFolder, Network, defaults_of
from carrara.systems.releases import BOUNDARIES, SUPPORTED, kind_of
from carrara.text import umt5
from carrara.text.encoder import TextEncoder

STEM = "diffusion_pytorch_model"
EXPERTS = {"transformer": "high_noise_model", "transformer_2": "low_noise_model"}
TEXT_ENCODER = "models_t5_umt5-xxl-enc-bf16.pth"
TOKENIZER = "google/umt5-xxl"
IMAGE_TOWER = "models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth"

# Wan's settings and diffusers', those that all models share, and those that are of no consequence here.
_SETTINGS = {
    "num_heads": "num_attention_heads",
    "num_layers": "num_layers",
    "ffn_dim": "ffn_dim",
    "in_dim": "in_channels",
    "out_dim": "out_channels",
    "text_dim": "text_dim",
    "freq_dim": "freq_dim",
    "patch_size": "patch_size",
    "eps": "eps",
}
_SHARED: dict[str, Any] = {"qk_norm": True, "cross_attn_norm": True, "window_size": [-1, -1], "text_len": 512}
_TASKS = ("t2v", "i2v", "flf2v", "ti2v")

Config = TypeVar("Config")


def is_original(folder: Path) -> bool:
    """Whether a folder is in this layout, complete or not."""
    return any((folder / name / "config.json").is_file() for name in EXPERTS.values()) or (
        (folder / "config.json").is_file() and _is_wan(read_json(folder / "config.json"))
    )


def _is_wan(values: Mapping[str, Any]) -> bool:
    return str(values.get("_class_name", "")).endswith("WanModel") or {"model_type", "num_heads"} <= set(values)


def recognise_original(folder: Path) -> ModelFolder:
    """What a folder of this layout is. Raises ValueError for what does not run here."""
    pair = not (folder / "config.json").is_file()
    places = {name: folder / place for name, place in EXPERTS.items()} if pair else {"transformer": folder}
    config, task = read_config(places["transformer"])
    try:
        kind = kind_of(config, BOUNDARIES.get(task) if pair else None, task == "ti2v")
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from None
    if kind.task != task:
        raise ValueError(f"{folder}: config.json says {task!r}, its {config.in_channels} channels {kind.task!r}")
    networks = {name: _denoiser(place) for name, place in places.items()}
    networks["vae"] = _autoencoder(folder, "Wan2.2_VAE.pth" if task == "ti2v" else "Wan2.1_VAE.pth")
    networks["text_encoder"] = _text_encoder(folder)
    if kind.image_tower:
        networks["image_encoder"] = _image_tower(folder)
    defaults = defaults_of(kind, kind.shift, "unipc", "wan")
    return ModelFolder(folder, "original", kind, networks, folder / TOKENIZER, defaults)


def read_config(folder: Path) -> tuple[DiTConfig, str]:
    """The sizes of a transformer, and the task that its `config.json` names."""
    where = folder / "config.json"
    values = {key: value for key, value in read_json(where).items() if not key.startswith("_")}
    task = values.pop("model_type", "t2v")
    if task not in _TASKS:
        raise ValueError(f"{where}: unknown architecture {task!r}; supported: {SUPPORTED}")
    for key, value in values.items():
        if key not in _SETTINGS and key not in _SHARED and key != "dim":
            raise ValueError(f"{where}: no setting {key!r}; {nearest(key, [*_SETTINGS, *_SHARED, 'dim'])}")
        if key in _SHARED and value != _SHARED[key]:
            raise ValueError(f"{where}: {key}={value!r}: this transformer can only have {_SHARED[key]!r} here")
    if missing := [
        key for key in ("dim", "num_heads", "num_layers", "ffn_dim", "in_dim", "out_dim") if key not in values
    ]:
        raise ValueError(f"{where}: {missing[0]!r} is missing; {INCOMPLETE}")
    theirs: dict[str, Any] = {_SETTINGS[key]: value for key, value in values.items() if key in _SETTINGS}
    theirs = {"text_dim": 4096, **theirs, "attention_head_dim": values["dim"] // values["num_heads"]}
    width, positions = _image_states(folder)
    if width is not None:
        theirs |= {"image_dim": width, "added_kv_proj_dim": values["dim"], "pos_embed_seq_len": positions}
    return DiTConfig.from_diffusers(theirs), task


def _image_states(folder: Path) -> tuple[int | None, int | None]:
    """How wide the image tower's states are that a transformer reads, and how many have learned positions.

    Its configuration does not say: where it reads any, its tensors do.
    """
    found: dict[str, tuple[int, ...]] = {}
    try:
        for path in shard_files(folder, STEM):
            shapes = Shard(path).outline()
            found |= {name: tuple(value.shape) for name, value in shapes.items() if name.startswith("img_emb.")}
    except ValueError:
        pass  # what is missing or damaged is told when it is asked for
    width, positions = found.get("img_emb.proj.0.weight", (None,))[0], found.get("img_emb.emb_pos", (None, None))[1]
    return width, positions


def _denoiser(folder: Path) -> Network:
    return Network(
        build=lambda: DiT(read_config(folder)[0]),
        files=lambda: shard_files(_there(folder), STEM),
        table=lambda _: WAN,
        keep=is_island,
    )


def _autoencoder(folder: Path, name: str) -> Network:
    path = folder / name
    return Network(
        build=lambda: VideoAutoencoder(_by_shapes(_there(path), read_pickle, video_weights.published_config)),
        files=lambda: [_there(path)],
        read=read_pickle,
        table=lambda module: video_weights.published_names(module.config),
    )


def _text_encoder(folder: Path) -> Network:
    path = folder / TEXT_ENCODER
    return Network(
        build=lambda: TextEncoder(_by_shapes(_there(path), read_pickle, umt5.published_config)),
        files=lambda: [_there(path)],
        read=read_pickle,
        table=lambda _: umt5.PUBLISHED,
    )


def _image_tower(folder: Path) -> Network:
    path, read = folder / IMAGE_TOWER, image_tower_weights.read_published
    return Network(
        build=lambda: ImageTower(_by_shapes(_there(path), read, image_tower_weights.published_config)),
        files=lambda: [_there(path)],
        read=read,
        table=lambda _: image_tower_weights.PUBLISHED,
    )


def _by_shapes(path: Path, read: Reader, config: Callable[[Mapping[str, Sequence[int]]], Config]) -> Config:
    """A configuration that a file's shapes tell; the error names the file."""
    tensors: Mapping[str, Tensor] = read(path)
    try:
        return config({name: value.shape for name, value in tensors.items()})
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _there(path: Path) -> Path:
    if not path.exists():
        kind = "" if path.suffix else "/"
        raise ValueError(f"{path.parent}: no {path.name}{kind} in it; {INCOMPLETE}")
    return path
