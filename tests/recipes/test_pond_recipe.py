"""The whole recipe in small: from nothing to a model folder that generates, resumed where it stopped."""

import shutil
from dataclasses import replace

import pytest
import torch
from going_on import check_went_on

from carrara.autoencoders.inflation import image_config
from carrara.autoencoders.video import VideoAutoencoder
from carrara.autoencoders.video_config import VideoAutoencoderConfig
from carrara.core.config import from_dict
from carrara.core.types import VideoShape
from carrara.core.weights import fingerprint
from carrara.data.latents import LatentCache
from carrara.data.pond.captions import caption
from carrara.data.pond.sampling import SINGLES
from carrara.data.pond.world import Scene
from carrara.denoisers.dit import DiTConfig
from carrara.diffusion.fields import draw_step
from carrara.recipes import RECIPES
from carrara.recipes.pond_data import (
    Captioning,
    ImageSteps,
    PixelSource,
    actor_crops,
    latent_source,
    train_pond_tokenizer,
)
from carrara.systems.latent import LatentVideo, Sampling
from carrara.systems.parts import ModelFolder
from carrara.systems.refiner import Refiner, RefinerConfig, unet_of
from carrara.training.loop import load_ema
from carrara.training.pieces import Pieces


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    return folder, RECIPES["pond-tiny"]().run(folder)


def test_every_stage_leaves_what_the_next_needs_and_the_model_runs(trained):
    folder, model = trained
    assert sorted(path.name for path in folder.iterdir()) == [
        "autoencoder",
        "denoiser",
        "latents",
        "latents-validation",
    ]
    assert list((folder / "denoiser/pictures").glob("*.png"))
    system = LatentVideo.load(model)
    assert (system.defaults.frames, system.defaults.height, system.defaults.fps) == (5, 32, 8.0)
    latents = system.sample(["a red ball bounces on the grass"], [1], VideoShape(5, 32, 32), system.defaults.sampling)
    assert latents.isfinite().all()


def test_latents_are_normalised_per_channel(trained):
    folder, _ = trained
    vae = folder / "autoencoder/model"
    cache = LatentCache.open(folder / "latents-validation", fingerprint(sorted(vae.iterdir())))
    latents = cache[range(len(cache))].latents.float().transpose(0, 1).flatten(1)
    assert latents.mean(1).abs().max() < 0.1  # bfloat16 encoding, and the same clips that were measured
    assert (latents.std(1) - 1).abs().max() < 0.1


def test_image_steps_show_single_frames_of_any_time_told_as_pictures(trained):
    folder, _ = trained
    made_by = fingerprint(sorted((folder / "autoencoder/model").iterdir()))
    cache = LatentCache.open(folder / "latents", made_by)
    images = ImageSteps(first=3, share=0.5, clips=2, per_clip=2)
    canonical = Captioning(short=1.0, medium=0.0, dense=0.0, synonyms=0.0)
    source = latent_source(cache, 4, canonical, 7, images)
    batches = [source(step) for step in range(40)]
    alone = [batch.latents.shape[2] == 1 for batch in batches]
    assert all(alone[:3])
    assert 8 < sum(alone[3:]) < 29
    whole = cache[range(len(cache))]
    frames = torch.cat([whole.latents[:, :, 0][:, None], whole.keyframes], dim=1)
    scenes = [from_dict(Scene, record["scene"], "scene") for record in whole.records]
    seen = set()
    for batch in (batch for batch, still in zip(batches, alone) if still):
        assert len(batch.latents) == len(batch.captions) == 4 * 2 * 2
        for latents, text in zip(batch.latents[:, :, 0], batch.captions):
            clip, frame = (frames == latents).flatten(2).all(2).nonzero()[0].tolist()
            seen.add(frame)
            assert text == caption(replace(scenes[clip], still=True), "short", 0, True).text
    assert len(seen) > 2
    assert source(1).latents.equal(batches[1].latents)
    clips = latent_source(cache, 4, canonical, 7, ImageSteps(first=0, share=0))
    assert {clips(step).latents.shape[2] for step in range(10)} == {whole.latents.shape[2]}
    with pytest.raises(ValueError, match="per_clip=6"):
        ImageSteps(per_clip=6)


