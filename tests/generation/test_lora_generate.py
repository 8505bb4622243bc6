"""Clips by a model with adapters: the manifest names them, they alone make the clip again, mistakes are one line."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from tests.systems.lora_fixtures import drawn_terms

from carrara.cli import run as cli
from carrara.core.media import read_video
from carrara.evaluation import suite
from carrara.generation.command import generate
from carrara.generation.explain_command import explain
from carrara.generation.lora_command import lora
from carrara.generation.manifest import read_manifest
from carrara.generation.run import load
from carrara.systems.latent import LatentVideo
from carrara.systems.lora_export import write_adapter
from carrara.systems.lora_files import read_adapter

PROMPT = "a red ball"


@pytest.fixture(scope="module")
def adapters(tiny_folder, tmp_path_factory) -> tuple[Path, Path]:
    folder, system = tmp_path_factory.mktemp("adapters"), LatentVideo.load(tiny_folder)
    base = {"base": {"name": "tiny", "fingerprint": system.fingerprint}, "words": ["teal"]}
    write_adapter(drawn_terms(system), folder / "one", base)
    write_adapter(
        drawn_terms(system, ("cross_attention.*",), rank=3), folder / "two", {"base": {"fingerprint": "other"}}
    )
    return folder / "one", folder / "two"


def made(model: Path, output: Path, *options: str) -> torch.Tensor:
    assert generate([PROMPT, "--model", str(model), "--seed", "3", "-o", str(output), *options]) == 0
    return read_video(output)[0]


def test_a_clip_names_its_adapters_and_is_made_again_by_them(tiny_folder, adapters, tmp_path, capsys):
    one, two = map(str, adapters)
    plain = made(tiny_folder, tmp_path / "plain.mp4")
    clip = made(tiny_folder, tmp_path / "clip.mp4", "--lora", f"{one}:0.5", "--lora", two)
    assert not torch.equal(clip, plain)
    assert "trained on other weights" in capsys.readouterr().err  # the second
    manifest = read_manifest(tmp_path / "clip.mp4")
    assert manifest.loras == ((one, 0.5, read_adapter(one).fingerprint), (two, 1.0, read_adapter(two).fingerprint))
    assert manifest.fingerprint == read_manifest(tmp_path / "plain.mp4").fingerprint
    assert "loras" not in read_manifest(tmp_path / "plain.mp4").to_json()
    assert generate(["--from", str(tmp_path / "clip.mp4"), "-o", str(tmp_path / "again.mp4")]) == 0
    assert (tmp_path / "again.mp4").read_bytes() == (tmp_path / "clip.mp4").read_bytes()


def test_what_is_explained_and_evaluated_wears_its_adapters(tiny_folder, adapters, tmp_path, monkeypatch):
    one, films, subjects = str(adapters[0]), [], []
    monkeypatch.setattr(suite, "evaluate", lambda subject, *_args, **_options: subjects.append(subject) or [])
    for index, worn in enumerate(([], ["--lora", f"{one}:0.5"])):
        folder = tmp_path / str(index)
        arguments = [PROMPT, "--model", str(tiny_folder), "--seed", "3", "-o", str(folder), *worn]
        assert explain(arguments) == 0
        films.append(read_video(folder / "a-red-ball-emerging.mp4")[0])
        assert cli(["evaluate", str(tiny_folder), "-o", str(folder), *worn]) == 0
        subjects[-1].generates([PROMPT], [3], [folder / "clip.mp4"])
    assert not torch.equal(*films)
    made_by = read_adapter(adapters[0]).fingerprint
    assert [subject.about["adapters"] for subject in subjects] == [[], [f"{one}:0.5, sha256 {made_by}"]]
    assert not torch.equal(*(read_video(tmp_path / name / "clip.mp4")[0] for name in "01"))


def test_a_clip_is_not_made_again_by_other_adapters(tiny_folder, adapters, tmp_path):
    one, two = map(str, adapters)
    made(tiny_folder, tmp_path / "clip.mp4", "--lora", f"{one}:0.5")
    moved = shutil.copytree(one, tmp_path / "moved")
    again = ["--from", str(tmp_path / "clip.mp4"), "-o", str(tmp_path / "again.mp4")]
    assert generate([*again, "--lora", f"{moved}:0.5"]) == 0
    for wrong in (f"{moved}:0.6", f"{two}:0.5"):
        with pytest.raises(ValueError, match=r"made with --lora .*one:0.5, .* give these very adapters and weights"):
            generate([*again, "--overwrite", "--lora", wrong])
    made(tiny_folder, tmp_path / "plain.mp4")
    with pytest.raises(ValueError, match="made with no adapter"):
        generate(["--from", str(tmp_path / "plain.mp4"), "-o", str(tmp_path / "x.mp4"), "--lora", one])


def test_words_that_were_taught_are_known(tiny_folder, adapters, tmp_path, capsys):
    arguments = [
        "a teal ball",
        "--model",
        str(tiny_folder),
        "--seed",
        "1",
        "--overwrite",
        "-o",
        str(tmp_path / "a.mp4"),
    ]
    generate(arguments)
    assert "has never seen 'teal'" in capsys.readouterr().err
    generate([*arguments, "--lora", str(adapters[0])])
    assert not capsys.readouterr().err


def test_mistakes_are_refused_before_the_model_is_loaded(tiny_folder, tmp_path):
    for wrong, message in {
        "nowhere": "no such adapter",
        f"{tiny_folder}:much": "is no weight; expected FOLDER:NUMBER",
        str(tiny_folder): "no adapter here",
    }.items():
        with pytest.raises(ValueError, match=message):
            made(tiny_folder, tmp_path / "clip.mp4", "--lora", wrong)
    assert not list(tmp_path.iterdir())


def test_merged_converted_and_explained(tiny_folder, adapters, tmp_path, capsys):
    one = str(adapters[0])
    assert lora(["info", one]) == 0
    said = capsys.readouterr().out
    assert "rank 2, alpha / rank 1.5" in said
    assert "taught        teal" in said
    assert lora(["convert", one, "-o", str(tmp_path / "peft"), "--layout", "peft"]) == 0
    assert lora(["merge", f"{one}:0.5", "--model", str(tiny_folder), "-o", str(tmp_path / "merged")]) == 0
    clips = [
        made(tiny_folder, tmp_path / "a.mp4", "--lora", f"{one}:0.5"),
        made(tiny_folder, tmp_path / "b.mp4", "--lora", f"{tmp_path / 'peft'}:0.5"),
        made(tmp_path / "merged", tmp_path / "c.mp4"),
    ]
    assert torch.equal(clips[0], clips[1])
    assert (clips[0].float() - clips[2].float()).abs().mean() < 2  # weights are rounded to the float16 of the folder
    with pytest.raises(ValueError, match="is there already"):
        lora(["convert", one, "-o", str(tmp_path / "peft")])


def test_the_command_line_knows_the_command(capsys):
    assert cli(["lora", "--help"]) == 0
    assert "merge ADAPTER" in capsys.readouterr().out
    assert cli(["lora", "marge"]) == 2
    assert "did you mean merge?" in capsys.readouterr().err


def test_models_of_pixels_take_no_adapters(adapters):
    from carrara.generation.adapters import put_on, read_loras

    with pytest.raises(ValueError, match="models of this kind take no adapters"):
        put_on(object(), read_loras([str(adapters[0])]))  # type: ignore[arg-type]


def test_from_python(tiny_folder, adapters):
    frames = [load(tiny_folder, loras=loras).generate(PROMPT, seed=1).frames for loras in ((), [str(adapters[0])])]
    assert not torch.equal(*frames)
