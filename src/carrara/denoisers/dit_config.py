"""The sizes of a `DiT`, its `config.json` in the diffusers layout, and the released sizes of Wan."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from carrara.core.config import at_least, nearest
from carrara.nn.positions import axis_widths

# Our settings and theirs in the config.json of diffusers' WanTransformer3DModel, and what we expect of the others.
_THEIRS = {
    "heads": "num_attention_heads",
    "head_dim": "attention_head_dim",
    "layers": "num_layers",
    "ffn_dim": "ffn_dim",
    "in_channels": "in_channels",
    "out_channels": "out_channels",
    "text_dim": "text_dim",
    "frequencies": "freq_dim",
    "patch": "patch_size",
    "eps": "eps",
    "image_dim": "image_dim",
    "image_positions": "pos_embed_seq_len",
}
_OPTIONAL = {"patch", "eps", "frequencies", "out_channels", "image_dim", "image_positions"}
_IMAGE_WIDTH = "added_kv_proj_dim"  # of the image states as the blocks read them, always the width of the stream
_FIXED = {"cross_attn_norm": True, "qk_norm": "rms_norm_across_heads"}
_IGNORED = {"rope_max_seq_len": 1024}  # positions are computed here, not looked up, so there is no longest clip


@dataclass(frozen=True)
class DiTConfig:
    """Sizes of a `DiT`. The defaults are the smallest public Wan.

    in_channels may exceed out_channels: the rest of the input is what is given of a clip (a mask and the latents of an
    image: 36 and 16 in Wan's image-to-video models);
    image_dim: width of the image tower's states that the blocks read beside the text (CLIP's 1280), None for none;
    image_positions: how many such states of a first and a last image together have learned positions (514), None
    where one image is read.
    """

    heads: int = 12
    head_dim: int = 128
    layers: int = 30
    ffn_dim: int = 8960
    in_channels: int = 16
    out_channels: int = 16
    text_dim: int = 4096
    frequencies: int = 256
    patch: tuple[int, int, int] = (1, 2, 2)
    eps: float = 1e-6
    image_dim: int | None = None
    image_positions: int | None = None

    def __post_init__(self) -> None:
        sizes = ["heads", "layers", "ffn_dim", "in_channels", "out_channels", "text_dim"]
        sizes += [name for name in ("image_dim", "image_positions") if getattr(self, name) is not None]
        at_least(self, 1, *sizes)
        if self.frequencies < 2 or self.frequencies % 2:
            raise ValueError(f"frequencies={self.frequencies}: must be even and at least 2, such as 256")
        if len(self.patch) != 3 or min(self.patch) < 1:
            raise ValueError(f"patch={self.patch}: must be three sizes of at least 1, such as (1, 2, 2)")
        if self.image_positions is not None and self.image_dim is None:
            raise ValueError(
                f"image_positions={self.image_positions}: there are none without an image_dim, such as 1280"
            )
        axis_widths(self.head_dim)

    @property
    def dim(self) -> int:
        """Width of the residual stream."""
        return self.heads * self.head_dim

    @property
    def given_channels(self) -> int:
        """Channels of the input beside the noised latents."""
        return self.in_channels - self.out_channels

    @classmethod
    def from_diffusers(cls, values: dict[str, Any]) -> DiTConfig:
        """Read the config.json of a `WanTransformer3DModel`. Raises ValueError for what this class does not build."""
        known = {*_THEIRS.values(), *_FIXED, *_IGNORED, _IMAGE_WIDTH}
        for key, value in values.items():
            if key not in known and not key.startswith("_"):
                raise ValueError(f"transformer config: no setting {key!r}; {nearest(key, known)}")
            if key in _FIXED and value != _FIXED[key]:
                raise ValueError(
                    f"transformer config: {key}={value!r} is not supported, expected {_FIXED[key]!r}; "
                    "use a checkpoint of Wan 2.1 or 2.2"
                )
        found = {ours: values[theirs] for ours, theirs in _THEIRS.items() if theirs in values}
        if missing := sorted(set(_THEIRS) - set(found) - _OPTIONAL):
            raise ValueError(f"transformer config: {_THEIRS[missing[0]]!r} is missing; is the file whole?")
        found["out_channels"] = found.get("out_channels") or found["in_channels"]
        config = cls(**{**found, "patch": tuple(found.get("patch", (1, 2, 2)))})
        wanted = config.to_diffusers()[_IMAGE_WIDTH]
        if values.get(_IMAGE_WIDTH) != wanted:
            raise ValueError(
                f"transformer config: {_IMAGE_WIDTH}={values.get(_IMAGE_WIDTH)!r} is not supported beside "
                f"image_dim={config.image_dim!r}, expected {wanted!r}; use a checkpoint of Wan 2.1 or 2.2"
            )
        return config

    def to_diffusers(self) -> dict[str, Any]:
        """The config.json from which diffusers builds the same network."""
        ours = {theirs: getattr(self, ours) for ours, theirs in _THEIRS.items()}
        image_width = None if self.image_dim is None else self.dim
        return {
            "_class_name": "WanTransformer3DModel",
            **ours,
            "patch_size": list(self.patch),
            _IMAGE_WIDTH: image_width,
            **_FIXED,
            **_IGNORED,
        }


WAN_1_3B = DiTConfig()
WAN_14B = DiTConfig(heads=40, layers=40, ffn_dim=13824)
WAN_I2V_14B = DiTConfig(heads=40, layers=40, ffn_dim=13824, in_channels=36, image_dim=1280)
WAN_FLF2V_14B = DiTConfig(heads=40, layers=40, ffn_dim=13824, in_channels=36, image_dim=1280, image_positions=514)
WAN_TI2V_5B = DiTConfig(heads=24, ffn_dim=14336, in_channels=48, out_channels=48)
WAN_I2V_A14B = DiTConfig(heads=40, layers=40, ffn_dim=13824, in_channels=36)
"""Each of the two experts; those of text to video are `WAN_14B`."""
