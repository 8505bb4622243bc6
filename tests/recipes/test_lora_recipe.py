"""The recipe of an adapter: it alone learns, resumes to the bit, takes what it should and refuses the rest."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from einops import rearrange
from safetensors.torch import load_file
from tests.data.prepared_folder import Clip, write_prepared
from tests.systems.wan_fixtures import carrara_system, random_pipeline

from carrara.core.types import VideoShape
from carrara.data.latents import LatentBatch, LatentCache, write_latents
from carrara.data.pond.sampling import SINGLES
from carrara.recipes import RECIPES
from carrara.recipes.clips_autoencoder import encoder_fingerprint
from carrara.recipes.lora import LoRA, lora
from carrara.recipes.lora_clips import LatentClips
from carrara.recipes.pond_data import PixelSource, encode_clips
from carrara.systems.latent import LatentVideo, Sampling
from carrara.systems.lora import fresh_terms
from carrara.systems.lora_files import read_adapter
from carrara.systems.lora_phase import LoRAPhase, RememberedText
from carrara.systems.phases import CaptionedLatents, to_unit
from carrara.training.config import TrainConfig
from carrara.training.loop import train

TRAIN = TrainConfig(
    steps=6, warmup=1, learning_rate=2e-2, precision="float32", ema=0.5, log_every=1, validate_every=3, picture_every=0,
    checkpoint_every=2, checkpoint_every_minutes=0, prefetch=False, weight_decay=0.0,
)  # fmt: skip


def write_cache(
    model: Path, folder: Path, count: int = 6, frames: int = 9, keyframes: bool = True, seed: int = 0
) -> Path:
    """Clips of one colour each, encoded by the model's autoencoder."""
    system, generator = LatentVideo.load(model), torch.Generator().manual_seed(seed)
    shades = torch.randint(0, 256, (count, 1, 1, 1, 3), generator=generator, dtype=torch.uint8)
    video = to_unit(shades.expand(count, frames, 16, 32, 3))

    def produce(start: int, stop: int):
        chosen = video[start:stop]
        records = [
            {"captions": [f"a ball {n}", f"the ball {n}"]} if n % 2 else {"caption": "a teal ball"}
            for n in range(start, stop)
        ]
        if not keyframes:
            yield LatentBatch(system.autoencoder.encode(chosen), records)
            return
        alone = system.autoencoder.encode(rearrange(chosen[:, :, [1, frames - 1]], "b c k h w -> (b k) c 1 h w"))
        alone = rearrange(alone, "(b k) c 1 h w -> b k c h w", k=2)
        yield LatentBatch(
            system.autoencoder.encode(chosen), records, alone, torch.tensor([[1, frames - 1]] * (stop - start))
        )

    about = {"frames": frames, "height": 16, "width": 32, "fps": 8.0}
    write_latents(folder, produce, count, encoder_fingerprint(model / "vae"), 4, torch.float32, about)
    return folder


@pytest.fixture(scope="module")
def cache(tiny_folder, tmp_path_factory) -> Path:
    return write_cache(tiny_folder, tmp_path_factory.mktemp("cache"))


@pytest.fixture
def recipe(tiny_folder, cache):
    return replace(
        lora(), train=TRAIN, model=str(tiny_folder), clips=(str(cache),), batch=4, validation=4, device="cpu"
    )


def test_only_the_adapter_learns_and_it_is_all_that_is_kept(recipe, tiny_folder, tmp_path):
    before = {path: path.read_bytes() for path in tiny_folder.rglob("*") if path.is_file()}
    phase, _ = recipe.phase(tmp_path / "again")
    base = {name: value.clone() for name, value in phase.system.denoiser.state_dict().items() if ".terms." not in name}
    model = recipe.run(tmp_path)
    assert {path: path.read_bytes() for path in tiny_folder.rglob("*") if path.is_file()} == before
    adapter = read_adapter(model)
    assert {"teal"} <= set(adapter.words)
    assert adapter.base == phase.system.fingerprint
    assert all(float(pair.up.abs().max()) > 0 for pair in adapter.parts["transformer"].values())
    trained = phase.module.state_dict()
    checkpoint = load_file(sorted((tmp_path / "lora/checkpoints").glob("*.safetensors"))[-1])
    kinds = {
        name.partition("/")[2].rpartition("/")[0] if name.startswith("optimizer/") else name.partition("/")[2]
        for name in checkpoint
    }
    assert kinds == set(trained)
    assert sum(v.numel() for n, v in checkpoint.items() if n.startswith("model/")) == sum(
        v.numel() for v in trained.values()
    )
    made = phase.system.denoiser.state_dict()
    assert all(torch.equal(made[name], value) for name, value in base.items())


def test_the_base_in_memory_is_untouched_by_training(recipe, tmp_path):
    phase, settings = recipe.phase(tmp_path)
    network = phase.system.denoiser
    base = {name: value.clone() for name, value in network.state_dict().items() if ".terms." not in name}
    train(phase, TRAIN, tmp_path / "lora", settings)
    made = network.state_dict()
    assert all(torch.equal(made[name], value) for name, value in base.items())
    assert not any(p.requires_grad for name, p in network.named_parameters() if ".terms." not in name)
    assert any(float(value.abs().max()) > 0 for name, value in made.items() if name.endswith(".up"))


