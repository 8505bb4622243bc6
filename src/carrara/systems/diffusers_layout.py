"""The layout of diffusers: a folder for every part, with its `config.json`, and `model_index.json` above them.

Weights are safetensors, whole or in shards with an index. What a folder is for follows from its index and from the
channels of its transformer, not from its name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from carrara.autoencoders.video import VideoAutoencoder
from carrara.autoencoders.video_config import CLASS_NAME, VideoAutoencoderConfig
from carrara.autoencoders.video_weights import diffusers_names
from carrara.core.config import from_dict, nearest, read_json
from carrara.core.weights import shard_files
from carrara.denoisers.dit import DiT
from carrara.denoisers.dit_config import DiTConfig
from carrara.denoisers.dit_weights import DIFFUSERS, is_island, is_never_used
from carrara.systems.image_tower import ImageTower, ImageTowerConfig
from carrara.systems.image_tower_weights import FOLDER_NAMES, is_not_read
from carrara.systems.kinds import ModelKind
from carrara.systems.latent import Defaults
from carrara.systems.parts import INCOMPLETE, ModelFolder, Network, defaults_of
from carrara.systems.refiner import Refiner, RefinerConfig
from carrara.systems.registry import READERS
from carrara.systems.releases import SUPPORTED, kind_of
from carrara.text.encoder import TIED, TextEncoder, TextEncoderConfig

WEIGHTS = "diffusion_pytorch_model"
REFINER = "model"
PIPELINES = ("WanPipeline", "WanImageToVideoPipeline")
TRANSFORMER = "WanTransformer3DModel"
_SCHEDULERS = {"UniPCMultistepScheduler": "flow_shift", "FlowMatchEulerDiscreteScheduler": "shift"}


def recognise_diffusers(folder: Path) -> ModelFolder:
    """What a folder with a `model_index.json` is. Raises ValueError for what does not run here."""
    index = read_json(folder / "model_index.json")
    name = index.get("_class_name", "")
    if name in READERS:
        raise ValueError(
            f"{folder}: a {name} folder, a system of pixels, where a latent model is needed; it runs with `carrara "
            "generate --model` and `carrara evaluate`, and goes on learning in its own run's folder"
        )
    if name not in PIPELINES:
        raise ValueError(
            f"{folder}: a {name or 'nameless'} folder, an unknown architecture; Carrara runs {' and '.join(PIPELINES)} "
            f"folders: {SUPPORTED}"
        )
    boundary, second = index.get("boundary_ratio"), index.get("transformer_2") or [None, None]
    if second[1] is not None and boundary is None:
        raise ValueError(f"{folder}/model_index.json: two transformers, and no boundary_ratio between them")
    config = DiTConfig.from_diffusers(_config(folder, "transformer", TRANSFORMER))
    try:
        kind = kind_of(config, boundary, bool(index.get("expand_timesteps")))
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from None
    said = folder / "carrara.json"
    own = said.is_file() and not read_json(said).get("foreign", False)  # foreign: published elsewhere, trained on here
    if own:
        kind = replace(kind, family="Carrara", negative="")
    networks = {"transformer": _denoiser(folder, "transformer")}
    if kind.experts == 2:
        networks["transformer_2"] = _denoiser(folder, "transformer_2")
    networks["vae"] = _autoencoder(folder)
    networks["text_encoder"] = _text_encoder(folder)
    if kind.image_tower:
        networks["image_encoder"] = _image_tower(folder)
    if (folder / "refiner").is_dir():
        networks["refiner"] = _refiner(folder)
    return ModelFolder(folder, "diffusers", kind, networks, folder / "tokenizer", _defaults(folder, kind), not own)


def _denoiser(folder: Path, part: str) -> Network:
    return Network(
        build=lambda: DiT(DiTConfig.from_diffusers(_config(folder, part, TRANSFORMER))),
        files=_shards(folder, part, WEIGHTS),
        table=lambda _: DIFFUSERS,
        keep=is_island,
        skip=is_never_used,
    )


def _autoencoder(folder: Path) -> Network:
    return Network(
        build=lambda: VideoAutoencoder(VideoAutoencoderConfig.from_diffusers(_config(folder, "vae", CLASS_NAME))),
        files=_shards(folder, "vae", WEIGHTS),
        table=lambda module: diffusers_names(module.config),
    )


def _text_encoder(folder: Path) -> Network:
    where = str(folder / "text_encoder/config.json")
    return Network(
        build=lambda: TextEncoder(TextEncoderConfig.from_json(_config(folder, "text_encoder"), where)),
        files=_shards(folder, "text_encoder", "model"),
        table=lambda _: TIED,
    )


def _image_tower(folder: Path) -> Network:
    where = str(folder / "image_encoder/config.json")
    return Network(
        build=lambda: ImageTower(ImageTowerConfig.from_json(_config(folder, "image_encoder"), where)),
        files=_shards(folder, "image_encoder", "model"),
        table=lambda _: FOLDER_NAMES,
        skip=is_not_read,
    )


def _refiner(folder: Path) -> Network:
    where = str(folder / "refiner/config.json")
    return Network(
        build=lambda: Refiner(from_dict(RefinerConfig, _config(folder, "refiner"), where)),
        files=_shards(folder, "refiner", REFINER),
    )


def _shards(folder: Path, part: str, stem: str) -> Callable[[], list[Path]]:
    return lambda: shard_files(_part(folder, part), stem)


def _part(folder: Path, part: str) -> Path:
    if not (folder / part).is_dir():
        raise ValueError(f"{folder}: no {part}/ in it; {INCOMPLETE}")
    return folder / part


def _config(folder: Path, part: str, wanted: str = "") -> dict[str, Any]:
    """A part's configuration, of the class that runs here."""
    values = read_json(_part(folder, part) / "config.json")
    found = values.get("_class_name", wanted)
    if wanted and found != wanted:
        raise ValueError(
            f"{folder / part}: a {found}, an unknown architecture; expected a {wanted}; supported: {SUPPORTED}"
        )
    return values


def _defaults(folder: Path, kind: ModelKind) -> Defaults:
    """The model's own defaults, else the kind's with the solver and the shift that the folder's scheduler asks for."""
    own = folder / "carrara.json"
    if own.is_file():
        return from_dict(Defaults, read_json(own).get("defaults", {}), str(own))
    scheduler = read_json(_part(folder, "scheduler") / "scheduler_config.json")
    name = scheduler.get("_class_name", "")
    if name not in _SCHEDULERS:
        raise ValueError(f"{folder}/scheduler: unknown scheduler {name!r}; {nearest(name, _SCHEDULERS)}")
    euler = name.startswith("FlowMatch")
    return defaults_of(
        kind,
        shift=float(scheduler.get(_SCHEDULERS[name]) or 1.0),
        sampler="euler" if euler else "unipc",
        grid="diffusers-euler" if euler else "diffusers-unipc",
    )
