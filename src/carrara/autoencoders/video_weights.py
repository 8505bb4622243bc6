"""How the autoencoder's tensors are called in the diffusers layout (`AutoencoderKLWan`)."""

from __future__ import annotations

from carrara.autoencoders.video_config import VideoAutoencoderConfig
from carrara.core.weights import NameTable

_BLOCK = {"norm1": "norm1", "conv1": "conv1", "norm2": "norm2", "conv2": "conv2", "shortcut": "conv_shortcut"}
_STEP = {"space": "resample.1", "time": "time_conv"}
_MIDDLE = {"first": "resnets.0", "attention": "attentions.0", "last": "resnets.1"}


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
        flat = 0
        for level in range(len(config.dim_mult)):
            for block in range(config.num_res_blocks):
                blocks[f"encoder.levels.{level}.blocks.{block}"] = f"encoder.down_blocks.{flat + block}"
            steps[f"encoder.levels.{level}.step"] = f"encoder.down_blocks.{flat + config.num_res_blocks}"
            flat += config.num_res_blocks + 1
        steps["decoder.levels.{}.step"] = "decoder.up_blocks.{}.upsamplers.0"
    blocks["decoder.levels.{}.blocks.{}"] = "decoder.up_blocks.{}.resnets.{}"
    for places, names in ((blocks, _BLOCK), (steps, _STEP)):
        rows += [(f"{a}.{x}", f"{b}.{y}") for a, b in places.items() for x, y in names.items()]
    return NameTable(tuple(rows))
