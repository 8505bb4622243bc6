"""Foreign folders in both layouts: recognised by what is in them, and every part is the one that was written."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from tests.systems.foreign import KINDS, parts, write_diffusers, write_original
from transformers import CLIPVisionModel

from carrara.autoencoders.video_weights import diffusers_names
from carrara.denoisers.dit_weights import DIFFUSERS
from carrara.systems.folder import read_folder, recognise
from carrara.systems.kinds import Parts

LAYOUTS = {"diffusers": write_diffusers, "original": write_original}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Makes a folder of a kind in a layout, once, and returns it with the parts that are in it."""
    root, made, written = tmp_path_factory.mktemp("foreign"), {}, set()

    def make(kind, layout):
        made.setdefault(kind, parts(kind, KINDS.index(kind)))
        folder = root / f"{kind}-{layout}"
        if folder not in written:
            LAYOUTS[layout](folder, kind, made[kind])
            written.add(folder)
        return folder, made[kind]

    return make


def under_their_names(table, module) -> dict[str, torch.Tensor]:
    return {table.to_theirs(name): value for name, value in module.state_dict().items()}


def same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_part_is_the_one_that_was_written(folders, kind, layout):
    folder, made = folders(kind, layout)
    found = recognise(folder)
    assert (found.layout, found.kind.task, found.foreign) == (layout, kind.split("-")[0], True)
    assert found.kind.experts == (2 if kind.endswith("experts") else 1)
    assert found.kind.expand_timesteps == (kind == "ti2v")
    loaded = found.parts(torch.float32)
    assert isinstance(loaded, Parts)
    assert same(under_their_names(DIFFUSERS, loaded.denoiser), made["transformer"].state_dict())
    assert (loaded.low_denoiser is None) == (made["transformer_2"] is None)
    if loaded.low_denoiser is not None:
        assert same(under_their_names(DIFFUSERS, loaded.low_denoiser), made["transformer_2"].state_dict())
    names = diffusers_names(loaded.autoencoder.config)
    assert same(under_their_names(names, loaded.autoencoder), made["vae"].state_dict())
    assert list(loaded.autoencoder.config.latents_std) == list(made["vae"].config.latents_std)
    text = {name: value for name, value in made["text_encoder"].state_dict().items() if "embed_tokens" not in name}
    assert same(loaded.text_encoder.state_dict(), text)
    assert (loaded.image_tower is None) == (kind not in ("i2v", "flf2v"))
    for module in (loaded.denoiser, loaded.autoencoder, loaded.text_encoder):
        assert not module.training
        assert not any(parameter.requires_grad or parameter.is_meta for parameter in module.parameters())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_image_tower_sees_what_transformers_shows_the_pipeline(folders, layout):
    folder, made = folders("i2v", layout)
    tower = recognise(folder).load("image_encoder", torch.float32)
    pixels = torch.randn(2, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    theirs: CLIPVisionModel = made["image_encoder"]
    expected = theirs(pixels, output_hidden_states=True).hidden_states[-2]
    torch.testing.assert_close(tower.read(pixels), expected, rtol=1e-5, atol=1e-6)
    assert tower(torch.zeros(1, 3, 50, 40)).shape == (1, 5, 160)


def test_image_encoders_of_older_files_are_read_too(folders, tmp_path):
    """Those held the network under `vision_model`, and a count of its positions."""
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(folders("i2v", "diffusers")[0], tmp_path / "older")
    path = folder / "image_encoder/model.safetensors"
    tensors = {f"vision_model.{name}": value for name, value in load_file(path).items()}
    tensors["vision_model.embeddings.position_ids"] = torch.arange(5)[None]
    save_file(tensors, path)
    again = recognise(folder).load("image_encoder", torch.float32)
    before = recognise(folders("i2v", "diffusers")[0]).load("image_encoder", torch.float32)
    assert same(again.state_dict(), before.state_dict())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_foreign_model_is_loaded_as_it_was_published(folders, layout):
    """Matrices in bfloat16, the autoencoder in float32; what is computed in float32 is kept as precise as stored."""
    loaded = recognise(folders("ti2v", layout)[0]).parts()
    assert loaded.denoiser.blocks[0].mlp.rise.weight.dtype == torch.bfloat16
    assert loaded.denoiser.blocks[0].modulation.dtype == torch.float32
    assert loaded.denoiser.level.modulation.weight.dtype == torch.float32
    assert loaded.text_encoder.shared.weight.dtype == torch.bfloat16
    assert {parameter.dtype for parameter in loaded.autoencoder.parameters()} == {torch.float32}


def test_defaults_are_those_of_the_kind_on_the_grid_of_the_layout(folders):
    theirs = recognise(folders("t2v-experts", "diffusers")[0])
    assert (theirs.defaults.sampling.grid, theirs.defaults.shift) == ("diffusers-unipc", 5.0)  # its scheduler's
    assert theirs.kind.boundary == 0.875
    original = recognise(folders("i2v-experts", "original")[0])
    assert (original.defaults.sampling.grid, original.defaults.shift) == ("wan", original.kind.shift)
    assert original.kind.boundary == 0.9
    assert original.defaults.negative == ""  # a prompt of the released models says nothing to another


def test_a_fingerprint_knows_the_weights(folders, tmp_path):
    folder = shutil.copytree(folders("t2v", "original")[0], tmp_path / "model")
    before = recognise(folder).fingerprint()
    assert recognise(folders("t2v", "original")[0]).fingerprint() == before
    torch.save(parts("t2v", 99)["vae"].state_dict(), folder / "Wan2.1_VAE.pth")
    assert recognise(folder).fingerprint() != before


def test_text_to_video_runs_from_both_layouts_to_the_same_clip(folders):
    from dataclasses import replace

    from carrara.core.types import VideoShape

    systems = [read_folder(folders("t2v", layout)[0], torch.float32) for layout in LAYOUTS]
    sampling = replace(systems[0].defaults.sampling, steps=2)
    shape = VideoShape(5, 16, 32)
    clips = [system.sample(["two cats"], [3], shape, sampling, "a frog") for system in systems]
    assert torch.equal(*clips)
    assert clips[0].isfinite().all()


def test_tensors_that_no_layer_reads_are_passed_over(folders, tmp_path):
    """Early image-to-video files hold a norm per block that was never used."""
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(folders("i2v", "diffusers")[0], tmp_path / "early")
    path = sorted((folder / "transformer").glob("*.safetensors"))[0]
    save_file({**load_file(path), "blocks.0.attn2.norm_added_q.weight": torch.ones(24)}, path)
    recognise(folder).networks["transformer"].check()
    save_file({**load_file(path), "blocks.0.attn2.norm_added_z.weight": torch.ones(24)}, path)
    with pytest.raises(ValueError, match=r"unknown tensor 'blocks\.0\.attn2\.norm_added_z\.weight'"):
        recognise(folder).networks["transformer"].check()


def test_our_own_folders_stay_in_full_precision(small_folder):
    found = recognise(small_folder)
    assert not found.foreign
    assert str(found.kind) == "Carrara T2V (a size of its own)"
    assert found.parts().denoiser.head.weight.dtype == torch.float32
    assert json.loads((small_folder / "carrara.json").read_text())["defaults"]["frames"] == found.defaults.frames


@pytest.mark.parametrize("kind", ["t2v-experts", "i2v-experts"])
def test_two_experts_are_written_as_diffusers_reads_them(folders, tmp_path, kind):
    import warnings

    from diffusers import DiffusionPipeline

    system = read_folder(folders(kind, "original")[0], torch.float32)
    system.save(tmp_path / "model", torch.float32)
    again = recognise(tmp_path / "model")
    assert (again.kind.boundary, again.kind.task, again.foreign) == (system.boundary, kind.split("-")[0], False)
    assert same(again.parts().low_denoiser.state_dict(), system.low_denoiser.state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipeline = DiffusionPipeline.from_pretrained(tmp_path / "model", local_files_only=True)
    assert same(pipeline.transformer_2.state_dict(), folders(kind, "original")[1]["transformer_2"].state_dict())
    assert pipeline.config.boundary_ratio == system.boundary


def test_an_image_tower_is_written_as_it_was_read(folders, tmp_path):
    system = read_folder(folders("i2v", "original")[0], torch.float32)
    system.save(tmp_path / "model", torch.float32)
    again = recognise(tmp_path / "model")
    assert again.kind.image_tower
    assert same(again.load("image_encoder").state_dict(), system.image_tower.state_dict())
