"""The latent video system: its folder, its determinism, what it holds, and that diffusers makes the same frames."""

import json
import shutil
import warnings
from dataclasses import replace

import pytest
import torch

from carrara.core.types import Keyframes, VideoShape
from carrara.diffusion.samplers import SAMPLERS
from carrara.systems.latent import Known, LatentVideo, Sampling
from carrara.systems.phases import to_bytes

SHAPE = VideoShape(5, 64, 64)
PROMPT = "a red ball bounces on the grass"
FEW = Sampling(steps=3, guidance=2.0, shift=2.0)


def test_a_folder_comes_back_as_it_was(small_folder, tmp_path):
    first = LatentVideo.load(small_folder)
    first.save(tmp_path / "again")
    second = LatentVideo.load(tmp_path / "again")
    assert second.defaults == first.defaults
    assert second.fingerprint == first.fingerprint
    for part in ("denoiser", "autoencoder", "text_encoder"):
        ours, theirs = (getattr(system, part).state_dict() for system in (first, second))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_seed_means_the_same_clip_whatever_the_batch(small_system):
    alone = small_system.sample([PROMPT], [7], SHAPE, FEW)
    again = small_system.sample([PROMPT], [7], SHAPE, FEW)
    together = small_system.sample(["a green frog", PROMPT], [1, 7], SHAPE, FEW)
    assert torch.equal(alone, again)
    frames = [to_bytes(small_system.autoencoder.decode(x)).int() for x in (alone, together[1:])]
    assert (frames[0] - frames[1]).abs().max() <= 2


def test_prompt_seed_and_guidance_matter(small_system):
    base = small_system.sample([PROMPT], [7], SHAPE, FEW)
    for other in (
        small_system.sample(["a green frog"], [7], SHAPE, FEW),
        small_system.sample([PROMPT], [8], SHAPE, FEW),
        small_system.sample([PROMPT], [7], SHAPE, replace(FEW, guidance=5.0)),
        small_system.sample([PROMPT], [7], SHAPE, FEW, negative="a green frog"),
    ):
        assert not torch.allclose(base, other)


def test_guidance_one_costs_one_evaluation_and_ignores_the_negative_prompt(small_system):
    off = replace(FEW, guidance=1.0)
    calls: list[int] = []
    plain = small_system.sample([PROMPT], [7], SHAPE, off, progress=lambda done, total: calls.append(done))
    assert calls == [1, 2, 3]
    assert torch.equal(plain, small_system.sample([PROMPT], [7], SHAPE, off, negative="a green frog"))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_runs_and_reports_its_evaluations(small_system, sampler):
    seen: list[tuple[int, int]] = []
    sampling = replace(FEW, sampler=sampler)
    latents = small_system.sample([PROMPT], [7], SHAPE, sampling, progress=lambda *at: seen.append(at))
    assert latents.isfinite().all()
    assert seen[-1][0] == seen[-1][1] == len(seen)


def test_a_known_beginning_is_kept_and_changes_the_rest(small_system):
    latent = SHAPE.latent(small_system.stride)
    known = torch.randn(1, small_system.latent_channels, latent.frames, latent.height, latent.width)
    mask = torch.zeros(1, latent.frames, latent.height, latent.width, dtype=torch.bool)
    mask[:, :1] = True
    made = small_system.sample([PROMPT], [7], SHAPE, FEW, known=Known(known, mask))
    assert torch.equal(made[:, :, :1], known[:, :, :1])
    assert not torch.allclose(made[:, :, 1:], small_system.sample([PROMPT], [7], SHAPE, FEW)[:, :, 1:])


def test_a_keyframe_changes_the_clip(small_system):
    frame = torch.randn(1, small_system.latent_channels, 1, 4, 4)
    keyframes = Keyframes(frame, torch.tensor([[1.0]]), torch.zeros(1, 1))
    with_frame = small_system.sample([PROMPT], [7], SHAPE, FEW, keyframes=keyframes)
    assert not torch.allclose(with_frame, small_system.sample([PROMPT], [7], SHAPE, FEW))


