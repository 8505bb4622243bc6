"""Tiny folders of every supported kind with random weights, written by diffusers and transformers, in both layouts."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import CLIPVisionConfig, CLIPVisionModel, PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from carrara.autoencoders.video_config import WAN_2_1, WAN_2_2, VideoAutoencoderConfig
from carrara.autoencoders.video_weights import diffusers_names, published_names
from carrara.denoisers.dit_weights import DIFFUSERS, WAN
from carrara.text.umt5 import PUBLISHED

KINDS = ("t2v", "i2v", "flf2v", "ti2v", "t2v-experts", "i2v-experts")
IMAGES = ("i2v", "flf2v", "i2v-experts")
WORDS = ["a", "red", "ball", "bounces", "on", "the", "grass", "green", "frog", "&", "two", "cats"]
TEXT_DIM = 24


def tokenizer() -> PreTrainedTokenizerFast:
    """A unigram tokenizer with byte fallback, as UMT5's: every word below one piece, all else bytes."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    pieces += [(f"<0x{byte:02X}>", -9.0) for byte in range(256)]
    pieces += [("▁", -2.0), *((f"▁{word}", -3.0 - i / 10) for i, word in enumerate(WORDS))]
    backend = Tokenizer(models.Unigram(pieces, unk_id=2, byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    backend.decoder = decoders.Metaspace()
    backend.post_processor = processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=512
    )


def parts(kind: str, seed: int = 0) -> dict[str, Any]:
    """The networks of one kind of model, every weight drawn, as `WanPipeline` and its sisters take them."""
    torch.manual_seed(seed)
    z = 48 if kind == "ti2v" else 16
    config = WAN_2_2 if kind == "ti2v" else WAN_2_1
    small: dict[str, Any] = {"base_dim": 4, "decoder_base_dim": 8 if kind == "ti2v" else None}
    vae = AutoencoderKLWan.from_config({**config.to_diffusers(), **small})
    transformer: dict[str, Any] = {
        "num_attention_heads": 2,
        "attention_head_dim": 12,
        "num_layers": 2,
        "ffn_dim": 32,
        "in_channels": 36 if kind in IMAGES else z,
        "out_channels": z,
        "text_dim": TEXT_DIM,
        "freq_dim": 16,
    }
    if kind in ("i2v", "flf2v"):
        transformer |= {"image_dim": 160, "added_kv_proj_dim": 24}
        transformer["pos_embed_seq_len"] = 10 if kind == "flf2v" else None  # the states of two images
    words = tokenizer()
    text = UMT5EncoderModel(
        UMT5Config(vocab_size=len(words), d_model=TEXT_DIM, d_kv=6, d_ff=20, num_layers=2, num_heads=4)
    )
    made: dict[str, Any] = {
        "transformer": WanTransformer3DModel(**transformer),
        "transformer_2": WanTransformer3DModel(**transformer) if kind.endswith("experts") else None,
        "vae": vae,
        "text_encoder": text,
        "tokenizer": words,
    }
    if kind in ("i2v", "flf2v"):
        clip = CLIPVisionConfig(
            hidden_size=160,
            intermediate_size=64,
            num_hidden_layers=3,
            num_attention_heads=2,
            image_size=28,
            patch_size=14,
            hidden_act="gelu",
        )
        made["image_encoder"] = CLIPVisionModel(clip)
    for network in made.values():
        if isinstance(network, torch.nn.Module):
            network.eval().requires_grad_(False)
            for parameter in network.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
    return made


def write_diffusers(folder: Path, kind: str, made: dict[str, Any] | None = None, shards: str = "5KB") -> dict[str, Any]:
    """A folder as diffusers saves it, in shards. Returns its parts."""
    made = made or parts(kind)
    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0)
    networks = {name: made[name] for name in ("transformer", "transformer_2", "vae", "text_encoder", "tokenizer")}
    boundary = {"t2v-experts": 0.875, "i2v-experts": 0.9}.get(kind)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipeline = WanPipeline(
            **networks, scheduler=scheduler, boundary_ratio=boundary, expand_timesteps=kind == "ti2v"
        )
        pipeline.save_pretrained(folder, max_shard_size=shards)
        if "image_encoder" in made:
            made["image_encoder"].save_pretrained(folder / "image_encoder")
    if kind in IMAGES:
        index = json.loads((folder / "model_index.json").read_text())
        index |= {"_class_name": "WanImageToVideoPipeline", "image_encoder": ["transformers", "CLIPVisionModel"]}
        (folder / "model_index.json").write_text(json.dumps(index))
    return made


