"""Random models of the Wan family, tiny, with every part real: as pipelines of diffusers, and the same weights here.

A pipeline can be run, and written as a model folder with `save_pretrained`; `carrara_system` takes its weights over
part by part, through the tables of names. Of every kind: text to video (2.1), two experts (2.2 A14B), per-token times
(2.2 TI2V), an image through channels and CLIP (2.1 I2V), a first and a last image (FLF2V), both through channels alone
with two experts (2.2 I2V A14B).
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from typing import Any

import tokenizers
import torch
from torch import Tensor, nn

from carrara.autoencoders.video import VideoAutoencoder
from carrara.autoencoders.video_config import VideoAutoencoderConfig
from carrara.autoencoders.video_weights import diffusers_names
from carrara.core.types import VideoShape
from carrara.denoisers.dit import DiT, DiTConfig
from carrara.denoisers.dit_weights import DIFFUSERS
from carrara.systems.image_tower import ImageTower, ImageTowerConfig
from carrara.systems.latent import LatentVideo, Sampling
from carrara.text.encoder import TextEncoder, TextEncoderConfig
from carrara.text.tokenizer import Tokenizer, train_tokenizer

CAPTIONS = ["a red ball bounces on the grass", "a green frog jumps over the pond"]
VAE = VideoAutoencoderConfig(4, None, 4, (1, 2, 2, 2), 1, (False, True, True), False, 1, (0.1,) * 4, (0.8,) * 4)
VAE_2_2 = replace(VAE, base_dim=8, decoder_base_dim=8, residual=True, patch=2)
TOWER = ImageTowerConfig(16, 32, 3, 2, image_size=28, patch_size=14, projection_dim=8)  # 5 states of an image
SMALL = DiTConfig(2, 12, 2, 32, in_channels=4, out_channels=4, text_dim=16, frequencies=32)
IMAGE = replace(SMALL, in_channels=12)
SHAPE = VideoShape(5, 32, 32)


@dataclass(frozen=True)
class Kind:
    """What a pipeline of diffusers is made of, and the clip it makes here."""

    pipeline: str = "WanPipeline"
    transformer: DiTConfig = SMALL
    vae: VideoAutoencoderConfig = VAE
    boundary: float | None = None
    expand_timesteps: bool = False
    shift: float = 3.0
    shape: VideoShape = SHAPE


KINDS = {
    "t2v": Kind(),
    "t2v-a14b": Kind(boundary=0.875, shift=5.0),
    "ti2v-text": Kind(vae=VAE_2_2, expand_timesteps=True, shift=5.0, shape=VideoShape(5, 64, 32)),
    "ti2v-image": Kind("WanImageToVideoPipeline", SMALL, VAE_2_2, None, True, 5.0, VideoShape(5, 64, 32)),
    "i2v": Kind("WanImageToVideoPipeline", replace(IMAGE, image_dim=16)),
    "i2v-a14b": Kind("WanImageToVideoPipeline", IMAGE, boundary=0.9, shift=5.0),
    "flf2v": Kind("WanImageToVideoPipeline", replace(IMAGE, image_dim=16, image_positions=10), shift=16.0),
    "flf2v-a14b": Kind("WanImageToVideoPipeline", IMAGE, boundary=0.9, shift=5.0),
}


def random_pipeline(kind: str, seed: int = 0) -> Any:
    """A diffusers pipeline of this kind with random weights, on the CPU in float32."""
    import diffusers
    from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    wanted = KINDS[kind]
    backend = train_tokenizer(CAPTIONS).backend
    text = TextEncoderConfig(backend.get_vocab_size(), 16, 8, 16, 1, 2)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        transformers = [
            randomised(diffusers.WanTransformer3DModel.from_config(wanted.transformer.to_diffusers()))
            for _ in range(1 if wanted.boundary is None else 2)
        ]
        parts = {
            "vae": randomised(diffusers.AutoencoderKLWan.from_config(wanted.vae.to_diffusers())),
            "text_encoder": randomised(UMT5EncoderModel(UMT5Config(**text.to_json()))),
            "tokenizer": PreTrainedTokenizerFast(
                tokenizer_object=backend, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
            ),
            "transformer": transformers[0],
            "transformer_2": transformers[1] if wanted.boundary else None,
            "scheduler": diffusers.UniPCMultistepScheduler(
                prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=wanted.shift
            ),
        }
        if wanted.pipeline == "WanImageToVideoPipeline":
            tower = wanted.transformer.image_dim is not None
            side = TOWER.image_size
            parts["image_encoder"] = randomised(tower_of(TOWER)) if tower else None
            parts["image_processor"] = CLIPImageProcessorPil(
                size={"shortest_edge": side}, crop_size={"height": side, "width": side}
            )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipeline = getattr(diffusers, wanted.pipeline)(
            **parts, boundary_ratio=wanted.boundary, expand_timesteps=wanted.expand_timesteps
        )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def carrara_system(pipeline: Any) -> LatentVideo:
    """The same weights here."""
    second, tower = (getattr(pipeline, name, None) for name in ("transformer_2", "image_encoder"))
    backend = tokenizers.Tokenizer.from_str(pipeline.tokenizer.backend_tokenizer.to_str())  # theirs is set to pad
    return LatentVideo(
        autoencoder_of(pipeline.vae),
        denoiser_of(pipeline.transformer),
        text_encoder_of(pipeline.text_encoder),
        Tokenizer(backend),
        low_denoiser=None if second is None else denoiser_of(second),
        boundary=pipeline.config.boundary_ratio or 0.875,
        image_tower=None if tower is None else image_tower_of(tower),
    )


def sampling_of(pipeline: Any, guidance: float, low_guidance: float | None = None, steps: int = 20) -> Sampling:
    """What the pipeline's scheduler does."""
    shift = pipeline.scheduler.config.flow_shift
    return Sampling(steps, guidance, "unipc", shift, "diffusers-unipc", low_guidance=low_guidance)


