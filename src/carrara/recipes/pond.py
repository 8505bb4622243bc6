"""The bundled model, from nothing: an autoencoder for the pond's clips, a cache of their latents, then the denoiser.

    carrara train pond -o runs/pond

Each stage is resumed where it stopped and skipped once it is finished; the model folder ends up in
`runs/pond/denoiser/model`. `--denoiser.flops 1e15` trains the denoiser for that much compute instead of a time;
`compute.json` beside the model of either stage says what it took.

    carrara train pond --start pond -o runs/later

goes on from a finished model, here the bundled one: its autoencoder stays, so only the last two stages are left.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import torch

from carrara.autoencoders.losses import AutoencoderLossConfig
from carrara.autoencoders.video_config import VideoAutoencoderConfig, small_64, small_128
from carrara.core.types import VideoShape
from carrara.data.batches import mix as mix_seed
from carrara.data.latents import LatentCache
from carrara.data.pond.sampling import EVERYTHING, Mix
from carrara.denoisers.dit import DiT, DiTConfig
from carrara.diffusion.fields import TimeDraw
from carrara.recipes.clips_start import open_finished
from carrara.recipes.compute import COMPUTE, Cost, train_counted
from carrara.recipes.device import chosen_device
from carrara.recipes.pond_autoencoder import AutoencoderStage, train_autoencoder, with_decoder
from carrara.recipes.pond_compute import count_autoencoder, count_denoiser
from carrara.recipes.pond_data import (
    Captioning,
    ClipSource,
    ImageSteps,
    PixelSource,
    latent_source,
    train_pond_tokenizer,
)
from carrara.recipes.pond_denoiser import DenoiserStage
from carrara.recipes.pond_latents import ClipCaches
from carrara.recipes.pond_shapes import bucket_batch, taking_turns
from carrara.recipes.pond_teacher import check_words, open_teacher
from carrara.recipes.pond_truth import TruthTable, content_head
from carrara.recipes.runs import Recipe, check_finished
from carrara.systems.find import find_model
from carrara.systems.folder import read_autoencoder, recognise
from carrara.systems.latent import Defaults, LatentVideo, Sampling
from carrara.systems.parts import ModelFolder
from carrara.systems.phases import CaptionedLatents, DenoiserPhase
from carrara.text.encoder import TextEncoder, TextEncoderConfig
from carrara.text.tokenizer import Tokenizer
from carrara.training.config import TrainConfig
from carrara.training.loop import load_ema, train
from carrara.training.parallel import alone_first

PICTURED = (
    "a red ball bounces on the grass",
    "a green frog jumps over the pond",
    "a yellow star spins in the night sky",
    "a blue car moves right on the sand",
    "a large pink heart grows",
    "a small white bird takes flight in the sky",
    "an orange fish swims in the pond",
    "a purple box goes up",
)


@dataclass(frozen=True)
class PondRecipe(Recipe):
    """Everything that decides the bundled model.

    decoder: an autoencoder's folder by `pond-decoder`, whose better decoder the written model gets; start: a bundled
    model or the folder of one made here, which goes on learning; its autoencoder stays, and what the recipe says of
    sizes and of the autoencoder has no effect then; device: "cpu", "cuda", or "auto".
    """

    autoencoder: AutoencoderStage
    denoiser: DenoiserStage
    width: int = 128
    height: int = 128
    frames: int = 17
    fps: float = 8.0
    seed: int = 0
    device: str = "auto"
    decoder: str | None = None
    start: str | None = None

    kind = "pond"

    @property
    def shape(self) -> VideoShape:
        return VideoShape(self.frames, self.height, self.width)

    def source(self, mix: Mix, device: torch.device) -> ClipSource:
        """Clips of the world that is learned."""
        return PixelSource(self.shape, self.fps, mix, device)

    def _run(self, folder: Path) -> Path:
        return (self.following() if self.start else self)._stages(folder)

    def following(self) -> Self:
        """This recipe with the sizes of the model that it starts from; of its weights only headers are read."""
        found = self.found()
        found.check()
        return replace(
            self,
            autoencoder=replace(self.autoencoder, model=found.networks["vae"].check().config),
            denoiser=replace(self.denoiser, model=found.networks["transformer"].check().config),
        )

    def found(self) -> ModelFolder:
        """The model that `start` names. Raises ValueError for one that was not made here, or is no such model."""
        assert self.start
        found = recognise(find_model(self.start))
        if found.foreign:
            raise ValueError(
                f"start={self.start!r}: this recipe goes on with models made here; "
                "train a foreign one by `carrara train clips --start MODEL`"
            )
        return found

    def begun(self, device: torch.device) -> LatentVideo:
        """The same, opened to go on learning."""
        found = self.found()
        system = open_finished(str(found.folder), True, device).system
        if not self.denoiser.train_text and "refiner" in found.networks:  # it reads what this text encoder says
            system.refiner = found.load("refiner", torch.float32).to(device)
        return system

    def _stages(self, folder: Path) -> Path:
        stride, patch = self.autoencoder.model.stride, self.denoiser.model.patch
        self.shape.latent(stride).tokens(patch)
        self.denoiser.buckets.check(self.shape, stride, patch)
        check_words(self.denoiser.teacher, self.denoiser.train_text, self.start)
        for start in (self.autoencoder.start, self.denoiser.start):
            if start and not Path(start).exists():
                raise ValueError(f"start={start!r}: no such training folder")
        device = torch.device(chosen_device(self.device))
        trained = self.train_autoencoder(folder / "autoencoder", device)
        cache, validation = self.cache_latents(folder, trained, device)
        others = self.cache_buckets(folder, trained, device)
        return self.train_denoiser(folder / "denoiser", trained, cache, validation, device, others)

    def train_autoencoder(self, folder: Path, device: torch.device) -> Path:
        """Stage one; returns the folder of the trained autoencoder, which is left alone once it is there."""
        if self.start:
            return find_model(self.start) / "vae"
        model, source = folder / "model", self.source(self.autoencoder.mix, device)
        settings = self._settings("autoencoder")
        check_finished(folder, self.autoencoder.train, settings)
        if not (model / "config.json").is_file():
            train_autoencoder(self.autoencoder, source, self.seed, folder, settings, device)
        if (folder / "metrics.jsonl").is_file() and not (folder / COMPUTE).is_file():
            count_autoencoder(folder, self.autoencoder, source, self.seed)
        return model

    def cache_latents(self, folder: Path, trained: Path, device: torch.device) -> tuple[LatentCache, LatentCache]:
        """Stage two: the training and the validation clips, rendered and encoded once."""
        caches, source = ClipCaches(folder, trained, self.denoiser, device), self.source(self.denoiser.mix, device)
        return caches.trained_on(source), caches.validated_on(source)

    def cache_buckets(self, folder: Path, trained: Path, device: torch.device) -> list[LatentCache]:
        """The training clips of the other shapes, of the same scenes."""
        return ClipCaches(folder, trained, self.denoiser, device).of_buckets(self.shape, self.fps)

    def train_denoiser(
        self,
        folder: Path,
        trained: Path,
        cache: LatentCache,
        validation: LatentCache,
        device: torch.device,
        others: Sequence[LatentCache] = (),
    ) -> Path:
        """Stage three; returns the finished model folder. others: what takes turns with the cache, by `buckets`.

        Raises ValueError where these are not the clips that the buckets ask for.
        """
        stage, settings = self.denoiser, self._settings("denoiser")
        if len(others) != len(stage.buckets.shapes):
            raise ValueError(f"buckets.shapes={stage.buckets.shapes}: {len(others)} caches of their clips are here")
        phase = self.denoiser_phase(trained, cache, validation, device)
        if others:
            shapes = stage.buckets.parsed()
            seen = [stage.buckets.seen(shape, self.shape) for shape in shapes.values()]
            stride = self.autoencoder.model.stride
            sizes = [bucket_batch(stage.batch, self.shape, shape, stride) for shape in (self.shape, *seen)]
            phase.batch = taking_turns(
                (cache, *others),
                sizes,
                stage.buckets.weights(),
                stage.captioning,
                self.seed,
                stage.images,
                stage.favoured,
            )
        if self.denoiser.start:
            load_ema(Path(self.denoiser.start), phase.module)
        if others:  # whose steps cost differently: they are not counted
            return train(phase, stage.train, folder, settings)
        cost = self.denoiser_cost(phase, cache)
        return train_counted(phase, stage.train, folder, settings, "denoiser", stage.flops, cost)

    def denoiser_cost(self, phase: DenoiserPhase, cache: LatentCache) -> Cost:
        """FLOP of the steps of stage three, of clips and of single frames."""
        return count_denoiser(phase, self.batches(cache, 1), self.denoiser.batch, self.on_images)

    def on_images(self, step: int) -> bool:
        """Whether a step of the denoiser is on single frames."""
        return self.denoiser.images.alone(step, torch.Generator().manual_seed(mix_seed(self.seed, step)))

    def denoiser_phase(
        self, trained: Path, cache: LatentCache, validation: LatentCache, device: torch.device
    ) -> DenoiserPhase:
        """The system, fresh or begun, and the data that its transformer and text encoder learn from."""
        stage = self.denoiser
        teacher = open_teacher(stage.teacher, trained, stage.text_width, device) if stage.teacher else None
        system, head = self.system(trained, train_pond_tokenizer, device, teacher), None
        if stage.alignment.weight:
            stride = self.autoencoder.model.stride.time
            head = content_head(system.denoiser.config.dim, stride, stage.alignment, self.seed).to(device)
        return DenoiserPhase(
            system,
            self.batches(cache, stage.batch),
            # Told as every other recipe's are, so that losses compare between mixes of captions.
            latent_source(validation, stage.validation, Captioning(), 0)(0),
            stage.fields,
            stage.sampling,
            PICTURED,
            self.shape,
            times=stage.times,
            image_times=stage.image_times,
            content_head=head,
            teacher=None if teacher is None else teacher.denoiser,
            train_text=stage.train_text and teacher is None,
        )

    def batches(self, cache: LatentCache, size: int) -> Callable[[int], CaptionedLatents]:
        """What stage three learns from, so many clips in a step."""
        stage, truth = self.denoiser, None
        if stage.alignment.weight:
            stride = self.autoencoder.model.stride
            _, rows, columns = self.shape.latent(stride).tokens(stage.model.patch)
            with alone_first():
                truth = TruthTable.open(cache, stride.time, rows, columns)
        return latent_source(cache, size, stage.captioning, self.seed, stage.images, truth, stage.favoured)

    def system(
        self,
        trained: Path,
        words: Callable[[], Tokenizer],
        device: torch.device,
        teacher: LatentVideo | None = None,
    ) -> LatentVideo:
        """The trained autoencoder, and the transformer and the text encoder that go on, or know nothing yet.

        words: the tokenizer where nothing is begun; teacher: whose words and text encoder are taken.
        """
        stage = self.denoiser
        if self.start:
            system = self.begun(device)
        else:
            system = self.fresh_system(trained, teacher.tokenizer if teacher else words(), device)
        if teacher is not None:
            system.text_encoder = teacher.text_encoder
        system.defaults = Defaults(
            self.frames, self.height, self.width, self.fps, stage.sampling, knows=stage.fields.taught
        )
        if self.decoder is not None:
            system.autoencoder = with_decoder(system.autoencoder, Path(self.decoder)).to(device)
        return system

    def fresh_system(self, trained: Path, tokenizer: Tokenizer, device: torch.device) -> LatentVideo:
        """The trained autoencoder, and a transformer and a text encoder that know nothing yet."""
        stage = self.denoiser
        channels = self.autoencoder.model.latent_channels
        torch.manual_seed(self.seed)  # transformers draws the text encoder's weights from the global generator
        text = TextEncoder(
            TextEncoderConfig(
                tokenizer.vocab_size,
                stage.text_width,
                d_ff=2 * stage.text_width,
                num_layers=stage.text_layers,
                num_heads=max(1, stage.text_width // 64),
            )
        )
        denoiser = DiT(replace(stage.model, in_channels=channels, out_channels=channels, text_dim=stage.text_width))
        denoiser.init_weights(self.seed)
        return LatentVideo(read_autoencoder(trained).to(device), denoiser.to(device), text.to(device), tokenizer)

    def recorded(self) -> dict[str, Any]:
        """Without settings that ask for nothing and came later, so that runs from before go on."""
        whole = super().recorded()
        if not self.denoiser.buckets.shapes:
            whole["denoiser"].pop("buckets")
        if not self.denoiser.favoured.attributes:
            whole["denoiser"].pop("favoured")
        if self.denoiser.teacher is None:
            whole["denoiser"].pop("teacher")
        if self.denoiser.train_text:
            whole["denoiser"].pop("train_text")
        return whole

    def _settings(self, stage: str) -> dict[str, object]:
        whole = self.recorded()
        whole[stage].pop("train")  # the loop keeps its own, and knows which of them may change
        whole["autoencoder"].pop("images")  # as the length of any stage
        whole["denoiser"].pop("flops")  # which this is too
        begun = {"start": self.found().fingerprint()} if self.start else {}
        return {**{key: whole[key] for key in (stage, "width", "height", "frames", "fps", "seed")}, **begun}


def pond() -> PondRecipe:
    """The bundled model: 17 frames of 64 x 64 through an autoencoder of stride 2 x 8 x 8, on two CPU cores."""
    return PondRecipe(
        AutoencoderStage(
            small_64(),
            TrainConfig(
                minutes=60,
                warmup=50,
                decay_share=0.35,
                learning_rate=2e-4,
                matrix_learning_rate=4e-4,
                optimizer="muon",
                weight_decay=0.0,
                prefetch=False,
                validate_every=500,
                picture_every=1000,
            ),
            AutoencoderLossConfig(l1=0, squared=4, gradient=0, kl=3e-5),
            EVERYTHING,
            batch=2,
            crop=32,
            crop_batch=8,
            piece_batch=16,
            images=20_000,
            image_rates=5,
            image_batch=128,
            per_clip=4,
            image_every=4,
        ),
        DenoiserStage(
            DiTConfig(heads=4, head_dim=64, layers=8, ffn_dim=1024),
            TrainConfig(
                minutes=35,
                warmup=100,
                optimizer="muon",
                matrix_learning_rate=2e-3,
                prefetch=False,
                validate_every=500,
                picture_every=500,
            ),
            Mix(two=0.12, relation=0.5, wall=0.03, camera=0.06),
            clips=100_000,
            batch=64,
            images=ImageSteps(first=1000, share=0.1, per_clip=3),
            # Frames that agree show where things are, and how they move, through much noise: motion is decided there.
            times=TimeDraw(uniform=0.25, mean=1.4),
        ),
        width=64,
        height=64,
    )


def pond_128() -> PondRecipe:
    """As `pond` with four times the pixels in the same number of tokens: stride 2 x 16 x 16, for longer training."""
    small = pond()
    autoencoder = replace(
        small.autoencoder, model=small_128(), batch=1, crop=64, crop_batch=4, piece_batch=8, image_batch=32
    )
    return replace(small, autoencoder=autoencoder, width=128, height=128)


def pond_tiny() -> PondRecipe:
    """Every stage in under a minute at 32 x 32, to see that training works on a machine; what it makes is noise."""
    steps = TrainConfig(steps=4, warmup=1, precision="float32", log_every=2, validate_every=2, picture_every=4)
    return PondRecipe(
        AutoencoderStage(
            VideoAutoencoderConfig(8, 8, 8, (1, 2, 2, 2), 1, residual=True, patch=2), steps, batch=2, validation=4
        ),
        DenoiserStage(
            DiTConfig(heads=2, head_dim=16, layers=2, ffn_dim=64),
            steps,
            clips=8,
            shard=4,
            batch=4,
            validation=4,
            text_width=32,
            sampling=Sampling(steps=4, guidance=2.0, shift=1.0),
        ),
        width=32,
        height=32,
        frames=5,
    )
