"""The command line: one clear line for a mistake, the same bytes again, and nothing heavy before it is needed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from carrara.cli import run
from carrara.core.media import read_video
from carrara.generation.command import output_paths, parse_size
from carrara.generation.manifest import read_manifest
from carrara.generation.run import GenerationError
from carrara.systems.latent import LatentVideo


def test_help_imports_nothing_heavy():
    heavy = {"torch", "numpy", "av", "PIL", "transformers", "einops", "safetensors", "tqdm"}
    for args in (["--help"], ["generate", "--help"], ["data", "pond", "--help"]):
        code = f"import sys; from carrara.cli import run; assert run({args}) == 0; print(*({heavy} & set(sys.modules)))"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert "usage: carrara" in done.stdout
        assert done.stdout.splitlines()[-1] == ""
        assert done.stderr == ""


@pytest.mark.parametrize("command", ["generate", "explain", "evaluate", "systems", "info", "data pond", "data prepare"])
def test_help_says_defaults_only_where_there_are_any(command, capsys):
    assert run([*command.split(), "--help"]) == 0
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "(default: None)" not in shown
    assert "(default: False)" not in shown
    assert "(default: )" not in shown
    assert ("(default: " in shown) == (command != "generate")


def test_help_names_the_values_of_options_that_may_be_repeated(capsys):
    assert run(["generate", "--help"]) == 0
    said = capsys.readouterr().out
    assert "--prompt-at SECONDS TEXT" in said
    assert "--lora FOLDER[:WEIGHT]" in said


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["genrate"], "unknown command 'genrate'; did you mean generate?"),
        (["generate"], "no prompt; say what to show"),
        (["generate", "a", "--sed", "3"], "unknown option --sed; did you mean --seed"),
        (["generate", "a", "--seed", "x"], "--seed 'x': expected INT"),
        (["generate", "a", "--steps=2.5"], "--steps '2.5': expected INT"),
        (["generate", "a", "--guidance", "strong"], "--guidance 'strong': expected FLOAT"),
        (["generate", "a", "--fps", ""], "--fps '': expected FLOAT"),
        (["generate", "a", "--between", "b.mp4"], "--between 'b.mp4': expected FILE FILE; see"),
        (["generate", "a", "--between", "b", "c", "d"], "--between 'b', 'c', 'd': expected FILE FILE; see"),
        (["generate", "a", "--interval", "low", "1"], "--interval 'low', '1': expected LOW HIGH; see"),
        (["generate", "a", "--prompt-at", "x", "b"], "--prompt-at 'x', 'b': expected SECONDS TEXT; see"),
        (["generate", "-a red ball"], "'-a red ball' looks like an option: give a text that begins with - after --"),
        (["generate", "a", "-o", "n" * 300 + ".mp4"], "File name too long"),
        (["generate", "a", "-o", "/proc/x.mp4"], "cannot be written"),
        (["generate", "a", "-o", "/dev/full"], "/dev/full is a file, not a folder"),
        (["generate", "a", "-o", "/dev/null/x.mp4"], "is a file, not a folder"),
        (["generate", "a", "-o", ""], "--output is empty"),
        (["generate", "a", "--model", ""], "--model is empty"),
        (["generate", "--from", ""], "--from is empty"),
        (["generate", "a", "--size=-5x5"], "expected WIDTHxHEIGHT"),
        (["generate", "a", "-o"], "Missing value"),
        (["generate", "a", "-o", "x.mp5"], "did you mean .mp4?"),
        (["generate", "a", "b", "-o", "x.mp4"], "one file for 2 prompts"),
        (["generate", "a", "--size", "64"], "size='64': expected WIDTHxHEIGHT"),
        (["generate", "a", "--model", "nowhere"], "unknown model 'nowhere'"),
        (["generate", "--from", "none.mp4"], "none.mp4: no such file"),
        (["generate", "--from", "."], ".: is a folder, not a file"),
        (["generate", "--from", "n" * 300], "no such file"),
        (["generate", "--from", "none.mp4", "--seed", "1"], "leave out --seed"),
        (["generate", "--from", "none.mp4", "a"], "leave out the prompt"),
        (["data", "lake", "x"], "unknown data set 'lake'"),
        (["data", "pond"], "DIR is missing"),
        (["data", "pond", "x", "--clips", "ten"], "--clips 'ten': expected INT"),
        (["data", "pond", "x", "--seed", "-1"], "seed=-1: must be a whole number from 0"),
        (["data", "pond", "x", "--size", "9998x9998"], "frames of 9998x9998 are too many to hold; at most 5"),
        (["data", "pond", "x", "--frames", "0"], "0 frames of 128x128: a clip has at least one frame"),
        (["data", "pond", "x", "--split", "tain"], "Expected one of ('train', 'held_out')"),
        (["data", "pond", "/dev/null"], "is a file, not a folder"),
        (["info", "/nowhere/model"], "no such model folder"),
        (["info", "/dev"], "/dev: not a model folder, for it has no model_index.json"),
        (["info", ""], "the model's name is empty"),
        (["train", "pondd"], "unknown recipe 'pondd'; did you mean pond or pond-128?"),
        (["train", "pond-tiny", "-o"], "-o: needs a folder"),
        (["train", "pond-tiny", "-o", "/dev/null/x"], "/dev/null is a file, not a folder"),
        (["train", "pond-tiny", "-o", "/proc/x"], "/proc/x: cannot be written"),
        (["train", "pond-tiny", "--denoiser.train.stepz", "3"], "did you mean --denoiser.train.steps"),
        (["train", "pond-tiny", "--denoiser.train.steps", "-3"], "carrara: denoiser.train: steps=-3: must be more"),
        (["train", "pond-tiny", "--denoiser.train.learning-rate", "nan"], "learning_rate=nan"),
        (["train", "pond-tiny", "--denoiser.train.optimizer", "sgd"], "must be one of adamw, muon"),
        (["train", "pond-tiny", "--denoiser.sampling.sampler", "eular"], "did you mean euler?"),
        (["train", "pond-tiny", "--denoiser.model.heads", "0"], "heads=0: must be at least 1"),
        (["train", "pond-tiny", "--width", "33"], "width=33: must be a multiple of 16; nearest 32 or 48"),
        (["train", "pond-tiny", "--frames", "6"], "nearest 5 or 9"),
        (["train", "pond-tiny", "--device", "tpu"], "must be auto, cpu or cuda"),
        (["train", "pond-tiny", "--autoencoder.start", "nowhere"], "start='nowhere': no such training folder"),
        (["evaluate", "nowhere"], "unknown model 'nowhere'"),
        (["evaluate", "nowhere", "-o", "/dev/null"], "/dev/null is a file"),
        (["evaluate", "pond", "--lora", "nowhere"], "nowhere"),
        (["evaluate", "--clips", "x", "--shift", "3"], "--shift and --clips: videos are measured as they are"),
        (["evaluate", "--clips", "x", "--suite", "full"], "--suite and --clips: videos are measured as they are"),
        (["evaluate", "--clips", "x", "--seed", "7"], "--seed and --clips"),
        (
            ["generate", "a ball", "--frames", "33", "--window", "9"],
            "--frames and --window: frames are made in one pass",
        ),
        (["generate", "a ball", "--images", "--window", "9"], "--images makes one frame"),
        (["explain", "a ball", "--lora", "nowhere"], "nowhere"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(args, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(args) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("carrara: ")
    assert said in captured.err
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("args", [[], ["train"], ["data"]])
def test_a_command_alone_is_told_how_to_go_on(args, capsys):
    assert run(args) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("usage: carrara")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--frames", "10"], "nearest 9 or 13"),
        (["--size", "0x0"], "width=0"),
        (["--size", "160000x160000"], "what fits: 9 frames of"),
        (["--steps", "0"], "steps=0: must be a whole number from 1 to 1000"),
        (["--fps", "inf"], "fps=inf: must be a number from 1 to 120"),
        (["--guidance", "-1"], "guidance=-1.0: must be a number from 0 to 100"),
        (["--negative", "ball " * 40], "the negative prompt has 41 tokens"),
        (["--negative", "\udcff"], "holds bytes that are no text"),
        (["-o", "there.mp4/x.mp4"], "is a file, not a folder"),
        (["--size", "33x16"], "width=33"),
        (["--guidance", "nan"], "guidance=nan"),
        (["--fps", "60", "-o", "x.gif"], "at most 50"),
        (["--sampler", "unipcc"], "did you mean unipc?"),
        (["-o", "there.mp4"], "exists already; pass --overwrite"),
        (["-o", "out/x.mp4", "--seed", "-1"], "seed=-1"),
    ],
)
def test_mistakes_that_need_the_model(tiny_folder, options, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.mp4").touch()
    assert run(["generate", "a red ball", "--model", str(tiny_folder), *options]) == 2
    captured = capsys.readouterr()
    assert said in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""
    assert os.listdir(tmp_path) == ["there.mp4"]


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ("", "the prompt is empty; describe a scene"),
        (" \n\t", "the prompt is empty"),
        ("x" * 10_000, "the prompt has 10002 tokens; this model reads at most 32: shorten it"),
        ("a red \udcff ball", "holds bytes that are no text"),
    ],
)
def test_prompts_that_cannot_be_read(tiny_folder, prompt, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(["generate", "a red ball", prompt, "--model", str(tiny_folder)]) == 2  # the good one waits for the bad
    captured = capsys.readouterr()
    assert said in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""
    assert os.listdir(tmp_path) == []


def test_any_other_prompt_makes_a_clip_under_a_safe_name(tiny_folder, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    prompts = ["-o a red ball", "a red\nball", "größer 红 🐸", "../../a ball"]
    assert run(["generate", "--model", str(tiny_folder), "--seed", "1", "--", *prompts]) == 0
    names = ["o-a-red-ball", "a-red-ball", "größer-红", "a-ball"]
    assert [line.split("  ")[0] for line in capsys.readouterr().out.splitlines()] == [f"out/{n}.mp4" for n in names]
    assert [read_manifest(tmp_path / f"out/{name}.mp4").prompt for name in names] == prompts
    assert sorted(os.listdir(tmp_path / "out")) == sorted(f"{name}.mp4" for name in names)


def test_generate_and_generate_again(tiny_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    model = ["--model", str(tiny_folder)]
    assert run(["generate", "A red ball!", "a red ball", *model, "--seed", "3", "--steps", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[:2] for line in lines] == [
        ["out/a-red-ball.mp4", "seed 3"],
        ["out/a-red-ball-2.mp4", "seed 4"],
    ]
    assert run(["generate", "--from", "out/a-red-ball-2.mp4", "-o", "again.mp4"]) == 0
    assert (tmp_path / "again.mp4").read_bytes() == (tmp_path / "out/a-red-ball-2.mp4").read_bytes()
    assert run(["generate", "--from", "again.mp4", "-o", "clip.gif"]) == 0
    assert read_manifest(tmp_path / "clip.gif") == read_manifest(tmp_path / "again.mp4")


def test_a_sheet_is_written_beside_the_clip(tiny_folder, tmp_path, capsys):
    args = ["generate", "--model", str(tiny_folder), "-o", str(tmp_path / "x.mp4"), "--sheet", "--", "a red ball"]
    assert run(args) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / "x.png")
    clip, sheet = read_video(tmp_path / "x.mp4"), read_video(tmp_path / "x.png")
    assert clip[0].equal(sheet[0])
    assert clip[1:] == sheet[1:]
    assert run(args) == 2


def test_unknown_words_are_told_before_the_run(tiny_folder, tmp_path, capsys):
    args = ["generate", "a red dragon", "--model", str(tiny_folder), "-o", str(tmp_path / "x.mp4")]
    assert run(args) == 0
    assert "never seen 'dragon'" in capsys.readouterr().err


@pytest.mark.parametrize(("size", "lines"), [("32x16", 0), ("64x16", 0), ("48x32", 1)])
def test_a_size_far_from_the_models_own_is_told_once_and_made(tiny_folder, tmp_path, capsys, size, lines):
    args = ["generate", "a red ball", "a frog", "--model", str(tiny_folder), "--steps", "1", "--size", size]
    assert run([*args, "-o", f"{tmp_path}/"]) == 0
    assert capsys.readouterr().err.count("this model's own frames are 32x16") == lines
    assert len(os.listdir(tmp_path)) == 2


def test_in_python_nothing_is_said_of_sizes(tiny_folder, capsys):
    import carrara

    carrara.load(tiny_folder).generate("a red ball", size=(48, 32), steps=1, seed=1, progress=False)
    assert capsys.readouterr() == ("", "")


def test_other_weights_and_files_without_manifest_are_refused(tiny_folder, tiny_system, tmp_path, capsys):
    import copy

    import torch

    from carrara.core.media import write_video

    assert run(["generate", "a ball", "--model", str(tiny_folder), "-o", str(tmp_path / "x.mp4")]) == 0
    other = copy.copy(tiny_system)
    other.denoiser = copy.deepcopy(other.denoiser)
    with torch.no_grad():
        other.denoiser.head.bias.add_(1)
    other.save(tmp_path / "other")
    capsys.readouterr()
    assert run(["generate", "--from", str(tmp_path / "x.mp4"), "--model", str(tmp_path / "other")]) == 2
    assert "with weights" in capsys.readouterr().err
    write_video(tmp_path / "plain.mp4", torch.zeros(5, 16, 16, 3, dtype=torch.uint8), 16)
    assert run(["generate", "--from", str(tmp_path / "plain.mp4")]) == 2
    assert "carries no manifest" in capsys.readouterr().err


def test_saved_latents_are_decoded(tiny_folder, tmp_path, monkeypatch, capsys):
    whole, path = tmp_path / "whole.mp4", tmp_path / "x.mp4"
    args = ["generate", "a red ball", "--model", str(tiny_folder), "--seed", "1", "-o"]
    assert run([*args, str(whole)]) == 0
    with monkeypatch.context() as patch:

        def fails(*_args, **_kwargs):
            raise OSError("disk full")

        patch.setattr(LatentVideo, "decode_more", fails)
        capsys.readouterr()
        assert run([*args, str(path)]) == 1
    command = capsys.readouterr().err.strip().partition("go on with: carrara ")[2]
    assert run(command.split()) == 0
    assert path.read_bytes() == whole.read_bytes()


def test_failures_that_are_no_mistake_exit_1_in_one_line(tiny_folder, tmp_path, monkeypatch, capsys):
    def fails(*_args, **_kwargs):
        raise GenerationError("nothing\nto show")

    monkeypatch.setattr(LatentVideo, "sample", fails)
    assert run(["generate", "a ball", "--model", str(tiny_folder), "-o", str(tmp_path / "x.mp4")]) == 1
    assert capsys.readouterr().err == "carrara: nothing to show\n"


def test_ctrl_c_is_one_line_and_leaves_nothing(tiny_folder, tmp_path):
    """A real interrupt of a real run that would take minutes."""
    # A shell without a terminal starts what runs in its background with interrupts ignored, and children inherit that.
    heard = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    command = [sys.executable, "-c", f"{heard}; from carrara.cli import main; main()", "generate", "a red dragon"]
    options = ["--model", str(tiny_folder), "--steps", "1000", "--size", "256x256", "--frames", "41", "-o", "x.mp4"]
    process = subprocess.Popen([*command, *options], cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    assert "never seen 'dragon'" in process.stderr.readline()
    assert "own frames are 32x16" in process.stderr.readline()  # the last word before the run
    time.sleep(0.5)  # well into it
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said.strip() == "carrara: interrupted"
    assert os.listdir(tmp_path) == []


def test_ctrl_c_during_training_saves_and_says_how_to_go_on(tmp_path):
    """A real interrupt of a run that would take hours; the same command goes on from its checkpoint."""
    command = [sys.executable, "-m", "carrara", "train", "pond-tiny", "-o", "run"]
    command += ["--autoencoder.train.steps", "1000000"]
    for said in ("training from step 0 in run/autoencoder", "resuming after step"):
        process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
        assert process.stderr is not None
        assert said in process.stderr.readline()
        assert process.stderr.readline()  # the first steps are done
        process.send_signal(signal.SIGINT)
        _, rest = process.communicate(timeout=60)
        assert process.returncode == 130
        assert "run the same command again to resume" in rest.splitlines()[-1]
        assert "Traceback" not in rest
        found = sorted((tmp_path / "run/autoencoder/checkpoints").iterdir())
        assert found
        assert all(path.suffix == ".safetensors" for path in found)


def test_info_says_what_the_model_makes_and_knows(tiny_folder, capsys):
    assert run(["info", str(tiny_folder)]) == 0
    out = capsys.readouterr().out
    for said in ("9 frames of 32x16 at 8 fps", "multiples of 16x16, 4k+1 frames", "unipc, 2 steps", "frog, grass"):
        assert said in out


def test_paths_and_sizes(tmp_path):
    assert [str(path) for path in output_paths(["a b", "a/b"], None)] == ["out/a-b.mp4", "out/a-b-2.mp4"]
    assert output_paths(["a"], str(tmp_path)) == [tmp_path / "a.mp4"]
    assert output_paths(["a"], "new/", ".gif")[0].as_posix() == "new/a.gif"
    assert output_paths(["a"], "x.webp")[0].as_posix() == "x.webp"
    assert parse_size("128x96") == (128, 96)
    for wrong in ("128", "0x", "ax3", "1x2x3", "-1x3"):
        with pytest.raises(ValueError, match="WIDTHxHEIGHT"):
            parse_size(wrong)
