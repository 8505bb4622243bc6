"""A refiner: what it is at first, what it reads, where it lies in a model's folder, and what is refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
import torch
from tests.systems.refiner_fixtures import refiner_of, with_refiner

from carrara.denoisers.unet_config import UNetConfig
from carrara.generation.conditions import Conditions
from carrara.generation.request import Request
from carrara.generation.run import Model, load
from carrara.systems.latent import LatentVideo
from carrara.systems.refiner import Refiner, RefinerConfig, unet_of

PROMPTS = ["a red ball bounces on the grass", "a green frog jumps over the pond"]


def clips(count: int = 2, frames: int = 5, height: int = 16, width: int = 32) -> torch.Tensor:
    return torch.rand(count, 3, frames, height, width, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_a_fresh_refiner_changes_nothing(tiny_system):
    system = with_refiner(tiny_system, seed=None)
    assert torch.equal(system.finish(clips(), PROMPTS), clips())


def test_it_reads_the_prompt_and_clips_of_a_batch_do_not_meet(tiny_system):
    system = with_refiner(tiny_system)
    both = system.finish(clips(), PROMPTS)
    assert both.abs().max() <= 1
    for row, prompt in enumerate(PROMPTS):
        torch.testing.assert_close(system.finish(clips()[row : row + 1], [prompt]), both[row : row + 1])
    assert not torch.allclose(system.finish(clips(), PROMPTS[::-1]), both)


def test_frames_of_a_clip_meet_and_a_single_frame_needs_none(tiny_system):
    system, clip = with_refiner(tiny_system), clips(1)
    other = clip.clone()
    other[:, :, -1] = 0
    whole, changed = (system.finish(each, PROMPTS[:1]) for each in (clip, other))
    assert not torch.allclose(whole[:, :, 0], changed[:, :, 0])
    assert system.finish(clip[:, :, :1], PROMPTS[:1]).shape == (1, 3, 1, 16, 32)


def test_a_numbered_one_knows_which_frame_is_which(tiny_system):
    system = with_refiner(tiny_system)
    assert system.refiner is not None
    clip = torch.rand(1, 3, 1, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    text, plain = system.read(["a red ball"]), system.refiner
    assert torch.equal(plain(clip, text, torch.tensor([5.0]))[0], plain(clip, text)[0])
    numbered = Refiner(replace(plain.config, numbered=16)).eval()
    numbered.load_state_dict(plain.state_dict())
    assert torch.equal(numbered(clip, text, torch.tensor([0.0]))[0], numbered(clip, text)[0])
    assert torch.equal(numbered(clip, text)[0], plain(clip, text)[0]), "the first frame is what it was"
    assert not torch.equal(numbered(clip, text, torch.tensor([5.0]))[0], numbered(clip, text)[0])
    assert torch.equal(numbered(clip, text, torch.tensor([21.0]))[0], numbered(clip, text, torch.tensor([5.0]))[0])
    assert torch.equal(numbered.refine(clip, text, first=-11), numbered.refine(clip, text, first=5))
    repeated, single = clip.expand(-1, -1, 3, -1, -1), numbered(clip, text)[0]
    assert not torch.equal(numbered(repeated, text)[0][:, :, 2:], single)


def test_without_one_clips_stay_as_they_are(tiny_system):
    video = clips()
    assert tiny_system.finish(video, PROMPTS) is video


def test_bfloat16_is_near_to_float32(tiny_system):
    system, clip = with_refiner(tiny_system), clips()
    whole = system.finish(clip, PROMPTS)
    system.precision = "bfloat16"
    half = system.finish(clip, PROMPTS)
    assert half.dtype == torch.float32
    assert 0 < (half - whole).abs().max() < 0.1


def test_a_model_folder_keeps_it(tiny_system, tmp_path):
    system = with_refiner(tiny_system)
    system.save(tmp_path / "with")
    tiny_system.save(tmp_path / "without")
    read, plain = LatentVideo.load(tmp_path / "with"), LatentVideo.load(tmp_path / "without")
    assert plain.refiner is None
    assert read.refiner is not None
    assert read.refiner.config == system.refiner.config
    torch.testing.assert_close(read.finish(clips(), PROMPTS), system.finish(clips(), PROMPTS), atol=5e-3, rtol=0)
    assert read.fingerprint != plain.fingerprint, "it decides what is made"
    half = LatentVideo.load(tmp_path / "with", torch.bfloat16)
    assert next(half.refiner.parameters()).dtype == torch.float32
    assert half.finish(clips().bfloat16(), PROMPTS).isfinite().all()
    index = json.loads((tmp_path / "with/model_index.json").read_text())
    assert index == json.loads((tmp_path / "without/model_index.json").read_text()), "diffusers reads the rest"


def test_generation_shows_what_it_draws(tiny_system, tmp_path):
    with_refiner(tiny_system).save(tmp_path)
    model = load(tmp_path)
    request = Request(PROMPTS[0], seed=3, model=str(tmp_path))
    plan = model.plan(request)
    shown = model.generate(request).frames
    latents = model.sample(plan)
    system = model.system
    decoded = torch.cat(list(system.decode_chunks(latents)), dim=2)
    wanted = system.finish(decoded, [PROMPTS[0]])
    made = ((wanted[0].clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 3, 0)
    assert (shown.float() - made.float()).abs().max() <= 1
    raw = ((decoded[0].clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 3, 0)
    assert (shown.float() - raw.float()).abs().mean() > 1
    assert torch.equal(model.decode(latents, model.manifest(plan)).frames, shown)


def test_windows_go_on_from_what_was_drawn_and_given_frames_stay(tiny_system, monkeypatch):
    """A refiner of a later window sees the frames before it as they are shown, in front of what is new."""
    system = with_refiner(tiny_system)
    seen: list[torch.Tensor] = []
    begins: list[int] = []
    finish = system.finish

    def watched(video, prompts, first=0):
        seen.append(video)
        begins.append(first)
        return finish(video, prompts, first)

    monkeypatch.setattr(system, "finish", watched)
    model = Model("tiny", system)
    whole = model.generate(Request(PROMPTS[0], seed=1, seconds=17 / 8)).frames
    assert len(whole) == 17
    assert len(seen) > 1
    first = seen[0].shape[2]
    context = ((seen[1][0] + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 3, 0)
    fits = [n for n in range(1, len(context)) if torch.equal(context[:n], whole[first - n : first])]
    assert fits, "the second window is shown to the refiner behind frames of the first"
    assert begins[0] == 0
    assert begins[1] == first - fits[-1], "and it is told which frame of the whole it begins with"

    given = torch.randint(256, (5, 16, 32, 3), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    longer = model.generate("", Conditions(extend=given), seed=1, seconds=13 / 8, progress=False).frames
    assert torch.equal(longer[:5], given)


def test_what_is_no_refiner_is_refused(tiny_system, tmp_path):
    with pytest.raises(ValueError, match=r"unet.channels=12: with fold=2 they are 16"):
        RefinerConfig(UNetConfig(channels=12, text="cross"))
    with pytest.raises(ValueError, match="fold=0"):
        RefinerConfig(fold=0)
    with pytest.raises(ValueError, match="numbered=-1"):
        RefinerConfig(numbered=-1)
    with pytest.raises(ValueError, match="to which it attends"):
        RefinerConfig(UNetConfig(channels=16, text="pooled"))
    with pytest.raises(ValueError, match="height"):
        refiner_of(16)(clips(1, 1, 18, 32), tiny_system.read(PROMPTS[:1]))
    assert unet_of(8, fold=3).channels == 36
    with_refiner(tiny_system).save(tmp_path / "model")
    spoiled = {"config.json": "no valid JSON", "model.safetensors": "weights"}
    for name in spoiled:
        shutil.copytree(tmp_path / "model", tmp_path / name)
        (tmp_path / name / "refiner" / name).unlink()
        with pytest.raises(ValueError, match="refiner"):
            LatentVideo.load(tmp_path / name)
    other = with_refiner(tiny_system)
    other.refiner = refiner_of(24)
    other.save(tmp_path / "other")
    with pytest.raises(ValueError, match="reads text states of width 24 and the text encoder's have 16"):
        LatentVideo.load(tmp_path / "other")
    deep = with_refiner(tiny_system)
    deep.refiner = Refiner(RefinerConfig(unet_of(16, dim=8, multipliers=(1, 1, 1, 1, 1))))
    deep.save(tmp_path / "deep")
    with pytest.raises(ValueError, match="takes sides in steps of 32 and the model makes them in steps of 16"):
        LatentVideo.load(tmp_path / "deep")
    config = tmp_path / "model/refiner/config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "fold": 4}))
    with pytest.raises(ValueError, match="fold=4"):
        LatentVideo.load(tmp_path / "model")
