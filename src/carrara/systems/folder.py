"""A model folder: the diffusers layout, so that public checkpoints run here and models trained here run there.

`model_index.json`, `transformer/`, `vae/`, `text_encoder/`, `tokenizer/`, `scheduler/`; safetensors only. One file is
ours and ignored elsewhere: `carrara.json`, the clip and the sampling that the model was made for.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from carrara.autoencoders.video import VideoAutoencoder
from carrara.autoencoders.video_config import VideoAutoencoderConfig
from carrara.autoencoders.video_weights import diffusers_names
from carrara.core.config import from_dict, nearest, read_json, to_dict, write_json
from carrara.core.weights import fingerprint, load_weights, save_weights, shard_files
from carrara.denoisers.dit import DiT, DiTConfig
from carrara.denoisers.dit_weights import DIFFUSERS as DENOISER_NAMES
from carrara.systems.latent import Defaults, LatentVideo
from carrara.text.encoder import TextEncoder
from carrara.text.tokenizer import Tokenizer

WEIGHTS = "diffusion_pytorch_model"
VERSION = {"_diffusers_version": "0.36.0"}
INDEX: dict[str, Any] = {
    "_class_name": "WanPipeline",
    **VERSION,
    "boundary_ratio": None,
    "expand_timesteps": False,
    "scheduler": ["diffusers", "UniPCMultistepScheduler"],
    "text_encoder": ["transformers", "UMT5EncoderModel"],
    "tokenizer": ["transformers", "PreTrainedTokenizerFast"],
    "transformer": ["diffusers", "WanTransformer3DModel"],
    "transformer_2": [None, None],
    "vae": ["diffusers", "AutoencoderKLWan"],
}
PARTS = ("transformer", "vae", "text_encoder", "tokenizer", "scheduler")


def read_folder(folder: Path, dtype: torch.dtype) -> LatentVideo:
    """Load every part. Raises ValueError that names the first thing that is missing, foreign or damaged."""
    check_layout(folder)
    with torch.device("meta"):
        denoiser = DiT(DiTConfig.from_diffusers(read_json(folder / "transformer/config.json")))
    load_weights(denoiser, folder / "transformer", WEIGHTS, DENOISER_NAMES, dtype)
    autoencoder = read_autoencoder(folder / "vae", dtype)
    text_encoder = TextEncoder.load(folder / "text_encoder", dtype)
    tokenizer = Tokenizer.load(folder / "tokenizer")
    for module in (denoiser, autoencoder, text_encoder):
        module.eval().requires_grad_(False)
    if denoiser.config.in_channels != autoencoder.latent_channels:
        raise ValueError(
            f"{folder}: the transformer takes {denoiser.config.in_channels} channels and the autoencoder makes "
            f"{autoencoder.latent_channels}; these parts do not belong together"
        )
    return LatentVideo(
        autoencoder, denoiser, text_encoder, tokenizer, read_defaults(folder), fingerprint(weight_files(folder))
    )


def check_layout(folder: Path) -> None:
    """Refuse what is not a folder of a text-to-video pipeline, saying what it is instead and what is missing."""
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such model folder")
    if not (folder / "model_index.json").is_file():
        raise ValueError(f"{folder}: not a model folder, for it has no model_index.json; give the one that holds it")
    index = read_json(folder / "model_index.json")
    name = index.get("_class_name", "")
    if name != INDEX["_class_name"]:
        raise ValueError(f"{folder}: a {name or 'nameless'} folder; Carrara runs {INDEX['_class_name']} folders")
    if index.get("expand_timesteps") or index.get("boundary_ratio") is not None:
        raise ValueError(f"{folder}: Wan 2.2's per-token times and pairs of experts do not run here yet")
    missing = [part for part in PARTS if not (folder / part).is_dir()]
    if missing:
        raise ValueError(f"{folder}: no {missing[0]}/ in it; is the download complete?")


def read_defaults(folder: Path) -> Defaults:
    """The model's own defaults, else Wan's with the shift that the folder's scheduler asks for."""
    own = folder / "carrara.json"
    if own.is_file():
        return from_dict(Defaults, read_json(own).get("defaults", {}), str(own))
    scheduler = read_json(folder / "scheduler/scheduler_config.json")
    name = scheduler.get("_class_name", "")
    if name not in ("UniPCMultistepScheduler", "FlowMatchEulerDiscreteScheduler"):
        known = ("UniPCMultistepScheduler", "FlowMatchEulerDiscreteScheduler")
        raise ValueError(f"{folder}/scheduler: unknown scheduler {name!r}; {nearest(name, known)}")
    euler = name.startswith("FlowMatch")
    sampling = replace(
        Defaults().sampling,
        shift=float(scheduler.get("shift" if euler else "flow_shift") or 1.0),
        sampler="euler" if euler else "unipc",
        grid="diffusers-euler" if euler else "diffusers-unipc",
    )
    return replace(Defaults(), sampling=sampling)


