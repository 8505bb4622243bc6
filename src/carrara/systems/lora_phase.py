"""The phase that trains an adapter: the denoiser's own loss, and nothing that learns but the adapter.

Not standard: the phase's module is the adapter alone, so what is averaged, optimised and checkpointed is a few thousand
numbers whatever the model's size; and a frozen text encoder reads each caption once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from carrara.core.types import TextStates, VideoShape
from carrara.diffusion.fields import FieldMix, TimeDraw
from carrara.systems.latent import LatentVideo, Sampling
from carrara.systems.lora import Terms, attach, denoisers
from carrara.systems.lora_export import write_adapter
from carrara.systems.offload import StagedTextEncoder
from carrara.systems.phases import CaptionedLatents, DenoiserPhase
from carrara.text.encoder import TextEncoder

REMEMBERED = 4096  # captions whose states are kept


class LoRAPhase(DenoiserPhase):
    """Train terms on a frozen model; see `DenoiserPhase` for the rest. The terms are put on the system.

    about: JSON values that are written with the adapter. With two experts each learns at the levels at which it is
    asked. Where the model reads an image, a pictured prompt goes with that of the validation clip of the same number.
    """

    def __init__(
        self,
        system: LatentVideo,
        terms: Terms,
        batch: Callable[[int], CaptionedLatents],
        validation: CaptionedLatents,
        mix: FieldMix,
        sampling: Sampling,
        pictured: Sequence[str],
        shape: VideoShape,
        caption_dropout: float = 0.1,
        times: TimeDraw | None = None,
        about: Mapping[str, Any] | None = None,
    ) -> None:
        images = validation.image.repeated(len(pictured))
        super().__init__(
            system, batch, validation, mix, sampling, pictured, shape, caption_dropout, times, images=images
        )
        for denoiser in denoisers(system).values():
            denoiser.eval().requires_grad_(False)
        system.text_encoder.eval().requires_grad_(False)
        system.text_encoder = RememberedText(system.text_encoder)  # type: ignore[assignment]
        attach(system, terms)
        self.terms, self.about = terms, dict(about or {})
        self.module = nn.ModuleDict({part: named_modules(own) for part, own in terms.items()}).requires_grad_(True)

    @staticmethod
    def is_matrix(name: str, parameter: nn.Parameter) -> bool:
        """Nothing is for Muon: orthogonal steps are meant for whole matrices."""
        return False

    def export(self, folder: Path) -> None:
        """Write the adapter, as diffusers loads it; see `lora_export.py` for other layouts."""
        write_adapter(self.terms, Path(folder), self.about)


def named_modules(terms: Mapping[str, nn.Module]) -> nn.ModuleDict:
    """Modules by name, where names may have dots."""
    return nn.ModuleDict({name.replace(".", "/"): term for name, term in terms.items()})


class RememberedText(nn.Module):
    """A frozen text encoder whose answers are kept, prompt by prompt.

    Every prompt is read alone, so what it reads as does not depend on the batch that it is first met in.
    """

    def __init__(self, encoder: TextEncoder | StagedTextEncoder) -> None:
        super().__init__()
        self.encoder = encoder
        self._kept: dict[tuple[int, ...], Tensor] = {}

    @torch.no_grad()
    def forward(self, ids: Tensor, mask: Tensor) -> TextStates:
        """As `TextEncoder.forward`."""
        lengths = mask.sum(dim=1)
        states = [self._read(row[:length]) for row, length in zip(ids, lengths.tolist())]
        return TextStates(nn.utils.rnn.pad_sequence(states, batch_first=True), lengths)

    def _read(self, ids: Tensor) -> Tensor:
        key = tuple(ids.tolist())
        if key not in self._kept:
            if len(self._kept) >= REMEMBERED:
                self._kept.pop(next(iter(self._kept)))
            self._kept[key] = self.encoder(ids[None], torch.ones_like(ids[None])).states[0]
        return self._kept[key]
