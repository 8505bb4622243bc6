"""How the autoencoder's tensors are called elsewhere: in diffusers' `AutoencoderKLWan`, and as Wan published them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from carrara.autoencoders.video_config import WAN_2_1, WAN_2_2, VideoAutoencoderConfig
from carrara.core.weights import NameTable

_BLOCK = {"norm1": "norm1", "conv1": "conv1", "norm2": "norm2", "conv2": "conv2", "shortcut": "conv_shortcut"}
_STEP = {"space": "resample.1", "time": "time_conv"}
_MIDDLE = {"first": "resnets.0", "attention": "attentions.0", "last": "resnets.1"}

_PUBLISHED_BLOCK = {
    "norm1": "residual.0",
    "conv1": "residual.2",
    "norm2": "residual.3",
    "conv2": "residual.6",
    "shortcut": "shortcut",
}


def diffusers_names(config: VideoAutoencoderConfig) -> NameTable:
    """The bijection between our names and diffusers' for an autoencoder of this configuration."""
    rows = [("to_moments", "quant_conv"), ("from_latents", "post_quant_conv")]
    blocks: dict[str, str] = {}
    steps: dict[str, str] = {}
    for side in ("encoder", "decoder"):
        rows += [(f"{side}.{name}", f"{side}.{name}") for name in ("conv_in", "norm_out", "conv_out")]
        for ours, theirs in _MIDDLE.items():
            if ours == "attention":
                rows.append((f"{side}.middle.{ours}", f"{side}.mid_block.{theirs}"))
            else:
                blocks[f"{side}.middle.{ours}"] = f"{side}.mid_block.{theirs}"
    if config.residual:
        blocks["encoder.levels.{}.blocks.{}"] = "encoder.down_blocks.{}.resnets.{}"
        steps["encoder.levels.{}.step"] = "encoder.down_blocks.{}.downsampler"
        steps["decoder.levels.{}.step"] = "decoder.up_blocks.{}.upsampler"
    else:
        # Without shortcuts the encoder's blocks and steps are one flat list there.
        flat_blocks, flat_steps = _flat(config, "encoder", config.num_res_blocks, "encoder.down_blocks")
        blocks, steps = blocks | flat_blocks, steps | flat_steps
        steps["decoder.levels.{}.step"] = "decoder.up_blocks.{}.upsamplers.0"
    blocks["decoder.levels.{}.blocks.{}"] = "decoder.up_blocks.{}.resnets.{}"
    return NameTable((*rows, *_joined(blocks, _BLOCK), *_joined(steps, _STEP)))


def published_names(config: VideoAutoencoderConfig) -> NameTable:
    """The bijection between our names and those of `Wan2.1_VAE.pth` or `Wan2.2_VAE.pth`."""
    rows = [("to_moments", "conv1"), ("from_latents", "conv2")]
    blocks: dict[str, str] = {}
    steps: dict[str, str] = {}
    counts = {"encoder": config.num_res_blocks, "decoder": config.num_res_blocks + 1}
    for side, levels in (("encoder", "downsamples"), ("decoder", "upsamples")):
        rows += [(f"{side}.{a}", f"{side}.{b}") for a, b in (("conv_in", "conv1"), ("norm_out", "head.0"))]
        rows += [(f"{side}.conv_out", f"{side}.head.2"), (f"{side}.middle.attention", f"{side}.middle.1")]
        blocks |= {f"{side}.middle.first": f"{side}.middle.0", f"{side}.middle.last": f"{side}.middle.2"}
        if config.residual:
            blocks[f"{side}.levels.{{}}.blocks.{{}}"] = f"{side}.{levels}.{{}}.{levels}.{{}}"
            steps[f"{side}.levels.{{}}.step"] = f"{side}.{levels}.{{}}.{levels}.{counts[side]}"
        else:
            flat_blocks, flat_steps = _flat(config, side, counts[side], f"{side}.{levels}")
            blocks, steps = blocks | flat_blocks, steps | flat_steps
    return NameTable((*rows, *_joined(blocks, _PUBLISHED_BLOCK), *_joined(steps, _STEP)))


def published_config(shapes: Mapping[str, Sequence[int]]) -> VideoAutoencoderConfig:
    """The configuration of a published file, which carries none: its generation and widths, read from its shapes.

    Raises ValueError for shapes of no autoencoder of Wan.
    """
    try:
        z = shapes["conv2.weight"][0]
        encoder, decoder = shapes["encoder.conv1.weight"][0], shapes["decoder.conv1.weight"][0]
    except (KeyError, IndexError):
        raise ValueError(
            "not a video autoencoder of Wan, which has conv2, encoder.conv1 and decoder.conv1; expected Wan2.1_VAE.pth "
            "or Wan2.2_VAE.pth"
        ) from None
    known = WAN_2_2 if any(name.startswith("encoder.downsamples.0.downsamples.") for name in shapes) else WAN_2_1
    if z != known.latent_channels:
        raise ValueError(
            f"{z} latent channels, whose statistics nobody published: expected 16 (Wan 2.1) or 48 (Wan 2.2); bring it "
            "as a diffusers vae/ folder, which names them"
        )
    decoder //= known.dim_mult[-1]
    return replace(known, base_dim=encoder, decoder_base_dim=None if decoder == encoder else decoder)


def _flat(config: VideoAutoencoderConfig, side: str, count: int, theirs: str) -> tuple[dict[str, str], dict[str, str]]:
    """Blocks and steps of all levels, which are numbered on through one list elsewhere."""
    blocks, steps, at = {}, {}, 0
    for level in range(len(config.dim_mult)):
        for block in range(count):
            blocks[f"{side}.levels.{level}.blocks.{block}"] = f"{theirs}.{at + block}"
        steps[f"{side}.levels.{level}.step"] = f"{theirs}.{at + count}"
        at += count + 1
    return blocks, steps


def _joined(places: Mapping[str, str], names: Mapping[str, str]) -> list[tuple[str, str]]:
    return [(f"{a}.{x}", f"{b}.{y}") for a, b in places.items() for x, y in names.items()]