@pytest.mark.parametrize("share", [0.05, 0.1, 0.2])
def test_clips_show_keyframes_and_regions_as_often_as_the_mix_says_whichever_steps_are_on_frames(share):
    """Which steps are on single frames, and what a step on clips shows, are drawn apart."""
    recipe = RECIPES["pond"]()
    recipe = replace(recipe, denoiser=replace(recipe.denoiser, images=replace(recipe.denoiser.images, share=share)))
    mix, first = recipe.denoiser.fields, recipe.denoiser.images.first
    clips = [step for step in range(first, first + 8000) if not recipe.on_images(step)]
    assert len(clips) / 8000 == pytest.approx(1 - share, abs=0.015)
    seeds = [Pieces().seed(recipe.denoiser.train.seed, step, 0) for step in clips]
    shown = [draw_step(mix, torch.Generator().manual_seed(seed)) for seed in seeds]
    for kind in ("keyframe", "region"):
        found = sum(getattr(each, kind) == 1 for each in shown) / len(shown)
        assert found == pytest.approx(getattr(mix, kind), abs=0.015), kind


def test_a_finished_run_is_not_trained_again(trained):
    folder, _ = trained
    before = (folder / "autoencoder/model/diffusion_pytorch_model.safetensors").stat().st_mtime_ns
    RECIPES["pond-tiny"]().run(folder)
    assert (folder / "autoencoder/model/diffusion_pytorch_model.safetensors").stat().st_mtime_ns == before


