"""The released models at their true sizes, on the meta device: names and shapes are bijections in both layouts."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from tests.systems.foreign import published_clip
from transformers import CLIPVisionConfig, CLIPVisionModel, UMT5Config, UMT5EncoderModel

from carrara.autoencoders.video import VideoAutoencoder
from carrara.denoisers.dit import DiT
from carrara.denoisers.dit_config import DiTConfig
from carrara.denoisers.dit_weights import DIFFUSERS, WAN
from carrara.systems.image_tower import ImageTower, ImageTowerConfig
from carrara.systems.image_tower_weights import FOLDER_NAMES, PUBLISHED, published_config
from carrara.systems.kinds import RELEASED
from carrara.systems.releases import (
    IMAGE_TOWER_PARAMETERS,
    RELEASES,
    TEXT_ENCODER_PARAMETERS,
    WAN_2_1_PARAMETERS,
    WAN_2_2_PARAMETERS,
    kind_of,
)
from carrara.text.encoder import UMT5_XXL, TextEncoder

Shapes = dict[str, tuple[int, ...]]


def shapes(module: torch.nn.Module) -> Shapes:
    return {name: tuple(value.shape) for name, value in module.state_dict().items()}


def size(found: Shapes) -> int:
    return sum(torch.Size(shape).numel() for shape in found.values())


@cache
def denoiser(config: DiTConfig) -> Shapes:
    with torch.device("meta"):
        return shapes(DiT(config))


def published(config: DiTConfig) -> Shapes:
    """Every tensor of a published transformer and its shape, written out from its description."""
    dim, found = config.dim, {}

    def linear(name: str, inputs: int, outputs: int) -> None:
        found[f"{name}.weight"], found[f"{name}.bias"] = (outputs, inputs), (outputs,)

    found["patch_embedding.weight"] = (dim, config.in_channels, 1, 2, 2)
    found["patch_embedding.bias"] = (dim,)
    linear("text_embedding.0", 4096, dim)
    linear("text_embedding.2", dim, dim)
    linear("time_embedding.0", 256, dim)
    linear("time_embedding.2", dim, dim)
    linear("time_projection.1", dim, 6 * dim)
    for index in range(config.layers):
        block = f"blocks.{index}"
        found[f"{block}.modulation"] = (1, 6, dim)
        found[f"{block}.norm3.weight"] = found[f"{block}.norm3.bias"] = (dim,)
        for attention in ("self_attn", "cross_attn"):
            names = ["q", "k", "v", "o"]
            norms = ["norm_q", "norm_k"]
            if attention == "cross_attn" and config.image_dim:
                names, norms = [*names, "k_img", "v_img"], [*norms, "norm_k_img"]
            for name in names:
                linear(f"{block}.{attention}.{name}", dim, dim)
            found |= {f"{block}.{attention}.{norm}.weight": (dim,) for norm in norms}
        linear(f"{block}.ffn.0", dim, config.ffn_dim)
        linear(f"{block}.ffn.2", config.ffn_dim, dim)
    found["head.modulation"] = (1, 2, dim)
    linear("head.head", dim, 4 * config.out_channels)
    if config.image_dim:
        linear("img_emb.proj.1", 1280, 1280)
        linear("img_emb.proj.3", 1280, dim)
        for norm, width in (("img_emb.proj.0", 1280), ("img_emb.proj.4", dim)):
            found[f"{norm}.weight"] = found[f"{norm}.bias"] = (width,)
    if config.image_positions:
        found["img_emb.emb_pos"] = (1, 514, 1280)
    return found


@pytest.mark.parametrize("release", RELEASES, ids=lambda release: str(release.kind))
def test_transformers_are_bijections_in_both_layouts(release):
    config, ours = release.denoiser, denoiser(release.denoiser)
    with torch.device("meta"):
        theirs = shapes(WanTransformer3DModel.from_config(config.to_diffusers()))
    for table, found in ((DIFFUSERS, theirs), (WAN, published(config))):
        assert {table.to_theirs(name): shape for name, shape in ours.items()} == found
        assert {table.to_ours(name): shape for name, shape in found.items()} == ours
    assert size(ours) == release.parameters


@pytest.mark.parametrize("release", RELEASES, ids=lambda release: str(release.kind))
def test_a_released_size_is_recognised(release):
    kind = release.kind
    assert kind_of(release.denoiser, kind.boundary, kind.expand_timesteps) == kind
    assert kind_of(replace(release.denoiser, layers=3), kind.boundary, kind.expand_timesteps).task == kind.task
    assert not kind_of(replace(release.denoiser, layers=3), kind.boundary, kind.expand_timesteps).negative
    assert {release.kind for release in RELEASES} == set(RELEASED)


@pytest.mark.parametrize(
    "config",
    [
        DiTConfig(in_channels=96, out_channels=16),
        DiTConfig(in_channels=20, out_channels=16),
        DiTConfig(image_dim=1280),
    ],
)
def test_other_transformers_are_refused_with_what_is_supported(config):
    with pytest.raises(ValueError, match=r"unknown architecture: .*supported: Wan 2\.1 T2V"):
        kind_of(config)


def test_the_other_networks_have_the_sizes_of_the_releases():
    with torch.device("meta"):
        assert size(shapes(TextEncoder(UMT5_XXL))) == TEXT_ENCODER_PARAMETERS
        theirs = shapes(UMT5EncoderModel(UMT5Config(**UMT5_XXL.to_json())))
        assert {name: shape for name, shape in theirs.items() if "embed_tokens" not in name} == shapes(
            TextEncoder(UMT5_XXL)
        )
        for release in RELEASES:
            count = WAN_2_2_PARAMETERS if release.autoencoder.residual else WAN_2_1_PARAMETERS
            config = release.autoencoder.to_diffusers()
            assert size(shapes(AutoencoderKLWan.from_config(config))) == count
            assert size(shapes(VideoAutoencoder(release.autoencoder))) == count


def published_tower() -> Shapes:
    """Every tensor of the tower in CLIP's published file, written out from its description."""
    found: Shapes = {"visual.cls_embedding": (1, 1, 1280), "visual.pos_embedding": (1, 257, 1280)}
    found["visual.patch_embedding.weight"] = (1280, 3, 14, 14)
    norms = ["visual.pre_norm", "visual.post_norm"]
    for index in range(32):
        block = f"visual.transformer.{index}"
        norms += [f"{block}.norm1", f"{block}.norm2"]
        for name, inputs, outputs in (
            ("attn.to_qkv", 1280, 3840),
            ("attn.proj", 1280, 1280),
            ("mlp.0", 1280, 5120),
            ("mlp.2", 5120, 1280),
        ):
            found[f"{block}.{name}.weight"], found[f"{block}.{name}.bias"] = (outputs, inputs), (outputs,)
    return found | {f"{norm}.{part}": (1280,) for norm in norms for part in ("weight", "bias")}


