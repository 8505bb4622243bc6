"""Running: the same request gives the same bytes, latents outlive a failed decode, and nothing false is written."""

from __future__ import annotations

import copy
import json
import os
import shlex
from dataclasses import replace

import pytest
import torch

import carrara
from carrara.core.media import EXTENSIONS, read_video
from carrara.generation.latents import LATENTS, read_latents, save_latents, window_file
from carrara.generation.manifest import Manifest, read_manifest
from carrara.generation.request import Request
from carrara.generation.run import GenerationError, Model, find_model, load

PROMPT = "a red ball bounces on the grass"


@pytest.fixture(scope="module")
def model(tiny_folder):
    return load(tiny_folder)


@pytest.fixture(scope="module")
def plan(model):
    return model.plan(Request(PROMPT, seed=5, model=model.name))


class Broken:
    """A real system, one method of which is replaced."""

    def __init__(self, system, **methods):
        self._system = system
        self.__dict__.update(methods)

    def __getattr__(self, name):
        return getattr(self._system, name)


def failing(system, error):
    def decode_more(latents, state=None):
        yield next(system.decode_more(latents, state))
        raise error

    return Broken(system, decode_more=decode_more)


def test_public_names(tiny_folder):
    assert carrara.load is load
    assert {"load", "generate", "Clip", "__version__"} <= set(dir(carrara))
    clip = carrara.generate(PROMPT, seed=1, model=str(tiny_folder))
    assert isinstance(clip, carrara.Clip)
    assert torch.equal(clip.frames, carrara.load(tiny_folder).generate(PROMPT, seed=1).frames)
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        carrara.lode  # noqa: B018


def test_a_clip_in_memory_and_a_clip_streamed_to_its_file_are_the_same_bytes(model, plan, tmp_path):
    clip = model.generate(PROMPT, seed=5)
    assert clip.frames.dtype == torch.uint8
    assert tuple(clip.frames.shape) == (9, 16, 32, 3)
    for extension in EXTENSIONS:
        clip.save(tmp_path / f"a{extension}")
        manifest = model.write(plan, tmp_path / f"b{extension}")
        assert manifest == clip.manifest
        assert (tmp_path / f"a{extension}").read_bytes() == (tmp_path / f"b{extension}").read_bytes()
        assert read_manifest(tmp_path / f"b{extension}") == clip.manifest
    assert sorted(os.listdir(tmp_path)) == sorted(f"{name}{extension}" for name in "ab" for extension in EXTENSIONS)
    assert f"data:video/mp4;base64,{'A' * 4}" in clip._repr_html_()


def test_seeds_and_settings_matter(model):
    frames = [
        model.generate(PROMPT, **settings).frames
        for settings in ({"seed": 1}, {"seed": 2}, {"seed": 1, "steps": 3}, {"seed": 1, "negative": "a pond"})
    ]
    for index, one in enumerate(frames):
        assert all(not torch.equal(one, other) for other in frames[:index])


def test_the_manifest_is_sufficient(model, plan, tmp_path):
    model.write(plan, tmp_path / "x.mp4")
    manifest = read_manifest(tmp_path / "x.mp4")
    assert manifest.software.threads == torch.get_num_threads()
    assert manifest.fingerprint == model.system.fingerprint
    assert manifest.differences(manifest.software) == []
    other = replace(manifest.software, torch="0.1", threads=99)
    assert manifest.differences(other) == [f"torch {torch.__version__} then, 0.1 here"]
    changed = Model(model.name, copy.copy(model.system))
    changed.system.defaults = replace(model.system.defaults, fps=3.0, frames=1, negative="a pond")
    again = changed.plan(Request.from_manifest(manifest))  # whatever the defaults are by now
    assert again == plan
    changed.write(again, tmp_path / "y.mp4")
    assert (tmp_path / "x.mp4").read_bytes() == (tmp_path / "y.mp4").read_bytes()


def test_manifests_are_read_strictly(model, plan):
    manifest = model.manifest(plan)
    assert Manifest.from_json(manifest.to_json(), "x") == manifest
    values = json.loads(manifest.to_json())
    with pytest.raises(ValueError, match="no setting 'sede'; did you mean seed"):
        Manifest.from_json(json.dumps({**values, "sede": 1}), "x.mp4")
    for text in ("{", "[]", json.dumps({key: values[key] for key in values if key != "seed"})):
        with pytest.raises(ValueError, match=r"x\.mp4"):
            Manifest.from_json(text, "x.mp4")


def test_other_weights_are_refused(model, plan):
    with pytest.raises(ValueError, match="--model FOLDER"):
        model.check_fingerprint(replace(model.manifest(plan), fingerprint="0" * 64), "x.mp4")


def test_a_failed_decode_keeps_the_latents_and_says_how_to_go_on(model, plan, tmp_path):
    path = tmp_path / "my clip.mp4"
    broken = Model(model.name, failing(model.system, MemoryError("no memory left")))
    with pytest.raises(GenerationError, match="no memory left") as caught:
        broken.write(plan, path)
    kept = tmp_path / f"my clip.mp4{LATENTS}"
    assert os.listdir(tmp_path) == [kept.name]
    words = shlex.split(str(caught.value).partition("go on with: ")[2])
    assert words == ["carrara", "generate", "--from", str(kept), "-o", str(path)]
    manifest = read_latents(kept)[1]
    assert model.write(model.plan(Request.from_manifest(manifest)), path, saved=kept) == manifest
    model.write(plan, tmp_path / "whole.mp4")
    assert path.read_bytes() == (tmp_path / "whole.mp4").read_bytes()