def denoiser_of(theirs: Any) -> DiT:
    ours = DiT(DiTConfig.from_diffusers(dict(theirs.config)))
    ours.load_state_dict({DIFFUSERS.to_ours(name): value for name, value in theirs.state_dict().items()})
    return ours.eval().requires_grad_(False)


def autoencoder_of(theirs: Any) -> VideoAutoencoder:
    ours = VideoAutoencoder(VideoAutoencoderConfig.from_diffusers(dict(theirs.config)))
    names = diffusers_names(ours.config)
    ours.load_state_dict({names.to_ours(name): value for name, value in theirs.state_dict().items()})
    return ours.eval().requires_grad_(False)


def text_encoder_of(theirs: Any) -> TextEncoder:
    ours = TextEncoder(TextEncoderConfig.from_json(theirs.config.to_dict()))
    weights = theirs.state_dict()
    ours.load_state_dict({name: weights[name] for name in ours.state_dict()})
    return ours.eval().requires_grad_(False)


def image_tower_of(theirs: Any) -> ImageTower:
    ours = ImageTower(TOWER)
    ours.vision_model.load_state_dict(theirs.state_dict())
    return ours.eval().requires_grad_(False)


def tower_of(config: ImageTowerConfig) -> nn.Module:
    from dataclasses import asdict

    from transformers import CLIPVisionConfig, CLIPVisionModel

    return CLIPVisionModel(CLIPVisionConfig(**asdict(config)))


def randomised(module: nn.Module) -> Any:
    """Every parameter moved, norms and biases too, so that no part is the identity."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return module.eval().requires_grad_(False)


def picture(seed: int, height: int = 40, width: int = 48) -> Tensor:
    """A random image uint8 `h w 3`, smooth enough that resizing keeps something of it."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, 5, 6, generator=generator)
    fine = nn.functional.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 1)
    return (fine[0].permute(1, 2, 0) * 255).round().to(torch.uint8)
