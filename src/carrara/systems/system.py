"""What a text-to-video system is to whoever generates with it: prompts in, latents out, latents into video.

`LatentVideo` is one. A system of pixels is one too: pixels are then their own latents, at stride 1 (`pixel_system.py`).
Which classes there are, and how a folder names its own, is in `registry.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self, runtime_checkable

from carrara.core.types import Keyframes, Stride, VideoShape

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from carrara.diffusion.conditioning import Start
    from carrara.systems.latent import Defaults, Known, Progress, Sampling, Watch


@runtime_checkable
class System(Protocol):
    """What generation asks of a system.

    Shapes: a clip has `stride.time * k + 1` frames and sides that are multiples of `stride.space * patch`. Modules:
    `denoiser`, `autoencoder` and `text_encoder` are the networks that are looked into where values are not finite; what
    else a system has is its own. `precision` is what networks were asked to compute in, "" the model's own. `sample`
    gives latents `b c f h w`, one prompt and one seed each, the same whatever is in the batch, and refuses (ValueError)
    what it cannot take of `known`, `keyframes` and `start`. `decode_more` gives video `b 3 t h w` in [-1, 1] in chunks,
    each with the state from which decoding goes on; `finish` makes of decoded clips what is shown.
    """

    defaults: Defaults
    fingerprint: str
    precision: str

    @property
    def denoiser(self) -> nn.Module: ...

    @property
    def autoencoder(self) -> nn.Module: ...

    @property
    def text_encoder(self) -> nn.Module: ...

    @property
    def stride(self) -> Stride: ...

    @property
    def patch(self) -> tuple[int, int, int]: ...

    @property
    def latent_channels(self) -> int: ...

    def to(self, device: torch.device | str) -> Self: ...

    @property
    def device(self) -> torch.device: ...

    def count_tokens(self, prompt: str) -> int: ...

    def known_words(self) -> list[str]: ...

    def unknown_words(self, prompt: str) -> list[str]: ...

    def sample(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        shape: VideoShape,
        sampling: Sampling,
        negative: str = "",
        progress: Progress | None = None,
        known: Known | None = None,
        keyframes: Keyframes | None = None,
        watch: Watch | None = None,
        start: Start | None = None,
    ) -> Tensor: ...

    def finish(self, video: Tensor, prompts: Sequence[str], first: int = 0) -> Tensor: ...

    def decode_chunks(self, latents: Tensor) -> Iterator[Tensor]: ...

    def decode_more(self, latents: Tensor, state: Any = None) -> Iterator[tuple[Tensor, Any]]: ...

    def save(self, folder: Path) -> None: ...
