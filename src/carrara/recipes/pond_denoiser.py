"""How the transformer of the bundled model is trained on cached latents."""

from __future__ import annotations

from dataclasses import dataclass, field

from carrara.core.config import at_least
from carrara.data.pond.sampling import Mix
from carrara.denoisers.dit import DiTConfig
from carrara.diffusion.fields import FieldMix, TimeDraw
from carrara.recipes.compute import check_flops
from carrara.recipes.pond_data import Captioning, ImageSteps
from carrara.recipes.pond_favoured import Favoured
from carrara.recipes.pond_shapes import Buckets
from carrara.systems.alignment import Alignment
from carrara.systems.latent import Sampling
from carrara.training.config import TrainConfig


@dataclass(frozen=True)
class DenoiserStage:
    """How the transformer and the text encoder are trained together on cached latents.

    model: sizes of the transformer (its channels follow the autoencoder, its text width the encoder);
    clips: how many are rendered and encoded once, `shard` in a file; validation: clips of the fixed validation batch;
    images: which steps are on single frames; fields: shares of the kinds of noise field; times, image_times: how noise
    levels of clips and of single frames are drawn (of a frame, fewer tokens agree, so less noise hides it); alignment:
    of middle features with what the clips truly show; sampling: what the finished model does by default; start: a
    training folder of such a model whose averaged weights it begins from, on other clips or by another schedule;
    train_text: else a begun model's text encoder stays as it is, and with it the refiner, if there is one; teacher: a
    finished model of the same autoencoder, whose text encoder is taken and stays as it is, and whose answers are
    learned instead of the clips: another transformer soon knows what it knows;
    buckets: clips of other sides and durations that take turns with the recipe's own; favoured: clips that are drawn
    more often than others;
    flops: compute to train with, None for the length that `train` says.
    """

    model: DiTConfig
    train: TrainConfig
    mix: Mix = field(default_factory=Mix)
    clips: int = 24_000
    shard: int = 1000
    batch: int = 64
    validation: int = 128
    text_width: int = 192
    text_layers: int = 2
    captioning: Captioning = field(default_factory=Captioning)
    images: ImageSteps = field(default_factory=ImageSteps)
    fields: FieldMix = field(default_factory=FieldMix)
    times: TimeDraw = field(default_factory=TimeDraw)
    image_times: TimeDraw = field(default_factory=TimeDraw)
    alignment: Alignment = field(default_factory=Alignment)
    sampling: Sampling = field(default_factory=lambda: Sampling(steps=30, guidance=4.0, shift=1.0))
    start: str | None = None
    train_text: bool = True
    teacher: str | None = None
    buckets: Buckets = field(default_factory=Buckets)
    favoured: Favoured = field(default_factory=Favoured)
    flops: float | None = None

    def __post_init__(self) -> None:
        check_flops(self.flops)
        if self.buckets.shapes and (self.flops is not None or self.alignment.weight):
            said = "flops" if self.flops is not None else "alignment.weight"
            raise ValueError(f"{said} and buckets.shapes: counted and aligned are clips of one shape; leave one out")
        at_least(self, 1, "clips", "shard", "batch", "validation", "text_width", "text_layers")
        if self.alignment.weight and self.alignment.block > self.model.layers:
            raise ValueError(f"alignment.block={self.alignment.block}: the transformer has {self.model.layers} blocks")
