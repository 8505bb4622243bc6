"""Training on a prepared folder: every stage in small, from nothing and from finished models, resumed, and refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from tests.data.prepared_folder import Clip, mixed, write_prepared
from tests.systems.foreign import write_diffusers, write_original

from carrara.autoencoders.video import VideoAutoencoder
from carrara.cli import run
from carrara.core.types import VideoShape
from carrara.data.clip_latents import open_latents
from carrara.data.clip_pixels import ClipReader
from carrara.data.prepared import Prepared
from carrara.recipes import RECIPES, prepared_words
from carrara.recipes.clips import ClipsRecipe
from carrara.recipes.clips_autoencoder import ClipsAutoencoderPhase, encoder_fingerprint, open_autoencoder
from carrara.recipes.clips_data import LatentBatches, Split, ViewBatches, Views, encoding, without_actors
from carrara.recipes.clips_start import open_finished
from carrara.recipes.pond_data import train_pond_tokenizer
from carrara.systems.folder import write_autoencoder
from carrara.systems.latent import LatentVideo
from carrara.systems.phases import to_unit
from carrara.training.checkpoint import checkpoints
from carrara.training.loop import Stopped, train
from carrara.training.metrics import read_metrics


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_prepared(tmp_path_factory.mktemp("data") / "prepared", mixed())


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("run")
    return folder, recipe(data, held_out=0.2).run(folder)


def recipe(data: Path, steps: int = 2, **settings: object) -> ClipsRecipe:
    """The tiny recipe, shorter."""
    tiny = RECIPES["clips-tiny"]()
    plan = replace(tiny.denoiser.train, steps=steps, decay_share=0.0, picture_every=0, validate_every=0)
    return replace(
        tiny,
        data=str(data),
        autoencoder=replace(tiny.autoencoder, train=plan),
        denoiser=replace(tiny.denoiser, train=plan),
        **settings,
    )


def given(trained: tuple[Path, Path]) -> str:
    return str(trained[0] / "autoencoder/model")


def losses(folder: Path) -> list[float]:
    return [line["loss"] for line in read_metrics(folder / "metrics.jsonl") if line["kind"] == "train"]


def test_every_stage_leaves_what_the_next_needs_and_the_model_runs(trained):
    folder, model = trained
    assert sorted(path.name for path in folder.iterdir()) == ["autoencoder", "denoiser", "latents"]
    assert sorted(path.name for path in (folder / "latents").iterdir()) == [
        "1-frame-48x32",
        "5-frames-32x48",
        "9-frames-48x32",
    ]
    system = LatentVideo.load(model)
    defaults = system.defaults
    assert (defaults.frames, defaults.height, defaults.width, defaults.fps) == (9, 32, 48, 8.0)
    assert system.unknown_words("a red square number 1") == []
    assert system.sample(["a red square"], [1], VideoShape(5, 48, 32), defaults.sampling).isfinite().all()


def test_latents_are_normalised_per_channel(trained, data):
    folder, _ = trained
    caches = open_latents(Prepared(data), folder / "latents", encoder_fingerprint(folder / "autoencoder/model"))
    latents = torch.cat([cache[:].latents.float().transpose(0, 1).flatten(1) for cache in caches], dim=1)
    assert latents.mean(1).abs().max() < 0.35  # measured on the trained ones
    assert 0.5 < latents.std(1).min() < latents.std(1).max() < 1.6


def test_a_finished_run_is_not_trained_again(trained, data):
    folder, model = trained
    before = (model.parent / "metrics.jsonl").read_text()
    assert recipe(data, held_out=0.2).run(folder) == model
    after = (model.parent / "metrics.jsonl").read_text()
    assert [line for line in after.splitlines() if '"kind": "train"' in line] == [
        line for line in before.splitlines() if '"kind": "train"' in line
    ]


def test_a_run_that_is_interrupted_goes_on_as_if_it_had_not_been(trained, data, tmp_path, monkeypatch):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    made = recipe(data, 5, vae=given(trained))
    made = replace(made, denoiser=replace(made.denoiser, train=replace(made.denoiser.train, log_every=1)))
    made.run(whole)
    read = LatentBatches.piece

    def interrupted(self: LatentBatches, step: int, number: int, count: int):
        if step == 3:
            raise KeyboardInterrupt
        return read(self, step, number, count)

    with monkeypatch.context() as patch:
        patch.setattr(LatentBatches, "piece", interrupted)
        with pytest.raises(Stopped):
            made.run(parts)
    made.run(parts)
    assert losses(parts / "denoiser") == losses(whole / "denoiser")
    assert len(losses(whole / "denoiser")) == 5
    with pytest.raises(ValueError, match="batch"):
        replace(made, denoiser=replace(made.denoiser, batch=3)).run(parts)


def test_other_clips_or_another_autoencoder_do_not_continue_a_run(trained, data, tmp_path):
    recipe(data, 1, vae=given(trained)).run(tmp_path)
    other = write_prepared(tmp_path / "other", [Clip(clip.shape, clip.number + 1, clip.caption) for clip in mixed()])
    with pytest.raises(ValueError, match="of other clips than the prepared folder holds now"):
        recipe(other, 1, vae=given(trained)).run(tmp_path)
    with pytest.raises(ValueError, match="another encoder"):
        recipe(data, 1, vae=str(trained[1])).run(tmp_path)  # the model's folder holds it rounded


@pytest.fixture(scope="module")
def batches(trained: tuple[Path, Path], data: Path) -> LatentBatches:
    prepared, made = Prepared(data), recipe(data)
    caches = open_latents(prepared, trained[0] / "latents", encoder_fingerprint(Path(given(trained))))
    split = Split.of(prepared, 0, 0)
    stage = replace(made.denoiser, batch=4)
    mixture = replace(made, denoiser=stage).mixture(prepared, split, [1.0, 1.0, 1.0])
    return LatentBatches(caches, mixture, 0.5)


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_pieces_of_latents_are_the_batch_on_any_number_of_processes(batches, count):
    for step in range(12):
        whole = batches(step)
        pieces = [batches.piece(step, number, count) for number in range(count)]
        assert {rows for _, rows in pieces} == {4}
        assert torch.equal(torch.cat([piece.latents for piece, _ in pieces]), whole.latents)
        assert torch.equal(torch.cat([piece.keyframes for piece, _ in pieces]), whole.keyframes)
        assert torch.equal(torch.cat([piece.keyframe_times for piece, _ in pieces]), whole.keyframe_times)
        assert [text for piece, _ in pieces for text in piece.captions] == list(whole.captions)


def test_captions_are_left_out_in_their_share_and_belong_to_their_clips(batches, data):
    texts = {clip.text for clip in mixed()}
    seen = [(text, record["caption"]) for step in range(200) for text, record in _with_records(batches, step)]
    assert all(text in ("", caption) for text, caption in seen)
    assert {text for text, _ in seen if text} <= texts
    told = [text for text, caption in seen if caption]
    assert 0.42 < sum(not text for text in told) / len(told) < 0.58
    assert any(caption is None for _, caption in seen)


def test_shapes_take_turns_and_images_stand_for_their_own_keyframes(batches):
    shapes = {tuple(batches(step).latents.shape[2:]) for step in range(12)}
    assert shapes == {(5, 4, 6), (3, 6, 4), (1, 4, 6)}
    image = next(b for b in map(batches, range(12)) if b.latents.shape[2] == 1)
    assert torch.equal(image.keyframes, image.latents)
    assert not image.keyframe_times.any()


@pytest.mark.parametrize("count", [1, 2])
def test_views_are_windows_of_the_clips_and_the_same_in_pieces(data, count):
    prepared = Prepared(data)
    views = Views(pixels=15_000, side=16, frames=5, per_clip=3)
    with ClipReader(prepared) as reader:
        shown = ViewBatches(reader, Split.of(prepared, 0, 0), views, 3)
        sizes = set()
        for step in range(24):
            whole = shown(step)
            sizes.add(tuple(whole.video.shape[1:4]))
            if shown.piece(step, 0, 1)[1] >= count:
                parts = [shown.piece(step, number, count) for number in range(count)]
                assert torch.equal(torch.cat([part.video for part, _ in parts]), whole.video)
            places = whole.video[0, ..., 0].numel()
            still = whole.video.shape[1] == 1  # three of each clip, and images among pieces or whole clips
            assert len(whole.video) in {max(1, 15_000 // places), 3 * (15_000 // (3 * places)) if still else 0}
            assert not whole.actors.any()
        assert {(9, 32, 48), (5, 48, 32), (5, 16, 16), (1, 16, 16)} <= sizes
        assert sizes <= {(9, 32, 48), (5, 48, 32), (1, 32, 48), (5, 16, 16), (1, 16, 16)}
        again = ViewBatches(reader, Split.of(prepared, 0, 0), views, 3)
        assert torch.equal(again(17).video, shown(17).video)


def test_a_shard_that_goes_missing_in_a_run_keeps_the_last_checkpoint(tmp_path):
    data = write_prepared(tmp_path / "data", mixed())
    prepared, made = Prepared(data), recipe(data, steps=6)
    stage = replace(made.autoencoder, train=replace(made.autoencoder.train, checkpoint_every=1, log_every=1))
    split = Split.of(prepared, 0, 0)

    class Breaking(ViewBatches):
        def piece(self, step: int, number: int, count: int):
            if step == 3:
                for shard in data.glob("*.tar"):
                    shard.rename(shard.with_suffix(".away"))
            return super().piece(step, number, count)

    def phase(kind: type[ViewBatches], reader: ClipReader) -> ClipsAutoencoderPhase:
        shown = kind(reader, split, stage.views, 0)
        fixed = without_actors(prepared.frames(0)[None])
        return ClipsAutoencoderPhase(stage.begin(0)[0], shown, fixed, stage.loss, lambda: [prepared.frames(0)])

    def shards_back() -> None:
        for shard in data.glob("*.away"):
            shard.rename(shard.with_suffix(".tar"))

    with ClipReader(prepared, memory=0) as reader:
        with pytest.raises(ValueError, match=r"shard-0000\d\.tar: cannot be read.*a run goes on from its last"):
            train(phase(Breaking, reader), stage.train, tmp_path / "run")
        assert checkpoints(tmp_path / "run")[-1].stem == "step-00000003"
        shards_back()
        train(phase(ViewBatches, reader), stage.train, tmp_path / "run")
        train(phase(ViewBatches, reader), stage.train, tmp_path / "whole")
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")
    assert len(losses(tmp_path / "run")) == 6


def test_a_model_made_here_is_trained_on_with_its_own_autoencoder_and_tokenizer(tiny_folder, tmp_path):
    data = write_prepared(tmp_path / "data", [Clip((9, 16, 32), n) for n in range(3)] + [Clip((5, 32, 16), 3)])
    made = recipe(data, steps=2, start=str(tiny_folder), held_out=0.0)
    model = made.run(tmp_path / "run")
    before, after = LatentVideo.load(tiny_folder), LatentVideo.load(model)
    assert not (tmp_path / "run/autoencoder").exists()
    assert _same(before.autoencoder, after.autoencoder)
    assert after.tokenizer.backend.to_str() == before.tokenizer.backend.to_str()
    assert not _same(before.denoiser, after.denoiser)
    assert not _same(before.text_encoder, after.text_encoder)
    assert (after.defaults.frames, after.defaults.fps) == (9, 8.0)
    assert after.defaults.sampling == before.defaults.sampling
    still = replace(made, denoiser=replace(made.denoiser, train_text=False)).run(tmp_path / "still")
    assert _same(LatentVideo.load(still).text_encoder, before.text_encoder)
    with safe_open(checkpoints(still.parent)[-1], framework="pt") as file:
        assert not [name for name in file.keys() if "text_encoder" in name]  # noqa: SIM118


@pytest.mark.parametrize("write", [write_diffusers, write_original])
def test_a_foreign_model_is_trained_on_and_written_as_it_was_published(tmp_path, write):
    write(tmp_path / "wan", "t2v")
    data = write_prepared(tmp_path / "data", [Clip((9, 16, 32), n) for n in range(3)] + [Clip((1, 32, 16), 3)])
    made = recipe(data, steps=1, start=str(tmp_path / "wan"), held_out=0.0)
    model = made.run(tmp_path / "run")
    before, after = LatentVideo.load(tmp_path / "wan"), LatentVideo.load(model, torch.bfloat16)
    assert _same(before.text_encoder, after.text_encoder)
    assert not _same(before.denoiser, after.denoiser)
    finished = open_finished(str(tmp_path / "wan"), True, torch.device("cpu"))
    assert finished.foreign
    latents = open_latents(Prepared(data), tmp_path / "run/latents", finished.encoder, 0)
    assert [cache.keyframes for cache in latents] == [0, 0]
    original, _ = open_autoencoder(str(tmp_path / "wan"))
    assert _same(original, LatentVideo.load(model).autoencoder)


def test_a_model_of_other_sizes_is_told_before_anything_runs(data, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    recipe = RECIPES["pond-tiny"]()  # of stride 16 in patches of 2: sides are multiples of 32
    write_autoencoder(VideoAutoencoder(recipe.autoencoder.model), tmp_path / "vae", torch.float32)
    recipe.fresh_system(tmp_path / "vae", train_pond_tokenizer(), torch.device("cpu")).save(tmp_path / "coarse")
    assert run(["train", "clips-tiny", "-o", "run", "--data", str(data), "--start", "coarse"]) == 2
    assert "coarse cannot take its 6 clips of 9 frames of 48x32" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "data is not set: give a folder that `carrara data prepare` has written, as --data FOLDER"),
        ({"data": "nowhere"}, "nowhere: not a prepared folder"),
        ({"data": "prepared", "start": "nonsense"}, "unknown model 'nonsense'"),
        ({"data": "prepared", "start": "pond", "vae": "pond"}, "a finished model has its own autoencoder"),
        ({"data": "prepared", "held-out": "1"}, "held_out=1.0: must be a share from 0 to below 1"),
        ({"data": "prepared", "held-out": "0.99999"}, "leaves none of the 12 clips to train on"),
        ({"data": "prepared", "denoiser.weights.images": "-1"}, "images=-1.0: a weight is at least 0"),
        ({"data": "prepared", "autoencoder.views.side": "12"}, "side=12: must be a multiple of 8; nearest 8 or 16"),
        ({"data": "prepared", "autoencoder.views.frames": "4"}, "frames=4: this model makes 2k+1 frames"),
        ({"data": "prepared", "denoiser.train.pieces": "3"}, "denoiser.batch=2: gives 2 clips in some steps, which"),
        ({"data": "prepared", "autoencoder.train.pieces": "2"}, "autoencoder.views.pixels=20000: gives 1 clip in some"),
        ({"data": "prepared", "denoiser.caption-dropout": "1"}, "caption_dropout=1.0: expected a share"),
        ({"data": "videos"}, "not a prepared folder, for it has no prepared.json"),
    ],
)
def test_mistakes_are_told_before_anything_runs(data, settings, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prepared").symlink_to(data)
    (tmp_path / "videos").mkdir()
    arguments = [word for name, value in settings.items() for word in (f"--{name}", value)]
    assert run(["train", "clips-tiny", "-o", "run", *arguments]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_caption_that_is_too_long_is_told_before_anything_runs(tmp_path):
    data = write_prepared(tmp_path / "data", [Clip((5, 16, 16), 0, "red " * 600)])
    with pytest.raises(ValueError, match="the caption of clip 000000000 is too long: prompt of 601 tokens"):
        recipe(data).run(tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_tokenizer_whose_captions_are_checked_is_the_one_that_is_trained_with(trained, data, tmp_path, monkeypatch):
    made, train_words = [], prepared_words.train_tokenizer
    monkeypatch.setattr(prepared_words, "train_tokenizer", lambda *given: made.append(train_words(*given)) or made[-1])
    model = recipe(data, 1, vae=given(trained), held_out=0.2).run(tmp_path / "run")
    assert len(made) == 1
    assert LatentVideo.load(model).tokenizer.backend.to_str() == made[0].backend.to_str()


def test_clips_without_any_caption_train_and_it_is_said(trained, tmp_path, capsys):
    data = write_prepared(tmp_path / "data", [Clip((5, 16, 32), n, None) for n in range(2)])
    model = recipe(data, steps=1, vae=given(trained), held_out=0.0).run(tmp_path / "run")
    said = capsys.readouterr().out
    assert "no clip has a caption: the model learns to make clips, and nothing about prompts" in said
    assert "no source is held out: validation is on clips that are trained on" in said
    assert LatentVideo.load(model).known_words() == []


def test_an_autoencoder_begins_from_another(trained, data, tmp_path):
    alone = RECIPES["clips-autoencoder"]()
    made = recipe(data)
    still = replace(made.autoencoder.train, steps=1, learning_rate=1e-9)
    stage = replace(made.autoencoder, train=still, start=given(trained))
    folder = replace(alone, autoencoder=stage, data=str(data)).run(tmp_path)
    assert folder == tmp_path / "autoencoder/model"
    old, new = open_autoencoder(given(trained))[0], open_autoencoder(str(folder))[0]
    assert max(float((a - b).abs().max()) for a, b in zip(old.parameters(), new.parameters())) < 1e-4
    fresh = replace(alone, autoencoder=replace(stage, start=None), data=str(data)).run(tmp_path / "fresh")
    other = open_autoencoder(str(fresh))[0]
    assert max(float((a - b).abs().max()) for a, b in zip(old.parameters(), other.parameters())) > 1e-3


def test_what_is_held_out_is_not_trained_on_and_validated_on(data):
    prepared = Prepared(data)
    split = Split.of(prepared, 0.3, 1)
    assert split.held_out
    assert split.trained | split.held_out == set(range(len(prepared)))
    main = split.main_bucket(prepared)
    assert prepared.buckets[main].frames > 1
    held = [n for n in prepared.members[main] if n in split.held_out]
    assert split.validation(prepared, 99) == (held or sorted(split.trained & set(prepared.members[main])))
    everything = Split.of(prepared, 0, 1)
    assert len(everything.validation(prepared, 4)) == 4


@pytest.mark.parametrize("pixels", [1, 4 * 16 * 16 * 2, 10**9])
def test_a_clip_that_is_encoded_piece_by_piece_is_encoded_as_a_whole(tiny_system, pixels):
    video = torch.from_numpy(np.stack([Clip((17, 16, 16), n).frames() for n in range(2)]))
    encode = encoding(tiny_system.autoencoder, pixels, torch.device("cpu"))
    with torch.autocast("cpu", torch.bfloat16):
        whole = tiny_system.autoencoder.encode(to_unit(video))
    assert encode(video).shape == (2, 4, 5, 2, 2)
    assert torch.allclose(encode(video), whole, atol=0.02)  # products of bfloat16, summed in another order
    assert torch.allclose(encode(video[:, :1]), encode(video)[:, :, :1], atol=0.02)


def _with_records(batches: LatentBatches, step: int):
    drawn = batches.mixture.at(step)
    return zip(batches(step).captions, batches.caches[drawn.bucket][drawn.clips].records)


def _same(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    theirs = other.state_dict()
    return all(torch.equal(value.float(), theirs[name].float()) for name, value in one.state_dict().items())
