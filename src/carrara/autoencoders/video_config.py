"""The shape of a causal video autoencoder of the Wan family, and its `config.json` in the diffusers layout."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from carrara.core.config import from_dict, nearest
from carrara.core.types import Stride

CLASS_NAME = "AutoencoderKLWan"


@dataclass(frozen=True)
class VideoAutoencoderConfig:
    """One autoencoder; defaults are Wan 2.1's.

    base_dim, decoder_base_dim: channels at the finest level (None: the decoder has as many as the encoder);
    latent_channels: c of the latents; dim_mult: channels per level, finest first, as multiples of the base;
    num_res_blocks: residual blocks per level (the decoder has one more);
    temporal_downsample: for each step between levels, whether time is halved too;
    residual: parameter-free averaging and repeating shortcuts around every level (Wan 2.2);
    patch: side of the pixel squares folded into channels before the first level (Wan 2.2: 2);
    latents_mean, latents_std: measured statistics of the raw latents, per channel; empty means 0 and 1.
    """

    base_dim: int = 96
    decoder_base_dim: int | None = None
    latent_channels: int = 16
    dim_mult: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    temporal_downsample: tuple[bool, ...] = (False, True, True)
    residual: bool = False
    patch: int = 1
    latents_mean: tuple[float, ...] = ()
    latents_std: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if len(self.temporal_downsample) != len(self.dim_mult) - 1:
            raise ValueError(
                f"temporal_downsample={self.temporal_downsample}: expected one value for each step between the "
                f"{len(self.dim_mult)} levels of dim_mult; give {len(self.dim_mult) - 1}"
            )
        for name, fill in (("latents_mean", 0.0), ("latents_std", 1.0)):
            values = getattr(self, name) or (fill,) * self.latent_channels
            if len(values) != self.latent_channels:
                raise ValueError(
                    f"{name} has {len(values)} values: expected one per latent channel, {self.latent_channels}"
                )
            object.__setattr__(self, name, tuple(float(value) for value in values))
        if min(self.latents_std) <= 0:
            raise ValueError(f"latents_std={min(self.latents_std)}: must be positive; measure the latents again")
        if self.residual:
            _check_shortcuts("encoder", self.encoder_dims, self.temporal_downsample)
            _check_shortcuts("decoder", self.decoder_dims, self.temporal_upsample)

    @property
    def stride(self) -> Stride:
        """How many pixel frames, rows and columns one latent position stands for."""
        return Stride(2 ** sum(self.temporal_downsample), self.patch * 2 ** len(self.temporal_downsample))

    @property
    def encoder_dims(self) -> tuple[int, ...]:
        """Channels that enter the first level, then those that leave each level."""
        return tuple(self.base_dim * mult for mult in (1, *self.dim_mult))

    @property
    def decoder_dims(self) -> tuple[int, ...]:
        """Channels that enter the coarsest level, then those that leave each level, coarsest first."""
        base = self.decoder_base_dim or self.base_dim
        return tuple(base * mult for mult in (self.dim_mult[-1], *reversed(self.dim_mult)))

    @property
    def temporal_upsample(self) -> tuple[bool, ...]:
        return tuple(reversed(self.temporal_downsample))

    @classmethod
    def from_diffusers(cls, values: Mapping[str, Any]) -> VideoAutoencoderConfig:
        """Read the content of a diffusers `vae/config.json`. Raises ValueError on what this class cannot be."""
        values = {key: value for key, value in values.items() if not key.startswith("_")}
        for key in values:
            if key not in _THEIRS and key not in _IMPLIED:
                raise ValueError(f"vae config: no setting {key!r}; {nearest(key, [*_THEIRS, *_IMPLIED])}")
        read = {_THEIRS[key]: value for key, value in values.items() if key in _THEIRS}
        read["patch"] = read.get("patch") or 1
        config = from_dict(cls, read, "vae config")
        implied = config.to_diffusers()
        for key in _IMPLIED:
            if key in values and values[key] != implied[key]:
                raise ValueError(f"vae config: {key}={values[key]}: this autoencoder can only have {implied[key]} here")
        return config

    def to_diffusers(self) -> dict[str, Any]:
        """The content of a `vae/config.json` that diffusers' AutoencoderKLWan reads."""
        ours = {theirs: getattr(self, ours) for theirs, ours in _THEIRS.items()}
        return {
            "_class_name": CLASS_NAME,
            **{key: list(value) if isinstance(value, tuple) else value for key, value in ours.items()},
            "patch_size": None if self.patch == 1 else self.patch,
            "in_channels": 3 * self.patch**2,
            "out_channels": 3 * self.patch**2,
            "scale_factor_temporal": self.stride.time,
            "scale_factor_spatial": self.stride.space,
            "attn_scales": [],
            "dropout": 0.0,
        }


