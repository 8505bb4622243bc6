"""Values and protocols that pass between the layers.

Axis letters, used everywhere: b batch, c channels, t pixel frames, f latent frames, h rows, w columns,
n tokens, d width, k keyframes. Video is `b c t h w` in [-1, 1]; latents are `b c f h w`, normalised per channel.
Time t is in [0, 1]: 0 is data, 1 is noise.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:  # torch is only a name here, so that `carrara --help` does not wait for it
    from torch import Generator, Tensor, nn


@dataclass(frozen=True)
class Stride:
    """How many pixel frames, rows and columns one latent position stands for."""

    time: int = 4
    space: int = 8


@dataclass(frozen=True)
class VideoShape:
    """Frames, rows and columns of a clip in pixels."""

    frames: int
    height: int
    width: int

    def latent(self, stride: Stride) -> LatentShape:
        """The shape of this clip's latents. Raises ValueError where the autoencoder cannot encode it."""
        check_frames(self.frames, stride.time)
        for name, value in (("height", self.height), ("width", self.width)):
            check_multiple(name, value, stride.space)
        frames = (self.frames - 1) // stride.time + 1
        return LatentShape(frames, self.height // stride.space, self.width // stride.space)


@dataclass(frozen=True)
class LatentShape:
    """Frames, rows and columns of a clip's latents."""

    frames: int
    height: int
    width: int

    def video(self, stride: Stride) -> VideoShape:
        """The shape of the clip that these latents decode to."""
        return VideoShape((self.frames - 1) * stride.time + 1, self.height * stride.space, self.width * stride.space)

    def tokens(self, patch: tuple[int, int, int]) -> tuple[int, int, int]:
        """The token grid (frames, rows, columns) after patches of this size. Raises ValueError if they do not fit."""
        sides = (self.frames, self.height, self.width)
        for name, side, step in zip(("latent frames", "latent height", "latent width"), sides, patch):
            check_multiple(name, side, step)
        frames, rows, columns = (side // step for side, step in zip(sides, patch))
        return frames, rows, columns


def check_frames(frames: int, step: int = 4) -> None:
    """Refuse a frame count that is not 1 + step * k: a causal autoencoder encodes the first frame alone."""
    if frames < 1 or (frames - 1) % step:
        below = max(1, (frames - 1) // step * step + 1)
        nearest = " or ".join(str(n) for n in sorted({below, below + step if frames > 0 else 1}))
        raise ValueError(f"frames={frames}: this model makes {step}k+1 frames; nearest {nearest}")


def check_multiple(name: str, value: int, step: int) -> None:
    """Refuse a side that is not a positive multiple of the model's step."""
    if value < step or value % step:
        below = max(step, value // step * step)
        nearest = " or ".join(str(n) for n in sorted({below, below + step if value > step else step}))
        raise ValueError(f"{name}={value}: must be a multiple of {step}; nearest {nearest}")


@dataclass(frozen=True)
class TextStates:
    """What the denoiser reads of the prompts.

    states: `b n d`, the text encoder's output, zero wherever a row's prompt has ended;
    lengths: `(b,)` int64, how many rows of each prompt are real;
    padded_length: to how many tokens the zero rows continue. They attend too (Wan's semantics), all alike.
    """

    states: Tensor
    lengths: Tensor
    padded_length: int = 512


@dataclass(frozen=True)
class Keyframes:
    """Frames known at other times, appended to the sequence as extra tokens and dropped from the output.

    latents: `b c k h w`, each frame encoded alone (the image path);
    times: `(b, k)` float, their rotary time in latent frames: pixel frame j is at j / 4;
    levels: `(b, k)` noise levels of these latents, 0 where exactly known.
    """

    latents: Tensor
    times: Tensor
    levels: Tensor


@runtime_checkable
class Denoiser(Protocol):
    """A network that predicts from noised latents.

    x: `b c f h w`; t: `(b,)`, `(b, f)` per latent frame, or `(b, n)` per token; returns the prediction `b c f h w`.
    """

    def __call__(self, x: Tensor, t: Tensor, text: TextStates, keyframes: Keyframes | None = None) -> Tensor: ...


@runtime_checkable
class Encoder(Protocol):
    """Video `b 3 t h w` in [-1, 1] to normalised latents `b c f h w`."""

    @property
    def stride(self) -> Stride: ...

    def encode(self, video: Tensor) -> Tensor: ...


@runtime_checkable
class Decoder(Protocol):
    """Normalised latents to video, whole or as a stream of chunks whose memory does not grow with the clip."""

    def decode(self, latents: Tensor) -> Tensor: ...

    def decode_chunks(self, latents: Tensor) -> Iterator[Tensor]: ...


class Phase(Protocol):
    """One thing that the training loop can train; a system offers one or more.

    `module` holds the weights that are optimised (float32), averaged and checkpointed. `batch(step)` is a pure function
    of the step, so that a resumed run sees the same data; it may be called in a thread, one step ahead. `loss` returns
    at least the key "loss" (a scalar to minimise); other scalars are logged; its generator lives on the module's device
    and is seeded from (seed, step). `validate` returns scalars on fixed data and seeds, `picture` an image `h w 3`
    uint8 or None, `export` writes into a folder that exists: all three are called with the averaged weights in place,
    in evaluation mode, without gradients. A phase may also define `is_matrix(name, parameter) -> bool`, the weights
    that Muon updates; by default those of two dimensions inside numbered blocks.
    """

    module: nn.Module

    def batch(self, step: int) -> Any: ...

    def loss(self, batch: Any, step: int, generator: Generator) -> dict[str, Tensor]: ...

    def validate(self) -> dict[str, float]: ...

    def picture(self) -> Tensor | None: ...

    def export(self, folder: Path) -> None: ...