def test_it_learns(recipe, tmp_path):
    longer = replace(recipe, train=replace(TRAIN, steps=40, validate_every=20), fields=recipe.fields.only(0))
    phase, _ = longer.phase(tmp_path / "before")
    before = phase.validate()["loss_mean"]
    longer.run(tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "lora/metrics.jsonl").read_text().splitlines()]
    after = [line["loss_mean"] for line in lines if "loss_mean" in line][-1]
    assert after < 0.8 * before


def test_a_resumed_run_is_the_uninterrupted_one_to_the_bit(recipe, tmp_path, monkeypatch):
    whole, steps, loss = recipe.run(tmp_path / "whole"), [], LoRAPhase.loss

    def cut(phase, batch, step, generator):
        steps.append(step)
        if len(steps) > 5:  # the last checkpoint is that of step 4
            raise RuntimeError("the machine went down")
        return loss(phase, batch, step, generator)

    with monkeypatch.context() as patch:
        patch.setattr(LoRAPhase, "loss", cut)
        with pytest.raises(RuntimeError, match="went down"):
            recipe.run(tmp_path / "cut")
    resumed = recipe.run(tmp_path / "cut")
    name = "pytorch_lora_weights.safetensors"
    assert (whole / name).read_bytes() == (resumed / name).read_bytes()
    with pytest.raises(ValueError, match=r"recipe\.lora\.rank=8, now it is 4"):
        replace(recipe, lora=LoRA(rank=4)).run(tmp_path / "cut")


def test_remembered_text_is_the_encoders_whatever_the_batch(tiny_system):
    encoder, asked = tiny_system.text_encoder, []
    kept = RememberedText(encoder)
    encoder.register_forward_pre_hook(lambda *given: asked.append(1))
    prompts = ["a red ball", "the pond", "a red ball", ""]
    ids, mask = tiny_system.tokenizer.encode(prompts)
    for _ in range(2):
        read = kept(ids, mask)
        assert len(asked) == 3
    wanted = encoder(ids, mask)
    assert torch.equal(read.lengths, wanted.lengths)
    torch.testing.assert_close(read.states, wanted.states)


def test_several_folders_take_turns(tiny_folder, cache, tmp_path):
    small = write_cache(tiny_folder, tmp_path / "small", count=2, frames=5, keyframes=False, seed=1)
    made_by = encoder_fingerprint(tiny_folder / "vae")
    caches = [[LatentCache.open(path, made_by)] for path in (cache, small)]
    for shares, wanted in (((), 6 / 4 / (6 / 4 + 2 / 6)), ((1.0, 3.0), 0.25)):
        clips = LatentClips(caches, 4, 0, shares)
        shapes = [clips(step).latents.shape for step in range(200)]
        assert set(shapes) == {(4, 4, 3, 2, 4), (6, 4, 2, 2, 4)}  # equal work
        assert abs(sum(shape[0] == 4 for shape in shapes) / 200 - wanted) < 0.02
        assert torch.equal(clips(7).latents, LatentClips(caches, 4, 0, shares)(7).latents)
        assert clips.shape == VideoShape(9, 16, 32)
        assert not clips.keyframes
    told = {caption for step in range(40) for caption in clips(step).captions}
    assert {"a ball 1", "the ball 1", "a teal ball"} <= told


def test_a_prepared_folder_is_encoded_and_a_resumed_run_finds_its_latents(recipe, tmp_path):
    """Clips of two shapes, images among them, one without a caption."""
    shapes = [(9, 16, 32)] * 4 + [(1, 16, 32)] * 2 + [(5, 32, 16)] * 2
    clips = [Clip(shape, number, None if number == 1 else "") for number, shape in enumerate(shapes)]
    write_prepared(tmp_path / "clips", clips)
    mine = replace(recipe, clips=(str(tmp_path / "clips"),))
    phase, settings = mine.phase(tmp_path / "run")
    told = {caption for step in range(60) for caption in phase.batch(step).captions}
    assert told == {clip.text or "" for clip in clips}
    assert {phase.batch(step).latents.shape[2:] for step in range(60)} == {(3, 2, 4), (1, 2, 4), (2, 4, 2)}
    model = mine.run(tmp_path / "run")
    assert "square" in read_adapter(model).words
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "run/latents").rglob("*.safetensors")}
    assert len(written) == 3
    assert mine.phase(tmp_path / "run")[1] == settings
    assert {path: path.stat().st_mtime_ns for path in written} == written
    write_prepared(tmp_path / "odd", [Clip((8, 16, 32), 0)])
    with pytest.raises(ValueError, match=r"cannot take its 1 clips of .*frames=8"):
        replace(recipe, clips=(str(tmp_path / "odd"),)).phase(tmp_path / "other")