_THEIRS = {
    "base_dim": "base_dim",
    "decoder_base_dim": "decoder_base_dim",
    "z_dim": "latent_channels",
    "dim_mult": "dim_mult",
    "num_res_blocks": "num_res_blocks",
    "temperal_downsample": "temporal_downsample",  # diffusers spells it so
    "is_residual": "residual",
    "patch_size": "patch",
    "latents_mean": "latents_mean",
    "latents_std": "latents_std",
}
_IMPLIED = ("in_channels", "out_channels", "scale_factor_temporal", "scale_factor_spatial", "attn_scales", "dropout")


def _check_shortcuts(name: str, dims: tuple[int, ...], temporal: tuple[bool, ...]) -> None:
    """A shortcut averages (or repeats) whole groups of channels, so the widths must divide."""
    for level, (narrow, wide) in enumerate(pairwise(dims)):
        last = level == len(temporal)
        factor = 1 if last else (8 if temporal[level] else 4)
        source, target = (narrow * factor, wide) if name == "encoder" else (wide * factor, narrow)
        if name == "decoder" and last:
            continue  # the finest decoder level has no shortcut
        if source % target:
            raise ValueError(
                f"{name} widths {narrow} -> {wide} at level {level}: {source} must be a multiple of {target} for the "
                "residual shortcut; choose a dim_mult in powers of two whose last two are equal, as 1 2 4 4"
            )


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(float(word) for word in text.split())


WAN_2_1 = VideoAutoencoderConfig(
    latents_mean=_numbers("""
        -0.7571 -0.7089 -0.9113 0.1075 -0.1745 0.9653 -0.1517 1.5508 0.4134 -0.0715 0.5517 -0.3632 -0.1922
        -0.9497 0.2503 -0.2921
    """),
    latents_std=_numbers("""
        2.8184 1.4541 2.3275 2.6558 1.2196 1.7708 2.6052 2.0743 3.2687 2.1526 2.8652 1.5579 1.6382 1.1253
        2.8251 1.9160
    """),
)

WAN_2_2 = VideoAutoencoderConfig(
    base_dim=160,
    decoder_base_dim=256,
    latent_channels=48,
    residual=True,
    patch=2,
    latents_mean=_numbers("""
        -0.2289 -0.0052 -0.1323 -0.2339 -0.2799 0.0174 0.1838 0.1557 -0.1382 0.0542 0.2813 0.0891 0.1570
        -0.0098 0.0375 -0.1825 -0.2246 -0.1207 -0.0698 0.5109 0.2665 -0.2108 -0.2158 0.2502 -0.2055 -0.0322
        0.1109 0.1567 -0.0729 0.0899 -0.2799 -0.1230 -0.0313 -0.1649 0.0117 0.0723 -0.2839 -0.2083 -0.0520
        0.3748 0.0152 0.1957 0.1433 -0.2944 0.3573 -0.0548 -0.1681 -0.0667
    """),
    latents_std=_numbers("""
        0.4765 1.0364 0.4514 1.1677 0.5313 0.4990 0.4818 0.5013 0.8158 1.0344 0.5894 1.0901 0.6885 0.6165
        0.8454 0.4978 0.5759 0.3523 0.7135 0.6804 0.5833 1.4146 0.8986 0.5659 0.7069 0.5338 0.4889 0.4917
        0.4069 0.4999 0.6866 0.4093 0.5709 0.6065 0.6415 0.4944 0.5726 1.2042 0.5458 1.6887 0.3971 1.0600
        0.3943 0.5537 0.5444 0.4089 0.7468 0.7744
    """),
)


def small_64() -> VideoAutoencoderConfig:
    """A small Wan 2.1 on squares of 2 x 2 pixels, for clips of about 64 x 64: stride 2 x 8 x 8, 32 channels.

    Few levels of wide layers: on a CPU they run at a higher rate than many narrow ones. No shortcuts around levels, so
    that it can begin as copies of an image model (see `inflation.py`). Two frames in a latent one and 16 channels for
    each: at 8 frames a second what moves is elsewhere after two, and a square of 8 x 8 pixels holds half an actor.
    """
    return VideoAutoencoderConfig(
        base_dim=64,
        latent_channels=32,
        dim_mult=(1, 2, 2),
        num_res_blocks=1,
        temporal_downsample=(False, True),
        residual=False,
        patch=2,
    )


def small_128() -> VideoAutoencoderConfig:
    """The layers of `small_64` on squares of 4 x 4 pixels: 128 x 128 at its cost, stride 2 x 16 x 16."""
    return replace(small_64(), patch=4)