def test_streamed_decoding_equals_whole(small_system):
    latents = small_system.sample([PROMPT], [7], SHAPE, FEW)
    streamed = torch.cat(list(small_system.decode_chunks(latents)), dim=2)
    assert torch.allclose(streamed, small_system.autoencoder.decode(latents), atol=1e-5)


def test_decoding_that_is_given_up_leaves_gradients_on(small_system):
    chunks = small_system.decode_chunks(torch.zeros(1, small_system.latent_channels, 20, 8, 8))
    next(chunks)
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()
    chunks.close()
    assert torch.is_grad_enabled()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("prompt", [PROMPT, "a green frog &amp; a  red ball"])
def test_diffusers_runs_the_folder_with_its_defaults_to_the_same_frames(tmp_path, prompt):
    """WanPipeline's own defaults (50 steps, guidance 5, its scheduler as the folder configures it), at a small size."""
    diffusers = pytest.importorskip("diffusers")
    from tests.conftest import random_system

    random_system(sampling=Sampling(steps=50, guidance=5.0, shift=3.0)).save(tmp_path / "model")
    ours = LatentVideo.load(tmp_path / "model")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipeline = diffusers.WanPipeline.from_pretrained(tmp_path / "model", local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    latents = torch.randn(1, ours.latent_channels, 2, 4, 4, generator=torch.Generator().manual_seed(7))
    theirs = pipeline(prompt, height=64, width=64, num_frames=5, latents=latents, output_type="pt").frames
    frames = ours.autoencoder.decode(ours.sample([prompt], [7], SHAPE, ours.defaults.sampling))
    mine = (frames.clamp(-1, 1) + 1) / 2
    assert (mine.transpose(1, 2) - theirs).abs().max() <= 1 / 255


def test_public_folders_without_our_file_get_wans_defaults(small_folder, tmp_path):
    folder = shutil.copytree(small_folder, tmp_path / "foreign")
    (folder / "carrara.json").unlink()
    defaults = LatentVideo.load(folder).defaults
    assert (defaults.frames, defaults.width, defaults.height, defaults.fps) == (81, 832, 480, 16.0)
    assert defaults.shift == 2.0  # the folder's scheduler says so


def damage(folder, part):
    """Spoil one thing of a model folder; returns what the error must say."""
    weights = folder / "transformer/diffusion_pytorch_model.safetensors"
    if part == "cut":
        weights.write_bytes(weights.read_bytes()[:-100])
        return "damaged"
    if part == "missing tensor":
        from safetensors.torch import load_file, save_file

        tensors = load_file(weights)
        del tensors["blocks.1.attn1.to_q.weight"]
        save_file(tensors, weights)
        return "blocks.1.attn1.to_q.weight"
    if part == "shape":
        from safetensors.torch import load_file, save_file

        tensors = load_file(weights)
        tensors["proj_out.bias"] = torch.zeros(3)
        save_file(tensors, weights)
        return "proj_out.bias"
    if part == "index":
        (folder / "model_index.json").write_text("{ not json")
        return "not valid JSON"
    if part == "foreign":
        (folder / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}))
        return "StableDiffusionPipeline"
    if part == "no vae":
        shutil.rmtree(folder / "vae")
        return "no vae/"
    (folder / "transformer/config.json").write_text(json.dumps({"num_layer": 3}))
    return "num_layer"


@pytest.mark.parametrize("part", ["cut", "missing tensor", "shape", "index", "foreign", "no vae", "setting"])
def test_a_damaged_or_foreign_folder_is_one_clear_error(small_folder, tmp_path, part):
    folder = shutil.copytree(small_folder, tmp_path / "model")
    says = damage(folder, part)
    with pytest.raises(ValueError, match=says) as caught:
        LatentVideo.load(folder)
    assert "\n" not in str(caught.value)
