"""Foreign folders that are incomplete, damaged or something else: one clear line, exit 2, nothing written."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.systems.foreign import parts, write_diffusers, write_original

from carrara.cli import run
from carrara.generation.loading import check_room


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> Path:
    """Sound folders, to be copied and spoiled: `d` of diffusers with two experts, `o` as published with an image."""
    root = tmp_path_factory.mktemp("sound")
    write_diffusers(root / "d", "t2v-experts", shards="40KB")
    write_original(root / "o", "i2v")
    return root


def change_json(path: Path, **values: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def change_pickle(path: Path, **tensors: object) -> None:
    content = {**torch.load(path, weights_only=True), **{name.replace("__", "."): v for name, v in tensors.items()}}
    torch.save({name: value for name, value in content.items() if value is not None}, path)


def cut(path: Path, share: float = 0.6) -> None:
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])


def one_shard(folder: Path) -> Path:
    return sorted(folder.glob("*-00002-of-*.safetensors"))[0]


def widen(path: Path, name: str) -> None:
    tensors = load_file(path)
    save_file({**tensors, name: torch.zeros(7, 3)}, path)


T5, CLIP = "models_t5_umt5-xxl-enc-bf16.pth", "models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth"

# What is spoiled, in which folder, and what the line must say.
DAMAGE: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "a shard": ("d", lambda f: one_shard(f / "transformer_2").unlink(), "shard diffusion_pytorch_model-00002-of-"),
    "a shard of text": ("d", lambda f: sorted((f / "text_encoder").glob("*.safetensors"))[0].unlink(), "is missing"),
    "a truncated shard": ("d", lambda f: cut(one_shard(f / "transformer")), "damaged or not a safetensors file"),
    "the second expert": ("d", lambda f: shutil.rmtree(f / "transformer_2"), "no transformer_2/ in it"),
    "the tokenizer": ("d", lambda f: shutil.rmtree(f / "tokenizer"), "no tokenizer/ in it"),
    "the boundary": ("d", lambda f: change_json(f / "model_index.json", boundary_ratio=None), "no boundary_ratio"),
    "the width": (
        "d",
        lambda f: change_json(f / "transformer/config.json", ffn_dim=40),
        "has shape (32,), the configuration wants (40,)",
    ),
    "another class": (
        "d",
        lambda f: change_json(f / "transformer/config.json", _class_name="WanVACETransformer3DModel"),
        "WanVACETransformer3DModel, an unknown architecture; expected a WanTransformer3DModel; supported: Wan 2.1",
    ),
    "another pipeline": (
        "d",
        lambda f: change_json(f / "model_index.json", _class_name="LTXPipeline"),
        "a LTXPipeline folder, an unknown architecture; Carrara runs WanPipeline",
    ),
    "another text encoder": (
        "d",
        lambda f: change_json(f / "text_encoder/config.json", model_type="t5"),
        "model_type='t5'; this encoder is 'umt5'",
    ),
    "channels": (
        "d",
        lambda f: [change_json(f / f"transformer{n}/config.json", in_channels=52) for n in ("", "_2")],
        "unknown architecture: a transformer of 52 input and 16 output channels",
    ),
    "an index": (
        "d",
        lambda f: (f / "vae/diffusion_pytorch_model.safetensors.index.json").write_text("{"),
        "not valid JSON",
    ),
    "a pointer": (
        "d",
        lambda f: one_shard(f / "vae").write_text("version https://git-lfs.github.com/spec/v1\nsize 3\n"),
        "git lfs pull",
    ),
    "a published shard": ("o", lambda f: one_shard(f).unlink(), "shard diffusion_pytorch_model-00002-of-00002"),
    "the autoencoder": ("o", lambda f: (f / "Wan2.1_VAE.pth").unlink(), "no Wan2.1_VAE.pth in it"),
    "the text encoder": ("o", lambda f: (f / T5).unlink(), f"no {T5} in it"),
    "the image tower": ("o", lambda f: (f / CLIP).unlink(), f"no {CLIP} in it"),
    "its tokenizer": ("o", lambda f: shutil.rmtree(f / "google"), "no google/umt5-xxl/ in it"),
    "a truncated pickle": ("o", lambda f: cut(f / T5), "damaged or not a file of torch.save"),
    "a program": (
        "o",
        lambda f: torch.save({"conv1.weight": torch.nn.Linear(2, 2)}, f / "Wan2.1_VAE.pth"),
        "refused, for it is not plain weights",
    ),
    "a tensor": ("o", lambda f: change_pickle(f / T5, norm__weight=None), "tensor 'norm.weight' is missing"),
    "a shape": (
        "o",
        lambda f: change_pickle(f / "Wan2.1_VAE.pth", conv1__bias=torch.zeros(5)),
        "tensor 'conv1.bias' has shape (5,), the configuration wants (32,)",
    ),
    "another file": ("o", lambda f: torch.save({"w": torch.zeros(2)}, f / CLIP), "holds no image tower"),
    "another autoencoder": (
        "o",
        lambda f: torch.save({"w": torch.zeros(2)}, f / "Wan2.1_VAE.pth"),
        "not a video autoencoder of Wan",
    ),
    "another task": (
        "o",
        lambda f: change_json(f / "config.json", model_type="vace"),
        "unknown architecture 'vace'; supported: Wan 2.1",
    ),
    "a wrong task": ("o", lambda f: change_json(f / "config.json", model_type="t2v"), "says 't2v', its 36 channels"),
    "a setting": ("o", lambda f: change_json(f / "config.json", num_head=3), "no setting 'num_head'; did you mean"),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_a_spoiled_folder_is_one_line_and_exit_2(what, sound, tmp_path, capsys, monkeypatch):
    layout, spoil, said = DAMAGE[what]
    monkeypatch.chdir(tmp_path)
    folder = shutil.copytree(sound / layout, tmp_path / "model")
    spoil(folder)
    capsys.readouterr()
    assert run(["generate", "--model", str(folder), "two cats", "-o", "clip.mp4"]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("carrara: ")
    assert captured.err.count("\n") == 1
    assert said in captured.err
    assert str(folder) in captured.err or "transformer config" in captured.err
    assert os.listdir(tmp_path) == ["model"]


def test_info_tells_what_is_there_and_then_what_is_missing(sound, tmp_path, capsys):
    folder = shutil.copytree(sound / "o", tmp_path / "model")
    assert run(["info", str(folder)]) == 0
    whole = capsys.readouterr().out
    assert "Wan 2.1 I2V (a size of its own) in the original layout" in whole
    assert "runs          yes" in whole
    (folder / T5).unlink()
    one_shard(folder).unlink()
    assert run(["info", str(folder)]) == 2
    captured = capsys.readouterr()
    assert captured.out.count("NOT USABLE") == 2
    assert f"text_encoder  NOT USABLE: {folder}: no {T5} in it" in captured.out
    assert "vae           0.2 M parameters" in captured.out
    assert captured.err.count("\n") == 1
    assert "shard diffusion_pytorch_model-00002-of-00002.safetensors is missing" in captured.err


def test_info_says_what_a_clip_takes(sound, capsys):
    assert run(["info", str(sound / "d")]) == 0
    out = capsys.readouterr().out
    assert "Wan 2.2 T2V" in out
    assert "two experts, the high-noise one from level 0.875 on" in out
    assert "81 frames of 832x480" in out
    assert "converted, the rest mapped from the files" in out


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("d/vae", "a part of a model; give the folder above"),
        (".", "not a model folder, for it has no model_index.json, and not Wan's own files either; give a model in it"),
        ("d/model_index.json", "unknown model"),
    ],
)
def test_a_folder_that_is_not_a_model_says_what_it_is(sound, place, said, capsys, monkeypatch):
    monkeypatch.chdir(sound)
    assert run(["info", str(sound / place) if place != "d/model_index.json" else "model_index"]) == 2
    assert said in capsys.readouterr().err


def test_a_name_where_no_hub_can_be_reached_is_one_line(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    assert run(["generate", "--model", "Wan-AI/Wan2.2-T2V-A14B", "two cats", "-o", str(tmp_path / "x.mp4")]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "hf download Wan-AI/Wan2.2-T2V-A14B --local-dir FOLDER" in err
    assert not list(tmp_path.iterdir())


def test_weights_that_do_not_fit_are_refused_before_they_are_read(sound):
    with pytest.raises(ValueError, match=r"its weights take 0\.0 GiB of memory .* 0\.0 GiB are free; free some"):
        check_room(sound / "o", available=1000)
    check_room(sound / "o", torch.float32, available=1000)  # as stored: mapped, and taking nothing


def test_parts_of_different_models_are_told(sound, tmp_path):
    from carrara.systems.folder import recognise

    folder = shutil.copytree(sound / "d", tmp_path / "model")
    shutil.rmtree(folder / "vae")
    made = parts("ti2v")["vae"]
    made.save_pretrained(folder / "vae")
    with pytest.raises(ValueError, match="makes 16 channels and the autoencoder takes 48; these parts do not belong"):
        recognise(folder).check()
