"""A model folder: the diffusers layout, so that public checkpoints run here and models trained here run there.

`model_index.json`, `transformer/`, `vae/`, `text_encoder/`, `tokenizer/`, `scheduler/`; of Wan's larger models also
`transformer_2/` and `image_encoder/`; safetensors only. Two things are ours and ignored elsewhere: `carrara.json`, the
clip and the sampling that the model was made for, and `refiner/`, of a model that has one. The layout in which Wan was
published is read too (`original.py`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from carrara.autoencoders.video import VideoAutoencoder
from carrara.autoencoders.video_config import VideoAutoencoderConfig
from carrara.autoencoders.video_weights import diffusers_names
from carrara.core.config import read_json, to_dict, write_json
from carrara.core.weights import load_weights, save_weights
from carrara.denoisers.dit_weights import DIFFUSERS as DENOISER_NAMES
from carrara.nn.lora import adapted_layers
from carrara.systems.diffusers_layout import REFINER, WEIGHTS, recognise_diffusers
from carrara.systems.image_tower_weights import write_tower
from carrara.systems.kinds import ModelKind
from carrara.systems.latent import LatentVideo
from carrara.systems.original import is_original, recognise_original
from carrara.systems.parts import ModelFolder
from carrara.systems.refiner import Refiner

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


def read_folder(
    folder: Path, dtype: torch.dtype | None = None, staged: bool = False, offload: bool = False
) -> LatentVideo:
    """Load every part of a folder in either layout; dtype None is float32 for models made here, else as published.

    staged, offload: keep out of memory what is not in use, see `ModelFolder.parts`.

    Raises ValueError that names the first thing that is missing, foreign or damaged, before anything is loaded.
    """
    return assemble(recognise(folder), dtype, staged, offload)


def assemble(
    found: ModelFolder,
    dtype: torch.dtype | None = None,
    staged: bool = False,
    offload: bool = False,
    device: str = "cpu",
) -> LatentVideo:
    """The system that a recognised folder holds, on a device."""
    parts = found.parts(dtype, staged, offload, device)
    if dtype == torch.bfloat16:
        parts.autoencoder.pack()
    return LatentVideo(
        parts.autoencoder,
        parts.denoiser,
        parts.text_encoder,
        parts.tokenizer,
        parts.defaults,
        parts.fingerprint,
        low_denoiser=parts.low_denoiser,
        boundary=parts.kind.boundary or 0.0,
        image_tower=parts.image_tower,
        refiner=parts.refiner,
    ).to(device)


def recognise(folder: Path) -> ModelFolder:
    """What a folder is, by what is in it; reads its configuration only. Raises ValueError for what does not run."""
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such model folder")
    if (folder / "model_index.json").is_file():
        return recognise_diffusers(folder)
    if is_original(folder):
        return recognise_original(folder)
    if (folder.parent / "model_index.json").is_file():
        raise ValueError(f"{folder}: a part of a model; give the folder above, {folder.parent}")
    if snapshots := sorted(path.parent for path in folder.glob("snapshots/*/model_index.json")):
        raise ValueError(f"{folder}: a cache of the hub; give the model in it, {snapshots[-1]}")
    inside = sorted(path.parent for path in folder.glob("*/model_index.json"))
    hint = f"give a model in it, {inside[0]}" if inside else "give the one that holds it"
    raise ValueError(
        f"{folder}: not a model folder, for it has no model_index.json, and not Wan's own files either; {hint}"
    )


def write_folder(system: LatentVideo, folder: Path, dtype: torch.dtype, released: ModelKind | None = None) -> None:
    """Write every part and its configuration; `model_index.json` comes last, so a half-written folder never loads.

    released: what the model was published as, where it was only trained on here: it is read as such again.
    Raises ValueError for one with adapters on it.
    """
    if any(adapted_layers(part) for part in (system.denoiser, system.low_denoiser) if part is not None):
        raise ValueError(f"{folder}: the model has adapters on it; merge them (carrara lora merge), or take them off")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model_index.json").unlink(missing_ok=True)
    denoisers = {"transformer": system.denoiser, "transformer_2": system.low_denoiser}
    for part, denoiser in denoisers.items():
        if denoiser is not None:
            write_json(folder / part / "config.json", denoiser.config.to_diffusers() | VERSION)
            save_weights(denoiser.state_dict(), folder / part / f"{WEIGHTS}.safetensors", DENOISER_NAMES, dtype)
    write_autoencoder(system.autoencoder, folder / "vae", dtype)
    if system.image_tower is not None:
        write_tower(system.image_tower, folder)
    if system.refiner is not None:
        write_refiner(system.refiner, folder / "refiner", dtype)
    system.text_encoder.save(folder / "text_encoder", dtype)
    system.tokenizer.save(folder / "tokenizer")
    write_json(folder / "scheduler/scheduler_config.json", scheduler_config(system.defaults.shift))
    said = {"foreign": True} if released else {}
    write_json(folder / "carrara.json", {"defaults": to_dict(system.defaults), **said})
    write_json(folder / "model_index.json", _index(system, released is not None and released.expand_timesteps))


def _index(system: LatentVideo, expand_timesteps: bool) -> dict[str, Any]:
    """What diffusers must know of the system's parts, and whether every token is told its own noise level."""
    index = INDEX | {"expand_timesteps": expand_timesteps}
    if system.denoiser.config.given_channels:
        tower = system.image_tower is not None
        index |= {"_class_name": "WanImageToVideoPipeline"}
        index |= {"image_encoder": ["transformers", "CLIPVisionModel"] if tower else [None, None]}
        index |= {"image_processor": ["transformers", "CLIPImageProcessor"] if tower else [None, None]}
    if system.low_denoiser is not None:
        index |= {"boundary_ratio": system.boundary, "transformer_2": INDEX["transformer"]}
    return index


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


def write_refiner(refiner: Refiner, folder: Path, dtype: torch.dtype) -> None:
    """Write a `refiner/` folder."""
    write_json(folder / "config.json", to_dict(refiner.config))
    save_weights(refiner.state_dict(), folder / f"{REFINER}.safetensors", dtype=dtype)


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
