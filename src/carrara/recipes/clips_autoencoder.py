"""An autoencoder of your own clips, from nothing or from one that is there.

    carrara train clips-autoencoder --data prepared -o runs/clips-autoencoder
    carrara train clips-autoencoder --data prepared --autoencoder.start pond -o runs/clips-autoencoder

The folder is one that `carrara data prepare` has written. The result ends up in
`runs/clips-autoencoder/autoencoder/model`; `carrara train clips --vae FOLDER` trains a transformer on its latents.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Generator, Tensor, nn

from carrara.autoencoders.losses import AutoencoderLossConfig, autoencoder_loss, psnr
from carrara.autoencoders.video import LatentStatistics, VideoAutoencoder
from carrara.autoencoders.video_config import CLASS_NAME, VideoAutoencoderConfig, small_64
from carrara.core.config import at_least, read_json, to_dict
from carrara.core.weights import fingerprint
from carrara.data.clip_pixels import ClipReader
from carrara.data.prepared import Prepared
from carrara.recipes.clips_data import Split, ViewBatches, Views, check_buckets, check_pieces, without_actors
from carrara.recipes.device import chosen_device
from carrara.recipes.runs import Recipe, check_finished
from carrara.systems.find import find_model
from carrara.systems.folder import read_autoencoder, recognise
from carrara.systems.phases import AutoencoderPhase, PixelBatch, to_unit
from carrara.training.config import TrainConfig
from carrara.training.loop import train
from carrara.training.parallel import alone_first

M = TypeVar("M", bound=nn.Module)
_MEASURED, _MEASURED_FRAMES = 64, 8  # clips, and of each latent frames behind the first, that statistics are taken of


@dataclass(frozen=True)
class ClipsAutoencoderStage:
    """How an autoencoder is trained on clips.

    model: its shape, without `start`; views: what it is shown; validation: clips of the fixed validation batch at most;
    start: a bundled model, a model folder or an autoencoder's, whose autoencoder it begins from.
    """

    model: VideoAutoencoderConfig
    train: TrainConfig
    loss: AutoencoderLossConfig = field(default_factory=lambda: AutoencoderLossConfig(l1=0, squared=4, gradient=0.5))
    views: Views = field(default_factory=Views)
    validation: int = 8
    start: str | None = None

    def __post_init__(self) -> None:
        at_least(self, 1, "validation")

    def begin(self, seed: int) -> tuple[VideoAutoencoder, str]:
        """The autoencoder before the first step, and the fingerprint of what it begins from ("" for nothing)."""
        if self.start:
            autoencoder, made_by = open_autoencoder(self.start)
            return unmapped(autoencoder).requires_grad_(True), made_by
        return VideoAutoencoder(self.model).initialise(torch.Generator().manual_seed(seed)), ""


@dataclass(frozen=True)
class ClipsAutoencoderRecipe(Recipe):
    """Everything that decides an autoencoder of clips.

    data: a prepared folder; held_out: share of the sources kept for validation; threads: that decode (0: one per core,
    at most 8); memory: GB of decoded clips that are kept. device: "cpu", "cuda" or "auto".
    """

    autoencoder: ClipsAutoencoderStage
    data: str = ""
    held_out: float = 0.05
    threads: int = 0
    memory: float = 1.0
    seed: int = 0
    device: str = "auto"

    kind = "clips"

    def _run(self, folder: Path) -> Path:
        device = torch.device(chosen_device(self.device))
        prepared = open_prepared(self.data)
        split = Split.of(prepared, self.held_out, self.seed)
        return train_on_clips(
            self.autoencoder,
            prepared,
            split,
            self.seed,
            folder / "autoencoder",
            {"held_out": self.held_out},
            device,
            self.threads,
            int(self.memory * 1e9),
        )


def open_prepared(data: str) -> Prepared:
    """The prepared folder of a recipe. Raises ValueError for one that is not."""
    if not data:
        raise ValueError("data is not set: give a folder that `carrara data prepare` has written, as --data FOLDER")
    return Prepared(data)


def train_on_clips(
    stage: ClipsAutoencoderStage,
    prepared: Prepared,
    split: Split,
    seed: int,
    folder: Path,
    settings: Mapping[str, Any],
    device: torch.device,
    threads: int = 0,
    memory: int = 1 << 30,
) -> Path:
    """Train an autoencoder below `folder`, resuming there, and return its folder, which is left alone once it is there.

    Raises ValueError, before the first step, for clips that it cannot take and shards that are missing or damaged.
    """
    autoencoder, made_by = stage.begin(seed)
    whole = to_dict(stage)
    kept = {name: whole[name] for name in ("model", "loss", "views", "validation")}
    data = [prepared.identity(bucket) for bucket, numbers in enumerate(prepared.members) if numbers]
    recorded = {**settings, **kept, "start": made_by, "data": data, "seed": seed}
    check_finished(folder, stage.train, recorded)
    model = folder / "model"
    if (model / "config.json").is_file():
        return model
    check_buckets(prepared, lambda shape: shape.latent(autoencoder.stride), "this autoencoder")
    stage.views.check(autoencoder.stride)
    with alone_first():
        prepared.verify()
    with ClipReader(prepared, threads, memory) as reader:
        batches = ViewBatches(reader, split, stage.views, seed)
        check_pieces(batches.least, stage.train, f"autoencoder.views.pixels={stage.views.pixels}")
        validation = torch.stack(reader.clips(split.validation(prepared, stage.validation)))
        measured = sorted(split.trained)[:: max(1, len(split.trained) // _MEASURED)]
        phase = ClipsAutoencoderPhase(
            autoencoder.to(device), batches, without_actors(validation), stage.loss, lambda: reader.clips(measured)
        )
        return train(phase, stage.train, folder, recorded)


class ClipsAutoencoderPhase(AutoencoderPhase):
    """Train the autoencoder to reconstruct clips in which all places count alike.

    measured: gives the clips, uint8 `t h w 3` of any shapes, over which the statistics of the latents are taken.
    """

    def __init__(
        self,
        autoencoder: VideoAutoencoder,
        batch: ViewBatches,
        validation: PixelBatch,
        config: AutoencoderLossConfig,
        measured: Callable[[], Sequence[Tensor]],
    ) -> None:
        super().__init__(autoencoder, batch, validation, config, validation_batch=1)
        self.piece = batch.piece
        self.measured = measured

    def loss(self, batch: PixelBatch, step: int, generator: Generator) -> dict[str, Tensor]:
        video = to_unit(batch.video.to(generator.device))
        reconstruction, posterior = self.autoencoder.reconstruct(video, generator)
        return autoencoder_loss(video, reconstruction, posterior, None, self.config)

    def reconstruct(self, video: Tensor) -> Tensor:
        return super().reconstruct(video.to(next(self.autoencoder.parameters()).device)).cpu()

    def validate(self) -> dict[str, float]:
        """PSNR in dB on the fixed clips: their mean, and the worst of them."""
        each = psnr(to_unit(self.reconstruct(self.validation.video)), to_unit(self.validation.video))
        return {"psnr": float(each.mean()), "psnr_worst": float(each.min())}

    def measure(self) -> LatentStatistics:
        device = next(self.autoencoder.parameters()).device
        frames = 1 + _MEASURED_FRAMES * self.autoencoder.stride.time
        return self.autoencoder.measure(to_unit(clip[None, :frames].to(device)) for clip in self.measured())


def open_autoencoder(name: str) -> tuple[VideoAutoencoder, str]:
    """The autoencoder of a bundled model, a model folder of any layout, or an autoencoder's own folder, in float32, and
    its fingerprint, by which caches of its latents are keyed."""
    folder = Path(name)
    config = folder / "config.json"
    if config.is_file() and read_json(config).get("_class_name") == CLASS_NAME:
        return read_autoencoder(folder), encoder_fingerprint(folder)
    found = recognise(find_model(name))
    return found.load("vae", torch.float32), encoder_fingerprint(found.folder / "vae", found.networks["vae"].files())


def unmapped(module: M) -> M:
    """The module with weights of its own in memory, none of them a mapped file, for they are going to change."""
    for parameter in module.parameters():
        parameter.data = parameter.data.clone()
    return module


def encoder_fingerprint(folder: Path, files: Sequence[Path] = ()) -> str:
    """Of an autoencoder's folder, over all its files; or over its weights' `files` where it has no folder."""
    return fingerprint(sorted(folder.iterdir()) if folder.is_dir() else files)


def clips_autoencoder() -> ClipsAutoencoderRecipe:
    """An autoencoder of your own clips, from nothing or from one that is there."""
    return ClipsAutoencoderRecipe(clips_stage())


def clips_stage() -> ClipsAutoencoderStage:
    """For clips of about 64 x 64 to 128 x 128 on a CPU: stride 2 x 8 x 8, 32 channels, an hour."""
    return ClipsAutoencoderStage(
        small_64(),
        TrainConfig(
            minutes=60,
            warmup=50,
            decay_share=0.35,
            learning_rate=2e-4,
            matrix_learning_rate=4e-4,
            optimizer="muon",
            weight_decay=0.0,
            validate_every=500,
            picture_every=1000,
        ),
        AutoencoderLossConfig(l1=0, squared=4, gradient=0.5, kl=3e-5),
    )