def test_a_denoiser_begins_where_another_run_ended(trained, tmp_path):
    folder, model = trained
    for name in ("autoencoder", "latents", "latents-validation"):
        shutil.copytree(folder / name, tmp_path / name)
    recipe = RECIPES["pond-tiny"]()
    still = replace(recipe.denoiser.train, steps=1, learning_rate=1e-9)
    stage = replace(recipe.denoiser, start=str(folder / "denoiser"), train=still)
    again = LatentVideo.load(replace(recipe, denoiser=stage).run(tmp_path))
    past = LatentVideo.load(model).denoiser.state_dict()
    fresh = LatentVideo.load(replace(recipe, denoiser=replace(stage, start=None)).run(tmp_path / "fresh")).denoiser

    def apart(other: dict[str, torch.Tensor]) -> float:
        return max(float((value - past[name]).abs().max()) for name, value in other.items())

    assert apart(again.denoiser.state_dict()) < 5e-4 < apart(fresh.state_dict())  # files are of 16 bits

    with pytest.raises(ValueError, match="nowhere"):
        replace(recipe, denoiser=replace(stage, start="nowhere")).run(tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_a_finished_model_goes_on_with_its_autoencoder_its_sizes_and_its_words(trained, tmp_path, monkeypatch):
    _, model = trained
    recipe = RECIPES["pond-tiny"]()
    stage = replace(
        recipe.denoiser,
        model=DiTConfig(heads=1, head_dim=16, layers=1, ffn_dim=16),
        sampling=Sampling(steps=2, guidance=1.5, shift=2.0),
    )
    loaded, load = [], ModelFolder.load
    with monkeypatch.context() as patch:
        patch.setattr(ModelFolder, "load", lambda self, part, *given: loaded.append(part) or load(self, part, *given))
        made = replace(recipe, start=str(model), denoiser=stage).run(tmp_path / "run")
    assert sorted(loaded) == ["text_encoder", "transformer", "vae"]  # once: its sizes and costs need no more
    went_on = LatentVideo.load(made)
    before = LatentVideo.load(model)
    assert went_on.defaults.sampling == Sampling(steps=2, guidance=1.5, shift=2.0)
    check_went_on(before, went_on, tmp_path / "run")

    with pytest.raises(ValueError, match="another encoder"):  # nor from nothing in the same folder
        replace(recipe, start=None, denoiser=stage).run(tmp_path / "run")
    with pytest.raises((ValueError, FileNotFoundError), match="nowhere"):
        replace(recipe, start=str(tmp_path / "nowhere")).run(tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_another_transformer_learns_what_a_teacher_says_with_the_words_of_the_teacher(trained, tmp_path):
    folder, model = trained
    shutil.copytree(folder / "autoencoder", tmp_path / "autoencoder")
    recipe = RECIPES["pond-tiny"]()
    wide = DiTConfig(heads=3, head_dim=16, layers=1, ffn_dim=48)
    stage = replace(recipe.denoiser, model=wide, teacher=str(model))
    student = LatentVideo.load(replace(recipe, denoiser=stage).run(tmp_path))
    teacher = LatentVideo.load(model)
    assert student.denoiser.config.heads == 3
    for name, value in teacher.text_encoder.state_dict().items():
        assert torch.equal(value, student.text_encoder.state_dict()[name]), name
    with pytest.raises(ValueError, match="its autoencoder is not the one"):
        replace(recipe, denoiser=stage, seed=1).run(tmp_path / "other")
    for change, told in (
        ({"teacher": str(tmp_path / "nowhere")}, "no such model folder"),
        ({"train_text": False, "teacher": None}, "a text encoder that knows nothing yet would stay so"),
    ):
        with pytest.raises(ValueError, match=told):
            replace(recipe, denoiser=replace(stage, **change)).run(tmp_path / "none")
    with pytest.raises(ValueError, match="a model that goes on reads its own words"):
        replace(recipe, start=str(model), denoiser=stage).run(tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_words_that_stay_keep_the_refiner(trained, tmp_path):
    _, model = trained
    system = LatentVideo.load(model)
    system.refiner = Refiner(RefinerConfig(unet_of(system.text_encoder.config.d_model, dim=8, multipliers=(1, 2))))
    system.refiner.init_weights(0)
    system.save(tmp_path / "refined")
    recipe = replace(RECIPES["pond-tiny"](), start=str(tmp_path / "refined"))
    kept = replace(recipe, denoiser=replace(recipe.denoiser, train_text=False))
    after, learned = (LatentVideo.load(made.run(tmp_path / name)) for name, made in (("kept", kept), ("on", recipe)))
    assert after.refiner is not None
    assert learned.refiner is None
    same = [torch.equal(value, after.text_encoder.state_dict()[name]) for name, value in words(system).items()]
    assert all(same)
    assert not all(torch.equal(value, words(learned)[name]) for name, value in words(system).items())
    assert any(not torch.equal(value, after.denoiser.state_dict()[name]) for name, value in weights(system).items())


def words(system: LatentVideo) -> dict[str, torch.Tensor]:
    return {name: value.half().float() for name, value in system.text_encoder.state_dict().items()}


def weights(system: LatentVideo) -> dict[str, torch.Tensor]:
    return {name: value.half().float() for name, value in system.denoiser.state_dict().items()}


def test_another_recipe_in_the_same_folder_is_refused(trained):
    folder, _ = trained
    recipe = RECIPES["pond-tiny"]()
    other = replace(recipe, denoiser=replace(recipe.denoiser, batch=2))
    with pytest.raises(ValueError, match="batch"):
        other.run(folder)
    with pytest.raises(ValueError, match=r"autoencoder: was trained with train\.warmup=1, now it is 50; set it back"):
        RECIPES["pond"]().run(folder)


def test_every_word_of_the_prompts_is_known():
    tokenizer = train_pond_tokenizer()
    for prompt in ("a red ball bounces on the grass", "a green frog jumps over the pond"):
        assert tokenizer.unknown_words(prompt) == []
    assert tokenizer.unknown_words("a red dragon bounces") == ["dragon"]


def test_crops_follow_the_actors():
    source = PixelSource(VideoShape(5, 64, 64), 8.0, SINGLES, torch.device("cpu"))
    whole = source.batch(0, 4)
    crops = actor_crops(whole, 32, 2, torch.Generator().manual_seed(0))
    assert crops.video.shape == (8, 5, 32, 32, 3)
    assert crops.actors.shape == (8, 5, 32, 32)
    share = [(batch.actors > 0).float().mean() for batch in (whole, crops)]
    assert share[1] > 2 * share[0]
    with pytest.raises(ValueError, match="crop=65"):
        actor_crops(whole, 65, 1, torch.Generator())


def test_an_autoencoder_of_clips_begins_as_copies_of_one_of_frames(tmp_path):
    recipe = RECIPES["pond-tiny"]()
    model = VideoAutoencoderConfig(16, None, 8, (1, 1), 1, (True,), patch=2)
    stage = replace(recipe.autoencoder, model=model, images=3, image_batch=4)
    vae = replace(recipe, autoencoder=stage).train_autoencoder(tmp_path / "autoencoder", torch.device("cpu"))
    assert (vae / "config.json").is_file()
    image = VideoAutoencoder(image_config(model))
    load_ema(tmp_path / "autoencoder/images", image)
    assert image.latent_channels == 4
    assert (tmp_path / "autoencoder/images/metrics.jsonl").is_file()
    with pytest.raises(ValueError, match="residual=True"):
        replace(recipe.autoencoder, images=3)