def weight_files(folder: Path) -> list[Path]:
    """Every file whose bytes decide what the model makes, in a fixed order."""
    files = [path for part in ("transformer", "vae") for path in shard_files(folder / part, WEIGHTS)]
    files += shard_files(folder / "text_encoder", "model")
    return [*files, *sorted((folder / "tokenizer").glob("*.json"))]


def write_folder(system: LatentVideo, folder: Path, dtype: torch.dtype) -> None:
    """Write every part and its configuration; `model_index.json` comes last, so a half-written folder never loads."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model_index.json").unlink(missing_ok=True)
    write_json(folder / "transformer/config.json", system.denoiser.config.to_diffusers() | VERSION)
    save_weights(system.denoiser.state_dict(), folder / f"transformer/{WEIGHTS}.safetensors", DENOISER_NAMES, dtype)
    write_autoencoder(system.autoencoder, folder / "vae", dtype)
    system.text_encoder.save(folder / "text_encoder", dtype)
    system.tokenizer.save(folder / "tokenizer")
    write_json(folder / "scheduler/scheduler_config.json", scheduler_config(system.defaults.shift))
    write_json(folder / "carrara.json", {"defaults": to_dict(system.defaults)})
    write_json(folder / "model_index.json", INDEX)


def read_autoencoder(folder: Path, dtype: torch.dtype = torch.float32) -> VideoAutoencoder:
    """Read a `vae/` folder: config.json and the weights."""
    with torch.device("meta"):
        autoencoder = VideoAutoencoder(VideoAutoencoderConfig.from_diffusers(read_json(folder / "config.json")))
    load_weights(autoencoder, folder, WEIGHTS, diffusers_names(autoencoder.config), dtype)
    return autoencoder.eval().requires_grad_(False)


def write_autoencoder(autoencoder: VideoAutoencoder, folder: Path, dtype: torch.dtype) -> None:
    """Write a `vae/` folder, the statistics of the latents in its config.json."""
    write_json(folder / "config.json", autoencoder.config.to_diffusers() | VERSION)
    names = diffusers_names(autoencoder.config)
    save_weights(autoencoder.state_dict(), folder / f"{WEIGHTS}.safetensors", names, dtype)


def scheduler_config(shift: float) -> dict[str, Any]:
    """What makes diffusers run the same solver on the same grid as `Sampling`'s defaults."""
    return {
        "_class_name": "UniPCMultistepScheduler",
        **VERSION,
        "num_train_timesteps": 1000,
        "prediction_type": "flow_prediction",
        "use_flow_sigmas": True,
        "flow_shift": shift,
        "solver_order": 2,
        "solver_type": "bh2",
        "predict_x0": True,
        "lower_order_final": True,
        "final_sigmas_type": "zero",
        "timestep_spacing": "linspace",
    }