def write_original(folder: Path, kind: str, made: dict[str, Any] | None = None) -> dict[str, Any]:
    """The same model as Wan would have published it. Returns its parts."""
    made = made or parts(kind)
    folder.mkdir(parents=True, exist_ok=True)
    if made["transformer_2"] is None:
        _write_transformer(folder, made["transformer"], kind)
    else:
        _write_transformer(folder / "high_noise_model", made["transformer"], kind)
        _write_transformer(folder / "low_noise_model", made["transformer_2"], kind)
    config = VideoAutoencoderConfig.from_diffusers(made["vae"].config)
    ours, theirs = diffusers_names(config), published_names(config)
    vae = {theirs.to_theirs(ours.to_ours(name)): value for name, value in made["vae"].state_dict().items()}
    torch.save(vae, folder / ("Wan2.2_VAE.pth" if kind == "ti2v" else "Wan2.1_VAE.pth"))
    text = {name: value for name, value in made["text_encoder"].state_dict().items() if "embed_tokens" not in name}
    text = {PUBLISHED.to_theirs(name): value for name, value in text.items()}
    torch.save(text, folder / "models_t5_umt5-xxl-enc-bf16.pth")
    made["tokenizer"].save_pretrained(folder / "google/umt5-xxl")
    if "image_encoder" in made:
        clip = published_clip(made["image_encoder"].state_dict())
        torch.save(clip, folder / "models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth")
    return made


def _write_transformer(folder: Path, network: WanTransformer3DModel, kind: str) -> None:
    config = network.config
    values = {
        "_class_name": "WanModel",
        "_diffusers_version": "0.30.0",
        "model_type": kind.split("-")[0],
        "dim": config.num_attention_heads * config.attention_head_dim,
        "num_heads": config.num_attention_heads,
        "num_layers": config.num_layers,
        "ffn_dim": config.ffn_dim,
        "in_dim": config.in_channels,
        "out_dim": config.out_channels,
        "text_dim": config.text_dim,
        "freq_dim": config.freq_dim,
        "text_len": 512,
        "eps": 1e-6,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(values))
    tensors = {WAN.to_theirs(DIFFUSERS.to_ours(name)): value for name, value in network.state_dict().items()}
    half = len(tensors) // 2
    names = [f"diffusion_pytorch_model-{i:05}-of-00002.safetensors" for i in (1, 2)]
    files = dict(zip(names, (dict(list(tensors.items())[:half]), dict(list(tensors.items())[half:]))))
    for name, content in files.items():
        save_file({key: value.contiguous() for key, value in content.items()}, folder / name)
    index = {"weight_map": {key: name for name, content in files.items() for key in content}}
    (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))


def published_clip(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """transformers' CLIP tower under Wan's names, queries, keys and values as one, with what else is in that file."""
    found: dict[str, torch.Tensor] = {"log_scale": torch.zeros(()), "textual.norm.weight": torch.ones(4)}
    found["visual.head"] = torch.zeros(4, 4)
    plain = {
        "embeddings.patch_embedding": "patch_embedding",
        "pre_layrnorm": "pre_norm",
        "post_layernorm": "post_norm",
        "layer_norm1": "norm1",
        "layer_norm2": "norm2",
        "self_attn.out_proj": "attn.proj",
        "mlp.fc1": "mlp.0",
        "mlp.fc2": "mlp.2",
    }
    tensors = {name.removeprefix("vision_model."): value for name, value in tensors.items()}
    for name, value in tensors.items():
        if name == "embeddings.class_embedding":
            found["visual.cls_embedding"] = value[None, None]
        elif name == "embeddings.position_embedding.weight":
            found["visual.pos_embedding"] = value[None]
        elif "k_proj" not in name and "v_proj" not in name and not name.endswith("position_ids"):
            if "q_proj" in name:
                value = torch.cat([tensors[name.replace("q_proj", f"{x}_proj")] for x in "qkv"])
            renamed = name.replace("encoder.layers", "transformer").replace("self_attn.q_proj", "attn.to_qkv")
            for theirs, published in plain.items():
                renamed = renamed.replace(theirs, published)
            found[f"visual.{renamed}"] = value
    return found
