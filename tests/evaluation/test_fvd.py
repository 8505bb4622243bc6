"""Weights that users bring: what is read and what is refused; VideoMAE's features are those its classifier reads."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from carrara.cli import run
from carrara.core.media import write_video
from carrara.core.types import VideoShape
from carrara.data.pond.render import render
from carrara.data.pond.sampling import SINGLES, sample_scene
from carrara.evaluation.distribution import judged
from carrara.evaluation.distribution.frechet import frechet_distance, frechet_distance_estimate
from carrara.evaluation.distribution.fvd import load_extractor, load_i3d, read_state_dict
from carrara.evaluation.distribution.i3d import I3D, TABLE
from carrara.evaluation.prompts import draw_prompts
from carrara.evaluation.subject import Subject
from carrara.evaluation.suite import evaluate


@pytest.fixture(scope="module")
def released() -> dict[str, torch.Tensor]:
    """Random weights under the released names, with the counters that training leaves in batch norms."""
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, value in I3D().state_dict().items():
        drawn = torch.rand(value.shape, generator=generator)
        fan_in = max(1, value[0].numel()) if value.ndim > 1 else 1
        state[TABLE.to_theirs(name)] = (drawn - 0.4) / fan_in**0.5 if value.ndim > 1 else drawn * 0.1 + 0.5
    state["Conv3d_1a_7x7.bn.num_batches_tracked"] = torch.tensor(7)
    return state


def test_a_state_dict_fills_i3d_from_either_format(released, tmp_path):
    torch.save(released, tmp_path / "rgb.pt")
    save_file(released, tmp_path / "rgb.safetensors")
    for file in ("rgb.pt", "rgb.safetensors"):
        net = load_i3d(tmp_path / file)
        for name, value in net.state_dict().items():
            assert value.equal(released[TABLE.to_theirs(name)])


def test_i3d_features_of_clips(released, tmp_path):
    save_file(released, tmp_path / "rgb.safetensors")
    extract = load_extractor(tmp_path / "rgb.safetensors")
    extract.frames = 9  # as few as it takes
    clips = [np.full((9, 16, 16, 3), level, np.uint8) for level in (0, 255)]
    found = extract(clips)
    assert found.shape == (2, 400)
    assert found.dtype == np.float64
    assert np.isfinite(found).all()
    assert np.abs(found[0] - found[1]).max() > 1e-3
    with pytest.raises(ValueError, match="a clip of 8 frames"):
        extract([clips[0][:8]])


def test_programs_and_misfits_are_refused(released, tmp_path):
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), tmp_path / "program.pt")
    with pytest.raises(ValueError, match="TorchScript"):
        read_state_dict(tmp_path / "program.pt")
    torch.save(nn.Linear(2, 2), tmp_path / "pickle.pt")
    with pytest.raises(ValueError, match="safely"):
        read_state_dict(tmp_path / "pickle.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(ValueError, match="not a state dict"):
        read_state_dict(tmp_path / "list.pt")
    (tmp_path / "text.safetensors").write_text("hello")
    with pytest.raises(ValueError, match="safely"):
        read_state_dict(tmp_path / "text.safetensors")
    few = {name: value for name, value in released.items() if not name.startswith("logits")}
    for change, said in (
        (few, r"'logits.conv3d.bias' is missing \(2 in all\)"),
        ({**released, "Mixed_9z.b0.bn.bias": torch.zeros(1)}, "unknown tensor 'Mixed_9z"),
        ({**released, "logits.conv3d.bias": torch.zeros(600)}, r"shape \(600,\), I3D's is \(400,\)"),
    ):
        save_file(change, tmp_path / "bad.safetensors")
        with pytest.raises(ValueError, match=said):
            load_i3d(tmp_path / "bad.safetensors")
    with pytest.raises(ValueError, match="no such file"):
        load_extractor(tmp_path / "nothing")


@pytest.fixture(scope="module")
def videomae(tmp_path_factory):
    from transformers import VideoMAEConfig, VideoMAEForVideoClassification

    torch.manual_seed(0)
    config = VideoMAEConfig(
        image_size=32, patch_size=16, num_frames=4, hidden_size=24, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=32, num_labels=5,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("videomae")
    VideoMAEForVideoClassification(config).save_pretrained(folder)
    return folder


def test_videomae_features_are_what_its_classifier_reads(videomae):
    extract = load_extractor(videomae)
    clips = torch.randint(256, (3, 6, 40, 60, 3), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    found = extract(list(clips), batch=2)
    assert found.shape == (3, 24)
    with torch.no_grad():
        logits = extract.model(pixel_values=extract.pixels(clips[:, :4])).logits
        again = extract.model.classifier(torch.from_numpy(found).float())
    assert again.allclose(logits, atol=1e-5)


def test_videomae_pixels_are_those_of_its_own_processor(videomae):
    from transformers import VideoMAEImageProcessor

    sides = {"height": 32, "width": 32}
    processor = VideoMAEImageProcessor(
        size={"shortest_edge": 32}, crop_size=sides, image_mean=[0.4, 0.5, 0.6], image_std=[0.2, 0.3, 0.25]
    )
    processor.save_pretrained(videomae)
    clip = torch.randint(256, (4, 32, 48, 3), generator=torch.Generator().manual_seed(2), dtype=torch.uint8)
    wanted = processor([frame.numpy() for frame in clip], return_tensors="pt")["pixel_values"]
    extract = load_extractor(videomae)
    assert extract.pixels(clip[None]).allclose(wanted, atol=1e-5)


def test_other_folders_are_refused(videomae, tmp_path):
    from transformers import VideoMAEConfig, VideoMAEForPreTraining

    with pytest.raises(ValueError, match="no such file"):
        load_extractor(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(ValueError, match="expected 'videomae'"):
        load_extractor(tmp_path)
    config = VideoMAEConfig.from_pretrained(videomae)
    config.decoder_hidden_size, config.decoder_num_hidden_layers, config.decoder_intermediate_size = 16, 1, 16
    config.decoder_num_attention_heads = 2
    VideoMAEForPreTraining(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="not the pretraining checkpoint"):
        load_extractor(tmp_path)


class Drawn:
    """A network whose features are the clips themselves."""

    name, frames = "drawn", 1

    def __call__(self, clips, batch=4):
        return np.stack(list(clips))


def sets_around(draw, count, control_shift):
    shifts = {"clips": 0.7, "truth": 0.0, "frozen": control_shift, "shuffled": control_shift}
    return {name: list(draw.standard_normal((count, 5)) + shift) for name, shift in shifts.items()}


def test_its_distances_stand_beside_truth_and_controls_or_are_left_out():
    draw = np.random.default_rng(0)
    reference = draw.standard_normal((80, 5))
    for shift, rows in ((2.0, ["drawn Frechet distance", "drawn kernel distance"]), (0.0, [])):
        sets = sets_around(draw, 80, shift)
        found = {name: judged.judged(clips, reference, Drawn()) for name, clips in sets.items()}
        made = judged.section(found, Drawn(), {"clips": 80})
        assert [name for table in made.tables for name, _ in table.rows] == rows
        assert ("is left out: it does not tell frozen and shuffled" in made.about) == (not rows)
        for name, clips in sets.items():
            estimate = found[name]["Frechet distance"]
            assert estimate.value == frechet_distance(np.stack(clips), reference)
            assert estimate.low < estimate.value < estimate.high
        assert found["truth"]["kernel distance"].value < found["clips"]["kernel distance"].value
        assert made.plain()["data"]["about"] == {"features": "drawn", "frames": 1, "clips": 80}


def test_its_interval_needs_twenty_clips():
    few = np.random.default_rng(0).standard_normal((19, 3))
    with pytest.raises(ValueError, match="19 and 19 samples"):
        frechet_distance_estimate(few, few)


def test_a_network_by_path_is_asked_from_the_command_line(videomae, tmp_path, capsys):
    scenes = [sample_scene((8 << 40) + n, SINGLES) for n in range(60)]
    for number, video in enumerate(render(scenes, VideoShape(5, 32, 32)).video):
        home = tmp_path / ("clips" if number < 20 else "others")
        home.mkdir(exist_ok=True)
        write_video(home / f"{number:02d}.gif", video, 8)
    where = ["evaluate", "--clips", str(tmp_path / "clips"), "--against", str(tmp_path / "others"), "--only", "fvd"]
    assert run([*where, "-o", str(tmp_path / "out"), "--fvd", str(videomae)]) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text("utf-8"))["sections"]["fvd"]["data"]
    assert report["about"] == {"features": "VideoMAE", "frames": 4, "clips": 20, "reference": 20, "truth": 20}
    assert set(report["distances"]) == {"clips", "truth", "frozen", "shuffled"}
    assert report["distances"]["clips"]["Frechet distance"]["count"] == 20
    capsys.readouterr()
    without = ["--fvd", str(videomae), "--only", "consistency"]  # of two options --only, the later counts
    for options, said in (
        (["--fvd", str(tmp_path / "none")], "no such file or folder"),
        ([], "give I3D's weights"),
        (without, "only the part fvd uses it"),
    ):
        assert run([*where, "-o", str(tmp_path / "not"), *options]) == 2
        assert said in capsys.readouterr().err
        assert not (tmp_path / "not").exists()


def test_a_model_is_measured_on_it_beside_ceilings_and_controls(videomae, tmp_path):
    shape = VideoShape(5, 32, 32)
    scenes = {prompt.seed: prompt.scene for prompt in draw_prompts(20, 1000)}

    def make(prompts, seeds, paths):
        for video, path in zip(render([scenes[seed] for seed in seeds], shape).video, paths):
            write_video(path, video, 8, overwrite=True)

    subject = Subject(shape, 8.0, make)
    (made,) = evaluate(subject, tmp_path, only=("fvd",), seed=1000, fvd=videomae, progress=False)
    distances = made.data["distances"]
    assert set(distances) == {"model", "truth", "frozen", "shuffled"}
    assert distances["model"] == distances["truth"]  # the model shows the truth
    assert made.data["about"]["reference prompts' seed"] == 1001
    assert made.data["about"]["clips"] == 20
    with pytest.raises(ValueError, match="give I3D's weights"):
        evaluate(subject, tmp_path / "without", only=("fvd",), seed=1000, progress=False)
    with pytest.raises(ValueError, match="10 prompts: it needs at least 20"):
        evaluate(subject, tmp_path / "few", only=("fvd",), prompts=10, seed=1000, fvd=videomae, progress=False)
