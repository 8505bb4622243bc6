"""The sizes of a space-time U-Net and the choice of its layers along time, with those of the published systems."""

from __future__ import annotations

from dataclasses import dataclass, field, fields

from carrara.core.config import choose

CONVOLUTIONS = ("none", "pseudo3d", "block")
TEXTS = ("none", "pooled", "cross")


@dataclass(frozen=True)
class Temporal:
    """Which layers look along time.

    attention: levels that have one after their spatial layers (0 is the finest), None for those with spatial attention;
    convolution: "none", "pseudo3d" (after every spatial convolution) or "block" (after every residual block);
    mixed: attention and blocks are faded in by a learned weight.
    """

    attention: tuple[int, ...] | None = None
    convolution: str = "none"
    mixed: bool = False

    def __post_init__(self) -> None:
        choose("temporal convolution", self.convolution, dict.fromkeys(CONVOLUTIONS))


NO_TIME = Temporal(())
VDM_TIME = Temporal()
MAKE_A_VIDEO_TIME = Temporal(convolution="pseudo3d")
IMAGEN_VIDEO_TIME = Temporal((), "block")  # of its super-resolution networks; its base has VDM's
VIDEO_LDM_TIME = Temporal(convolution="block", mixed=True)


@dataclass(frozen=True)
class UNetConfig:
    """Sizes of a `UNet3D`.

    channels: of the clip and of the prediction; given_channels: of what is known beside the noise and enters with it (a
    small clip to enlarge, a mask and masked frames);
    dim: width, times one of `multipliers` at each level, the finest (0) first, the next being half as large;
    blocks: residual blocks of a level, on the way down and again on the way up;
    attention: levels whose positions attend to each other; head_dim: width of a head;
    text: how prompts are read: "none", "pooled" into the embedding of a frame, or "cross" (attended to after every
    spatial attention, and pooled); text_dim: width of their states;
    vector_dim: width of a vector that is told of a clip, such as the embedding of an image, 0 for none;
    scalars: names of numbers of about [0, 1] that are told of a clip, such as its rate or how noisy what is given is.
    """

    channels: int = 3
    given_channels: int = 0
    dim: int = 32
    multipliers: tuple[int, ...] = (1, 2, 4)
    blocks: int = 2
    attention: tuple[int, ...] = (1, 2)
    head_dim: int = 32
    temporal: Temporal = field(default_factory=Temporal)
    text: str = "pooled"
    text_dim: int = 64
    vector_dim: int = 0
    scalars: tuple[str, ...] = ()
    dropout: float = 0.0

    def __post_init__(self) -> None:
        least = {"given_channels": 0, "text_dim": 0, "vector_dim": 0}
        for name in (each.name for each in fields(self) if each.type == "int"):
            if getattr(self, name) < least.get(name, 1):
                raise ValueError(f"{name}={getattr(self, name)}: must be at least {least.get(name, 1)}")
        if self.dim % 2:
            raise ValueError(f"dim={self.dim}: must be even")
        if not self.multipliers or min(self.multipliers) < 1:
            raise ValueError(
                f"multipliers={self.multipliers}: give one of at least 1 for each level, such as (1, 2, 4)"
            )
        for name, levels in (("attention", self.attention), ("temporal.attention", self.temporal.attention or ())):
            if any(not 0 <= level < len(self.multipliers) for level in levels):
                raise ValueError(f"{name}={levels}: this network has the levels 0 to {len(self.multipliers) - 1}")
        choose("way to read text", self.text, dict.fromkeys(TEXTS))
        if self.text != "none" and not self.text_dim:
            raise ValueError(f"text={self.text!r} but text_dim=0: give the width of the text encoder's states")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout={self.dropout}: expected at least 0 and less than 1")
        if len(set(self.scalars)) < len(self.scalars):
            raise ValueError(f"scalars={self.scalars}: name each once")

    @property
    def told_dim(self) -> int:
        """Width of the embedding of a frame's noise level and conditions."""
        return 4 * self.dim

    @property
    def side_step(self) -> int:
        """Rows and columns come in multiples of this."""
        return 2 ** (len(self.multipliers) - 1)

    @property
    def attends_time(self) -> tuple[int, ...]:
        """Levels with attention along time."""
        return self.attention if self.temporal.attention is None else self.temporal.attention