def test_latents_that_another_clip_of_that_name_has_left_are_not_taken(model, tmp_path):
    """A stop, then another seed that stops too: going on from the second must not show windows of the first."""
    one, two = (model.plan(Request(PROMPT, seed=seed, seconds=3.0, model=model.name)) for seed in (1, 2))
    assert len(one.timeline.windows) > 2
    path, kept = tmp_path / "x.mp4", tmp_path / f"x.mp4{LATENTS}"
    for plan, drawn in ((one, 3), (two, 1)):
        for number, window in enumerate(plan.timeline.windows[:drawn]):
            shape = plan.shape_of(window).latent(model.system.stride)
            size = (1, model.system.latent_channels, shape.frames, shape.height, shape.width)
            latents = torch.randn(size, generator=torch.Generator().manual_seed(number))
            save_latents(window_file(kept, number), latents, model.manifest(plan))
    begun = torch.Generator().manual_seed(0)
    first = read_latents(kept)[0]
    assert first.equal(torch.randn(first.shape, generator=begun))
    model.write(two, path, saved=kept)
    assert os.listdir(tmp_path) == [path.name]  # whatever any stop has left beside it
    save_latents(kept, first, model.manifest(two))
    model.write(two, tmp_path / "again.mp4", saved=kept)
    assert path.read_bytes() == (tmp_path / "again.mp4").read_bytes()
    assert kept.is_file()  # the user's, beside another file


def test_ctrl_c_leaves_nothing(model, plan, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        Model("x", failing(model.system, KeyboardInterrupt())).write(plan, tmp_path / "x.mp4")
    assert os.listdir(tmp_path) == []


def test_paths_are_checked_before_anything_is_computed(model, plan, tmp_path):
    def never(*_args):
        raise AssertionError("computed")

    lazy = Model("x", Broken(model.system, sample=never))
    (tmp_path / "x.mp4").touch()
    for name, said in (("x.mp4", "exists already"), ("x.avi", "cannot write .avi"), ("x.mp4/y.mp4", "not a folder")):
        with pytest.raises(ValueError, match=said):
            lazy.write(plan, tmp_path / name)


def test_noise_that_is_not_finite_is_an_error_that_names_the_weights(model, plan, tmp_path):
    system = copy.copy(model.system)
    system.denoiser = copy.deepcopy(system.denoiser)
    with torch.no_grad():
        system.denoiser.head.bias[0] = float("nan")
    with pytest.raises(GenerationError, match=r"not finite; the model is damaged: its transformer .* in head\.bias"):
        Model("x", system).write(plan, tmp_path / "x.mp4")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(("value", "said"), [(float("nan"), "decoder's output is not finite"), (-1.0, "the same")])
def test_frames_that_show_nothing_are_never_a_file(model, plan, tmp_path, value, said):
    def decode_more(latents, state=None):
        for chunk, after in model.system.decode_more(latents, state):
            yield torch.full_like(chunk, value), after

    blind = Model("x", Broken(model.system, decode_more=decode_more))
    with pytest.raises(GenerationError, match=said):
        blind.write(plan, tmp_path / "x.mp4")
    with pytest.raises(GenerationError, match=said):
        blind.generate(PROMPT, seed=1)
    assert os.listdir(tmp_path) == []


def test_latents_come_back_and_foreign_files_do_not(model, plan, tmp_path):
    manifest, latents = model.manifest(plan), torch.randn(1, 4, 3, 2, 4)
    save_latents(tmp_path / "x.safetensors", latents, manifest)
    read, back = read_latents(tmp_path / "x.safetensors")
    assert torch.equal(read, latents)
    assert back == manifest
    (tmp_path / "y.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="not a file of saved latents"):
        read_latents(tmp_path / "y.safetensors")


def test_models_are_found_by_name_or_folder(tiny_folder, tmp_path):
    assert find_model(tiny_folder) == tiny_folder
    with pytest.raises(ValueError, match="unknown model 'pomd'"):
        find_model("pomd")
    with pytest.raises(ValueError, match="no such model folder"):
        find_model(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"model_index\.json"):
        load(tmp_path)


def test_a_damaged_folder_is_one_line(tiny_folder, tmp_path):
    import shutil

    folder = tmp_path / "damaged"
    shutil.copytree(tiny_folder, folder)
    weights = folder / "transformer/diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ValueError, match="damaged") as caught:
        load(folder)
    assert "\n" not in str(caught.value)
    (folder / "transformer/config.json").write_text('{"num_layers": "many"}')
    with pytest.raises(ValueError, match=r"transformer|damaged"):
        load(folder)


def test_reading_a_clip_shows_what_was_written(model, plan, tmp_path):
    model.write(plan, tmp_path / "x.png")
    assert torch.equal(read_video(tmp_path / "x.png")[0], model.generate(PROMPT, seed=5).frames)
