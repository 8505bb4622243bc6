"""A model of your own clips: from nothing, stage by stage, or a finished model trained on in full.

    carrara data prepare CLIPS prepared
    carrara train clips --data prepared -o runs/clips
    carrara train clips --data prepared --start pond -o runs/clips

From nothing: an autoencoder of the clips (or a given one, `--vae`), a cache of their latents, then a transformer with
its text encoder. With `--start` (a bundled model, a folder in the layout of diffusers or Wan's own, a name on the hub):
that model's autoencoder and tokenizer stay as they are and its transformer learns. Clips of all buckets train in one
run. Each stage resumes where it stopped; the model folder ends up in `runs/clips/denoiser/model`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from carrara.autoencoders.video import VideoAutoencoder
from carrara.autoencoders.video_config import VideoAutoencoderConfig
from carrara.core.config import to_dict
from carrara.core.types import VideoShape
from carrara.data.clip_latents import Beside, encode_prepared, open_latents
from carrara.data.latents import LatentCache
from carrara.data.mixture import Mixture
from carrara.data.prepared import Prepared
from carrara.denoisers.dit import DiT, DiTConfig
from carrara.diffusion.fields import KEYFRAME, FieldMix
from carrara.recipes.clips_autoencoder import (
    ClipsAutoencoderStage,
    clips_stage,
    encoder_fingerprint,
    open_autoencoder,
    open_prepared,
    train_on_clips,
)
from carrara.recipes.clips_data import (
    LatentBatches,
    Split,
    Views,
    check_buckets,
    check_pieces,
    encoding,
    latent_mixture,
    validation_batches,
)
from carrara.recipes.clips_images import image_of, moving_clips
from carrara.recipes.clips_start import ClipsDenoiserStage, ClipsPhase, Finished, native_fields, open_finished
from carrara.recipes.device import chosen_device
from carrara.recipes.prepared_words import check_captions, example_of, words_of
from carrara.recipes.runs import Recipe
from carrara.systems.folder import read_autoencoder
from carrara.systems.latent import Defaults, LatentVideo, Sampling
from carrara.text.encoder import TextEncoder, TextEncoderConfig
from carrara.text.tokenizer import Tokenizer
from carrara.training.config import TrainConfig
from carrara.training.loop import train
from carrara.training.parallel import alone_first, place


@dataclass(frozen=True)
class ClipsRecipe(Recipe):
    """Everything that decides a model of clips.

    data: a prepared folder; start: a finished model to train on; vae: an autoencoder or a model whose autoencoder is
    used as it is; held_out: share of the sources kept for validation; threads: that decode (0: one per core, at most
    8); memory: GB of decoded clips that are kept; encode_pixels: places in space and time that are encoded at once.
    device: "cpu", "cuda" or "auto".
    """

    autoencoder: ClipsAutoencoderStage
    denoiser: ClipsDenoiserStage
    data: str = ""
    start: str | None = None
    vae: str | None = None
    held_out: float = 0.05
    threads: int = 0
    memory: float = 1.0
    encode_pixels: int = 1 << 20
    seed: int = 0
    device: str = "auto"

    kind = "clips"

    def __post_init__(self) -> None:
        if self.denoiser.expert and not self.start:
            raise ValueError(
                f"expert={self.denoiser.expert!r}: only a finished model has experts; name it with --start"
            )
        if self.start and self.vae:
            raise ValueError(f"start={self.start!r} and vae={self.vae!r}: a finished model has its own autoencoder")

    def _run(self, folder: Path) -> Path:
        device = torch.device(chosen_device(self.device))
        prepared = open_prepared(self.data)
        stage, finished = self.denoiser, None
        if self.start:
            finished = open_finished(self.start, stage.train_text, device, stage.expert)
        beside = finished.beside if finished else None
        if beside:
            prepared = moving_clips(prepared)
        split = Split.of(prepared, self.held_out, self.seed)
        given = open_autoencoder(self.vae) if self.vae else None
        words = self.check(prepared, split, finished, given[0] if given else None)
        _tell(prepared, split)
        if finished:
            autoencoder, made_by = finished.system.autoencoder, finished.encoder
        elif given:
            autoencoder, made_by = given
        else:
            autoencoder, made_by = self.train_autoencoder(prepared, split, folder / "autoencoder", device)
        keyframes = 0 if finished and finished.foreign else stage.keyframes
        to = folder / "latents"
        caches = self.cache_latents(prepared, autoencoder.to(device), made_by, to, device, keyframes, beside)
        phase = self.denoiser_phase(prepared, split, caches, autoencoder, finished, words)
        settings = self._settings(prepared, made_by, finished)
        return train(phase, stage.rates(finished is not None), folder / "denoiser", settings)

    @property
    def example(self) -> str:
        """A prompt to try the model with: a caption that it learned."""
        return example_of(open_prepared(self.data))

    def check(
        self, prepared: Prepared, split: Split, finished: Finished | None, given: VideoAutoencoder | None
    ) -> Tokenizer:
        """Refuse clips, captions and settings that a stage would refuse, before the first one runs; returns what reads
        the captions."""
        if finished:
            stride, patch = finished.system.stride, finished.system.patch
        else:
            begun = open_autoencoder(self.autoencoder.start)[0] if self.autoencoder.start and not given else given
            stride, patch = begun.stride if begun else self.autoencoder.model.stride, self.denoiser.model.patch
            if not given:
                self.autoencoder.views.check(stride)
        check_buckets(prepared, lambda shape: shape.latent(stride).tokens(patch), self.start or "this model")
        mixture = self.mixture(prepared, split, self._costs(prepared, stride.time))
        least = min(one.batch for one in mixture.sets)
        check_pieces(least, self.denoiser.train, f"denoiser.batch={self.denoiser.batch}")
        tokenizer = finished.system.tokenizer if finished else words_of(prepared, self.denoiser.words)
        check_captions(prepared, tokenizer)
        return tokenizer

    def train_autoencoder(
        self, prepared: Prepared, split: Split, folder: Path, device: torch.device
    ) -> tuple[VideoAutoencoder, str]:
        """Stage one, unless there is an autoencoder; returns it, and its fingerprint."""
        kept = {"held_out": self.held_out}
        trained = train_on_clips(
            self.autoencoder, prepared, split, self.seed, folder, kept, device, self.threads, int(self.memory * 1e9)
        )
        return read_autoencoder(trained), encoder_fingerprint(trained)

    def cache_latents(
        self,
        prepared: Prepared,
        autoencoder: VideoAutoencoder,
        made_by: str,
        folder: Path,
        device: torch.device,
        keyframes: int,
        beside: Beside | None = None,
    ) -> list[LatentCache | None]:
        """Stage two: every clip encoded once, with what the model reads beside it; one cache for each bucket."""
        with alone_first():
            encode_prepared(
                prepared,
                folder,
                encoding(autoencoder, self.encode_pixels, device),
                made_by,
                autoencoder.latent_channels,
                keyframes,
                self.encode_pixels,
                self.threads,
                lambda said, done, count: print(f"{folder.name}: {done} of {count}, {said}", flush=True),
                beside,
            )
        return open_latents(prepared, folder, made_by, keyframes, beside=beside)

    def mixture(self, prepared: Prepared, split: Split, costs: list[float]) -> Mixture:
        """Which clips each step is on."""
        stage = self.denoiser
        return latent_mixture(prepared, split, costs, stage.batch, self.seed, stage.weights)

    def denoiser_phase(
        self,
        prepared: Prepared,
        split: Split,
        caches: list[LatentCache | None],
        autoencoder: VideoAutoencoder,
        finished: Finished | None,
        words: Tokenizer,
    ) -> ClipsPhase:
        """Stage three: the model, and the data it learns from. words: for a model that is begun here."""
        stage = self.denoiser
        bucket = split.main_bucket(prepared)
        shape = prepared.buckets[bucket]
        fields = self._fields()
        if finished:
            system, sampling = finished.system, finished.system.defaults.sampling
            fields = native_fields(finished.kind) if finished.foreign else fields
        else:
            system, sampling = self.fresh_system(prepared, shape, autoencoder, words), stage.sampling
        mixture = self.mixture(prepared, split, self._costs(prepared, autoencoder.stride.time))
        places: dict[str, int] = {}  # the first clip with each caption
        for place_of, number in enumerate(prepared.members[bucket]):
            if number in split.trained:
                places.setdefault(prepared.rows[number].caption or "", place_of)
        pictured, cache = list(places)[: stage.pictured], caches[bucket]
        assert cache is not None
        return ClipsPhase(
            system,
            LatentBatches(caches, mixture, stage.caption_dropout),
            validation_batches(prepared, split, caches, mixture, stage.validation),
            fields,
            sampling,
            pictured,
            shape,
            prepared.fps,
            finished.times(stage.times) if finished else stage.times,
            finished,
            image_of(cache[[places[caption] for caption in pictured]]),
        )

    def fresh_system(
        self, prepared: Prepared, shape: VideoShape, autoencoder: VideoAutoencoder, tokenizer: Tokenizer
    ) -> LatentVideo:
        """The autoencoder, the tokenizer, and a transformer and a text encoder that know nothing yet."""
        stage, device = self.denoiser, next(autoencoder.parameters()).device
        channels = autoencoder.latent_channels
        torch.manual_seed(self.seed)  # transformers draws the text encoder's weights from the global generator
        sizes = {"d_ff": 2 * stage.text_width, "num_layers": stage.text_layers}
        heads = max(1, stage.text_width // 64)
        text = TextEncoder(TextEncoderConfig(tokenizer.vocab_size, stage.text_width, num_heads=heads, **sizes))
        denoiser = DiT(replace(stage.model, in_channels=channels, out_channels=channels, text_dim=stage.text_width))
        denoiser.init_weights(self.seed)
        knows = self._fields().taught
        defaults = Defaults(shape.frames, shape.height, shape.width, prepared.fps, stage.sampling, knows=knows)
        return LatentVideo(autoencoder, denoiser.to(device), text.to(device), tokenizer, defaults)

    def _fields(self) -> FieldMix:
        stage = self.denoiser
        return stage.fields if stage.keyframes else stage.fields.without(KEYFRAME)

    def _costs(self, prepared: Prepared, stride: int) -> list[float]:
        """Places of a clip's latents, in proportion."""
        return [((shape.frames - 1) // stride + 1) * shape.height * shape.width for shape in prepared.buckets]

    def _settings(self, prepared: Prepared, made_by: str, finished: Finished | None) -> dict[str, object]:
        """What must be the same when a run is resumed: folders may move, what is in them may not."""
        whole = to_dict(self)
        unsaid = ("train",) if self.denoiser.expert else ("train", "expert")
        stage = {name: value for name, value in whole["denoiser"].items() if name not in unsaid}
        data = [prepared.identity(bucket) for bucket, numbers in enumerate(prepared.members) if numbers]
        start = finished.system.fingerprint if finished else ""
        kept = {"denoiser": stage, "held_out": self.held_out, "seed": self.seed}
        return {**kept, "data": data, "autoencoder": made_by, "start": start}


def _tell(prepared: Prepared, split: Split) -> None:
    """What the folder holds, in a few lines; a folder without captions is trained on, and that is said."""
    if place()[0]:
        return  # the first process has said it
    told = sum(bool(row.caption) for row in prepared.rows)
    print(f"{prepared.folder}: {len(prepared)} clips, {told} with captions, {len(split.held_out)} held out", flush=True)
    if not told:
        print("no clip has a caption: the model learns to make clips, and nothing about prompts", flush=True)
    if not split.held_out:
        print("no source is held out: validation is on clips that are trained on", flush=True)


def clips() -> ClipsRecipe:
    """A model of your own clips: from nothing, or a finished model trained on in full (--start)."""
    return ClipsRecipe(
        clips_stage(),
        ClipsDenoiserStage(
            DiTConfig(heads=4, head_dim=64, layers=8, ffn_dim=1024),
            TrainConfig(
                minutes=120,
                warmup=100,
                optimizer="muon",
                matrix_learning_rate=2e-3,
                validate_every=500,
                picture_every=500,
            ),
        ),
    )


def clips_tiny() -> ClipsRecipe:
    """Every stage on your own clips in seconds, to see that they and the machine work; what it makes is noise."""
    steps = TrainConfig(steps=4, warmup=1, precision="float32", log_every=2, validate_every=2, picture_every=4)
    return ClipsRecipe(
        ClipsAutoencoderStage(
            VideoAutoencoderConfig(8, 8, 8, (1, 2, 2), 1, temporal_downsample=(False, True), patch=2),
            steps,
            views=Views(pixels=20_000, side=32, frames=5),
            validation=2,
        ),
        ClipsDenoiserStage(
            DiTConfig(heads=2, head_dim=16, layers=2, ffn_dim=64),
            steps,
            batch=2,
            validation=2,
            pictured=2,
            text_width=32,
            sampling=Sampling(steps=4, guidance=2.0, shift=1.0),
        ),
    )