def test_the_image_tower_is_a_bijection_in_both_layouts():
    with torch.device("meta"):
        ours = ImageTower(ImageTowerConfig())
        clip = CLIPVisionConfig(
            hidden_size=1280,
            intermediate_size=5120,
            num_hidden_layers=32,
            num_attention_heads=16,
            image_size=224,
            patch_size=14,
            hidden_act="gelu",
        )
        theirs = CLIPVisionModel(clip)
    assert size(shapes(ours)) == IMAGE_TOWER_PARAMETERS
    assert {FOLDER_NAMES.to_ours(name): shape for name, shape in shapes(theirs).items()} == shapes(ours)
    as_published = {name: tuple(value.shape) for name, value in published_clip(theirs.state_dict()).items()}
    tower = {name: shape for name, shape in as_published.items() if name.startswith("visual.") and "head" not in name}
    assert tower == published_tower()
    apart = {PUBLISHED.to_theirs(name): shape for name, shape in shapes(ours).items()}
    assert {PUBLISHED.to_ours(name) for name in apart} == set(shapes(ours))
    joined = {name.replace("attn.q.", "attn.to_qkv.") for name in apart if ".attn.k." not in name}
    assert {name for name in joined if ".attn.v." not in name} == set(published_tower())
    assert published_config(apart) == ImageTowerConfig()
