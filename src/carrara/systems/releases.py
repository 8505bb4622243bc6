"""The released models of the Wan family, by the sizes of their parts, and what a transformer's configuration tells."""

from __future__ import annotations

from dataclasses import dataclass, replace

from carrara.autoencoders.video_config import WAN_2_1, WAN_2_2, VideoAutoencoderConfig
from carrara.denoisers.dit_config import (
    WAN_1_3B,
    WAN_14B,
    WAN_FLF2V_14B,
    WAN_I2V_14B,
    WAN_I2V_A14B,
    WAN_TI2V_5B,
    DiTConfig,
)
from carrara.systems.kinds import FLF2V_14B, I2V_14B, I2V_A14B, T2V_1_3B, T2V_14B, T2V_A14B, TI2V_5B, ModelKind

BOUNDARIES = {"t2v": 0.875, "i2v": 0.9}
"""Where Wan 2.2's experts change places; the original layout does not say."""


TEXT_ENCODER_PARAMETERS = 5_680_910_336  # UMT5-XXL
IMAGE_TOWER_PARAMETERS = 630_766_080  # ViT-H/14
WAN_2_1_PARAMETERS, WAN_2_2_PARAMETERS = 126_892_531, 704_688_668  # autoencoders


@dataclass(frozen=True)
class Release:
    """A released model: what it is, the sizes of its networks, and its names on the hub, the diffusers layout first.

    parameters: of one transformer.
    """

    kind: ModelKind
    denoiser: DiTConfig
    autoencoder: VideoAutoencoderConfig
    parameters: int
    names: tuple[str, ...]

    def bytes(self, width: int = 2) -> int:
        """Of all weights, those of the transformers and the text encoder at this many bytes each, the rest at four."""
        rest = WAN_2_1_PARAMETERS if self.autoencoder is WAN_2_1 else WAN_2_2_PARAMETERS
        rest += IMAGE_TOWER_PARAMETERS if self.kind.image_tower else 0
        return width * (self.kind.experts * self.parameters + TEXT_ENCODER_PARAMETERS) + 4 * rest


def _both(*names: str) -> tuple[str, ...]:
    return tuple(f"Wan-AI/{name}-Diffusers" for name in names) + tuple(f"Wan-AI/{name}" for name in names)


_FLF2V = ("Wan-AI/Wan2.1-FLF2V-14B-720P-diffusers", "Wan-AI/Wan2.1-FLF2V-14B-720P")

RELEASES = (
    Release(T2V_1_3B, WAN_1_3B, WAN_2_1, 1_418_996_800, _both("Wan2.1-T2V-1.3B")),
    Release(T2V_14B, WAN_14B, WAN_2_1, 14_288_491_584, _both("Wan2.1-T2V-14B")),
    Release(I2V_14B, WAN_I2V_14B, WAN_2_1, 16_394_878_784, _both("Wan2.1-I2V-14B-480P", "Wan2.1-I2V-14B-720P")),
    Release(FLF2V_14B, WAN_FLF2V_14B, WAN_2_1, 16_395_536_704, _FLF2V),
    Release(TI2V_5B, WAN_TI2V_5B, WAN_2_2, 4_999_787_712, _both("Wan2.2-TI2V-5B")),
    Release(T2V_A14B, WAN_14B, WAN_2_1, 14_288_491_584, _both("Wan2.2-T2V-A14B")),
    Release(I2V_A14B, WAN_I2V_A14B, WAN_2_1, 14_288_901_184, _both("Wan2.2-I2V-A14B")),
)
SUPPORTED = "Wan 2.1 T2V, I2V and FLF2V, Wan 2.2 TI2V-5B and A14B (T2V and I2V), and models trained here"


def kind_of(config: DiTConfig, boundary: float | None = None, expand_timesteps: bool = False) -> ModelKind:
    """What a model with this transformer (or two such experts) is for, as released where these sizes were.

    Raises ValueError, with what is supported, for a transformer that no supported model has.
    """
    given, latents = config.given_channels, config.out_channels
    if given not in (0, latents + 4) or (expand_timesteps and given):
        raise ValueError(
            f"unknown architecture: a transformer of {config.in_channels} input and {latents} output channels; "
            f"supported: {SUPPORTED}"
        )
    if config.image_dim is not None and not given:
        raise ValueError(f"unknown architecture: an image tower without an image's latents; supported: {SUPPORTED}")
    for release in RELEASES:
        kind = release.kind
        same = release.denoiser == config and kind.expand_timesteps == expand_timesteps
        if same and (kind.boundary is None) == (boundary is None):
            return replace(kind, boundary=boundary)
    return ModelKind(
        family="Wan 2.2" if expand_timesteps or boundary is not None else "Wan 2.1",
        task="ti2v" if expand_timesteps else "t2v" if not given else "flf2v" if config.image_positions else "i2v",
        boundary=boundary,
        expand_timesteps=expand_timesteps,
        image_tower=config.image_dim is not None,
    )