def test_latents_of_the_pond_are_told_anew_at_every_visit(recipe, tiny_folder, tmp_path):
    """Such a cache has another fingerprint than the model's rounded autoencoder; it is known by what it encodes."""
    system, source = (
        LatentVideo.load(tiny_folder),
        PixelSource(VideoShape(9, 16, 32), 8.0, SINGLES, torch.device("cpu")),
    )
    encode_clips(tmp_path / "own", source, lambda: system.autoencoder, 0, 4, "as it was trained", 4)
    phase, _ = replace(recipe, clips=(str(tmp_path / "own"),)).phase(tmp_path / "run")
    told = [phase.batch(step).captions for step in range(8)]
    assert len({caption for captions in told for caption in captions}) > 8
    assert phase.batch(3).captions == told[3]


def test_two_experts_each_learn_at_their_levels():
    system = carrara_system(random_pipeline("t2v-a14b"))
    terms = fresh_terms(system, 2, 2.0, ["self_attention.*"], torch.Generator().manual_seed(0))
    latents = torch.randn(48, 4, 2, 4, 4)  # so many that some are at every level
    batch = CaptionedLatents(latents, ["a"] * 48, latents[:, :, :1], torch.zeros(48, 1))
    base = lora()
    phase = LoRAPhase(
        system, terms, lambda step: batch, batch, base.fields.only(0), Sampling(steps=1), ["a"], VideoShape(5, 32, 32)
    )
    phase.loss(batch, 0, torch.Generator().manual_seed(0))["loss"].backward()
    for part in ("transformer", "transformer_2"):
        assert all(float(term.up.grad.abs().max()) > 0 for term in terms[part].values())
        assert all(term.down.grad is not None for term in terms[part].values())
    assert all(p.grad is None for p in system.text_encoder.parameters())


def test_two_prepared_folders_of_one_name_are_refused_and_caches_are_not(recipe, tmp_path):
    for name in ("one", "two"):
        (tmp_path / name / "clips").mkdir(parents=True)
        (tmp_path / name / "clips/prepared.json").write_text("{}")
    folders = tuple(str(tmp_path / name / "clips") for name in ("one", "two"))
    with pytest.raises(ValueError, match=r"one/clips and .*two/clips: prepared folders of one name"):
        replace(recipe, clips=folders).phase(tmp_path / "run")
    again = Path(recipe.clips[0])
    other = tmp_path / "other" / again.name
    other.parent.mkdir()
    other.symlink_to(again)
    assert replace(recipe, clips=(str(again), str(other))).phase(tmp_path / "both")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"clips": ()}, "no clips: give --clips FOLDER"),
        ({"lora": LoRA(rank=0)}, "rank=0"),
        ({"lora": LoRA(rank=1000)}, "rank=1000"),
        ({"lora": LoRA(alpha=0.0)}, "alpha=0.0: expected a number above 0"),
        ({"lora": LoRA(alpha=math.nan)}, "alpha=nan"),
        ({"lora": LoRA(targets=("self_attn.w",))}, "no layer is called 'self_attn.w'; did you mean"),
        ({"lora": LoRA(targets=())}, "name the layers to adapt"),
        ({"clips": ("nowhere",)}, "nowhere: neither latents"),
        ({"model": "pomd"}, "unknown model 'pomd'"),
    ],
)
def test_mistakes_are_refused_before_anything_runs(changes, message, recipe, tmp_path):
    with pytest.raises(ValueError, match=message):
        replace(recipe, **changes).run(tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": replace(TRAIN, optimizer="muon")}, "adapters are trained by adamw"),
        ({"batch": 0}, "batch=0"),
        ({"caption_dropout": 1.0}, "caption_dropout=1.0"),
        ({"shares": (1.0, 2.0)}, "2 shares for 1 folders"),
        ({"shares": (0.0,)}, "each must be above 0"),
    ],
)
def test_settings_that_cannot_be_are_refused_at_once(changes, message, recipe):
    with pytest.raises(ValueError, match=message):
        replace(recipe, **changes)


def test_what_is_wrong_with_the_adapter_is_told_before_clips_are_encoded(recipe, tmp_path):
    data = write_prepared(tmp_path / "data", [Clip((5, 32, 32), 0, "a red ball")])
    wrong = replace(recipe, clips=(str(data),), lora=LoRA(targets=("self_attn.w",)))
    with pytest.raises(ValueError, match="no layer is called"):
        wrong.run(tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_latents_of_another_autoencoder_are_refused(recipe, small_folder, tmp_path):
    with pytest.raises(ValueError, match="made by another encoder"):
        replace(recipe, model=str(small_folder)).run(tmp_path / "run")


def test_the_command_line_knows_the_recipe():
    from carrara.cli.training import training_run

    made, folder = training_run(["lora", "--clips", "a", "b", "--lora.rank", "4", "--lora.targets", "to_q", "to_v"])
    assert RECIPES["lora"]() == lora()
    assert made.clips == ("a", "b")
    assert made.lora == LoRA(rank=4, targets=("to_q", "to_v"))
    assert folder == Path("runs/lora")
