"""An adapter for a finished model, from a few clips: it learns a word, an actor, a look; the model stays as it is.

    carrara train lora --model pond --clips runs/mine/latents -o runs/mine
    carrara generate "a teal frog jumps" --lora runs/mine/lora/model

Clips are folders of latents that the model's own autoencoder made (`data/latents.py`), or prepared folders
(`carrara data prepare`), which are encoded first. What is written is an adapter as diffusers loads it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Generator

from carrara.core.config import at_least, to_dict
from carrara.diffusion.fields import KEYFRAME, FieldMix, TimeDraw
from carrara.recipes.clips_data import check_pieces
from carrara.recipes.clips_start import native_fields
from carrara.recipes.device import chosen_device
from carrara.recipes.lora_clips import LatentClips, open_latents_of
from carrara.recipes.runs import Recipe
from carrara.systems.find import find_model
from carrara.systems.folder import assemble, recognise
from carrara.systems.latent import LatentVideo
from carrara.systems.lora import TARGETS, fresh_terms
from carrara.systems.lora_phase import LoRAPhase
from carrara.training.config import TrainConfig
from carrara.training.loop import train


@dataclass(frozen=True)
class LoRA:
    """The adapter. It adds alpha / rank of a product of two thin matrices to every layer that targets name: whole
    names or their ends, `*` for anything, in our spelling (self_attention.q), diffusers' (attn1.to_q) or Wan's."""

    rank: int = 8
    alpha: float = 8.0
    targets: tuple[str, ...] = TARGETS


@dataclass(frozen=True)
class LoRARecipe(Recipe):
    """Everything that decides an adapter.

    clips: folders of latents or prepared folders; shares: of steps on each of them, by number of clips if empty;
    batch: clips of a step; validation: clips of the fixed validation batch, taken from the training's; prompts: shown
    in pictures, the first captions if empty; fields: shares of the kinds of noise field (of a foreign model those that
    it knows); times: how levels are drawn;
    checkpointing: compute blocks again instead of keeping them, for models that would not fit; device: "cpu", "cuda" or
    "auto".
    """

    train: TrainConfig
    model: str = "pond"
    clips: tuple[str, ...] = ()
    shares: tuple[float, ...] = ()
    lora: LoRA = field(default_factory=LoRA)
    batch: int = 8
    validation: int = 16
    caption_dropout: float = 0.1
    fields: FieldMix = field(default_factory=FieldMix)
    times: TimeDraw = field(default_factory=TimeDraw)
    prompts: tuple[str, ...] = ()
    checkpointing: bool = False
    seed: int = 0
    device: str = "auto"

    kind = "lora"

    def __post_init__(self) -> None:
        at_least(self, 1, "batch", "validation")
        if not 0 <= self.caption_dropout < 1:
            raise ValueError(f"caption_dropout={self.caption_dropout}: expected a share of captions, 0 to below 1")
        if self.train.optimizer != "adamw":
            raise ValueError(f"train.optimizer={self.train.optimizer!r}: adapters are trained by adamw")
        if self.shares and len(self.shares) != len(self.clips):
            raise ValueError(f"{len(self.shares)} shares for {len(self.clips)} folders of clips: give one for each")
        if any(not share > 0 for share in self.shares):
            raise ValueError(f"shares={self.shares}: each must be above 0")

    def _run(self, folder: Path) -> Path:
        phase, settings = self.phase(folder)
        return train(phase, self.train, folder / "lora", settings)

    def phase(self, folder: Path) -> tuple[LoRAPhase, dict[str, Any]]:
        """The model with an untrained adapter on it and the clips it learns from; and what a resumed run must share."""
        if not self.clips:
            raise ValueError("no clips: give --clips FOLDER, latents or a folder by `carrara data prepare`")
        prepared = [Path(name) for name in self.clips if (Path(name) / "prepared.json").is_file()]
        names = [path.name for path in prepared]
        if twice := [str(path) for path in prepared if names.count(path.name) > 1]:
            said = "prepared folders of one name, by which their latents are kept; rename one"
            raise ValueError(f"clips {' and '.join(twice)}: {said}")
        found = recognise(find_model(self.model))
        system = assemble(found, staged=found.foreign)
        device = torch.device(chosen_device(self.device))
        system.to(device)
        terms = fresh_terms(  # what it refuses is refused before anything is encoded
            system, self.lora.rank, self.lora.alpha, self.lora.targets, Generator().manual_seed(self.seed)
        )
        caches = [open_latents_of(Path(name), found, system, folder) for name in self.clips]
        clips = LatentClips(caches, self.batch, self.seed, self.shares)
        check_pieces(min(clips.batches), self.train, f"batch={self.batch}")
        for denoiser in (system.denoiser, system.low_denoiser):
            if denoiser is not None:
                denoiser.checkpointing = self.checkpointing
        fields = self.fields if clips.keyframes else self.fields.without(KEYFRAME)
        phase = LoRAPhase(
            system,
            terms,
            clips,
            clips.first(self.validation),
            native_fields(found.kind) if found.foreign else fields,
            system.defaults.sampling,
            self.prompts or clips.captions(4),
            clips.shape,
            self.caption_dropout,
            self.times,
            self._about(system, clips),
        )
        return phase, self._settings(system, clips)

    def _about(self, system: LatentVideo, clips: LatentClips) -> dict[str, Any]:
        """What the adapter's file says of itself: its base, the words it teaches, and how it was trained."""
        words = dict.fromkeys(word.lower() for text in clips.captions() for word in system.unknown_words(text))
        return {
            "base": {"name": Path(self.model).name, "fingerprint": system.fingerprint},
            "words": list(words),
            "trained": {"clips": len(clips), "lora": to_dict(self.lora), "batch": self.batch, "seed": self.seed},
        }

    def _settings(self, system: LatentVideo, clips: LatentClips) -> dict[str, Any]:
        """Folders may move, what is in them may not."""
        whole = to_dict(self)
        names = ("shares", "lora", "batch", "caption_dropout", "fields", "times", "seed")
        return {**{name: whole[name] for name in names}, "model": system.fingerprint, "clips": clips.identity()}


def lora() -> LoRARecipe:
    """An adapter (LoRA) for a finished model, from a few clips."""
    return LoRARecipe(
        TrainConfig(
            minutes=10,
            warmup=10,
            decay_share=0.3,
            learning_rate=1e-3,
            weight_decay=0.0,
            ema=0.98,
            prefetch=False,
            log_every=20,
            validate_every=100,
            picture_every=200,
        )
    )
