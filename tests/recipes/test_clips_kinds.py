"""Finished models of other kinds, trained on in full: one of two experts, and a first frame that is an image."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.data.prepared_folder import Clip, write_prepared
from tests.systems.foreign import write_diffusers, write_original

from carrara.core.types import VideoShape
from carrara.diffusion.fields import EQUAL, PREFIX, TimeDraw, TimesBetween, draw_field, draw_times
from carrara.recipes import RECIPES
from carrara.recipes.clips import ClipsRecipe
from carrara.recipes.clips_start import TEXT_OR_IMAGE, open_finished
from carrara.recipes.lora import LoRA, lora
from carrara.systems.folder import recognise
from carrara.systems.latent import LatentVideo, Sampling


def recipe(data: Path, start: Path, **stage: object) -> ClipsRecipe:
    """The tiny recipe from a finished model."""
    tiny = RECIPES["clips-tiny"]()
    plan = replace(tiny.denoiser.train, steps=2, decay_share=0.0, picture_every=2, validate_every=2)
    denoiser = replace(tiny.denoiser, train=plan, **stage)
    return replace(tiny, data=str(data), start=str(start), held_out=0.0, denoiser=denoiser)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    clips = [Clip((9, 32, 64), n) for n in range(3)] + [Clip((1, 64, 32), 3)]
    return write_prepared(tmp_path_factory.mktemp("data") / "prepared", clips)


@pytest.mark.parametrize(("expert", "write"), [("high", write_diffusers), ("low", write_original)])
def test_the_chosen_expert_learns_and_the_other_stays(data, tmp_path, expert, write):
    write(tmp_path / "wan", "t2v-experts")
    model = recipe(data, tmp_path / "wan", expert=expert).run(tmp_path / "run")
    before, after = (LatentVideo.load(path, torch.bfloat16) for path in (tmp_path / "wan", model))
    changed = {
        "high": not same(before.denoiser, after.denoiser),
        "low": not same(before.low_denoiser, after.low_denoiser),
    }
    assert changed == {"high": expert == "high", "low": expert == "low"}
    assert after.boundary == before.boundary == 0.875
    lines = [json.loads(line) for line in (model.parent / "metrics.jsonl").read_text().splitlines()]
    measured = {name for line in lines for name in line if name.startswith("loss_at_")}
    assert (
        measured == {"loss_at_0.9", "loss_at_0.98"} if expert == "high" else {"loss_at_0.1", "loss_at_0.7"} <= measured
    )
    assert after.sample(["a red ball"], [0], VideoShape(5, 16, 16), Sampling(steps=2)).isfinite().all()


def test_one_expert_after_the_other(data, tmp_path):
    """What was trained on is still a released model: its text encoder stays, and it is written as it was."""
    write_diffusers(tmp_path / "wan", "t2v-experts")
    high = recipe(data, tmp_path / "wan", expert="high").run(tmp_path / "high")
    assert recognise(high).foreign
    assert str(recognise(high).kind) == str(recognise(tmp_path / "wan").kind)
    both = recipe(data, high, expert="low").run(tmp_path / "both")
    first, second = (LatentVideo.load(path, torch.bfloat16) for path in (high, both))
    assert same(first.denoiser, second.denoiser)
    assert same(first.text_encoder, second.text_encoder)
    assert not same(first.low_denoiser, second.low_denoiser)
    assert second.defaults.sampling == LatentVideo.load(tmp_path / "wan").defaults.sampling


def test_an_expert_is_only_shown_levels_of_its_own(data, tmp_path):
    write_diffusers(tmp_path / "wan", "t2v-experts")
    for expert, other in (("high", "low_denoiser"), ("low", "denoiser")):
        made = recipe(data, tmp_path / "wan", expert=expert)
        finished = open_finished(str(tmp_path / "wan"), True, torch.device("cpu"), expert)
        getattr(finished.system, other).forward = None  # would fail if it were asked
        times = draw_times(4096, torch.Generator().manual_seed(0), finished.times(made.denoiser.times))
        low, high = (0.875, 1.0) if expert == "high" else (0.0, 0.875)
        assert low <= float(times.min()) < float(times.max()) < high
        assert (times.min() - low) < 0.01 > (high - times.max())
        x = torch.randn(2, 16, 1, 2, 2)
        for time in times[:4].tolist():
            finished.system.network(x, torch.full((2, 1), time), finished.system.read(["a", "red"]), None)


def test_a_model_of_text_or_an_image_learns_both_and_stays_one(data, tmp_path):
    write_diffusers(tmp_path / "wan", "ti2v")
    model = recipe(data, tmp_path / "wan").run(tmp_path / "run")
    before, after = (LatentVideo.load(path, torch.bfloat16) for path in (tmp_path / "wan", model))
    assert not same(before.denoiser, after.denoiser)
    assert recognise(model).kind.task == "ti2v"
    assert json.loads((model / "model_index.json").read_text())["expand_timesteps"] is True


def test_fields_of_text_or_an_image_know_nothing_or_the_first_frame_at_level_0():
    field = draw_field(64, 5, torch.Generator().manual_seed(1), TEXT_OR_IMAGE)
    known = field.levels == 0
    assert set(field.kinds.tolist()) == {EQUAL, PREFIX}
    assert int((field.kinds == PREFIX).sum()) == 32
    for kind, row, weights in zip(field.kinds.tolist(), known, field.weights):
        assert row.tolist() == [kind == PREFIX] + [False] * 4
        assert (weights == 0).tolist() == row.tolist()


def test_adapters_of_text_or_an_image(data, tmp_path):
    write_diffusers(tmp_path / "wan", "ti2v")
    made = replace(lora(), model=str(tmp_path / "wan"), clips=(str(data),), batch=2, lora=LoRA(2, 2.0), device="cpu")
    phase, _ = made.phase(tmp_path / "run")
    assert phase.mix == TEXT_OR_IMAGE
    phase.loss(phase.batch(0), 0, torch.Generator().manual_seed(0))["loss"].backward()
    assert any(float(term.up.grad.abs().max()) > 0 for term in phase.terms["transformer"].values())


@pytest.mark.parametrize(
    ("kind", "expert", "said"),
    [
        ("t2v-experts", "", "has two experts, .* --denoiser.expert high"),
        ("t2v", "low", "expert='low': .* has one transformer"),
        ("i2v-experts", "", "has two experts, .* --denoiser.expert high"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_anything_is_written(data, tmp_path, kind, expert, said):
    write_diffusers(tmp_path / "wan", kind)
    with pytest.raises(ValueError, match=said):
        recipe(data, tmp_path / "wan", expert=expert).run(tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_expert_of_nothing_is_refused(data):
    tiny = RECIPES["clips-tiny"]()
    with pytest.raises(ValueError, match="unknown expert 'hihg'"):
        replace(tiny.denoiser, expert="hihg")
    with pytest.raises(ValueError, match="only a finished model has experts"):
        replace(tiny, data=str(data), denoiser=replace(tiny.denoiser, expert="low"))


def test_times_between_are_those_that_lie_there():
    """Against the whole draw, of which all outside are thrown away, component by component."""
    for uniform in (0.0, 1.0):
        draw = TimeDraw(uniform, 0.5, 1.2)
        every = draw_times(200_000, torch.Generator().manual_seed(2), draw)
        kept = every[(every >= 0.3) & (every < 0.8)].sort().values
        inside = draw_times(len(kept), torch.Generator().manual_seed(3), TimesBetween(uniform, 0.5, 1.2, 0.3, 0.8))
        assert float((inside.sort().values - kept).abs().max()) < 0.005
    with pytest.raises(ValueError, match="expected 0 <= least < most <= 1"):
        TimesBetween(least=0.9, most=0.2)


def same(one: torch.nn.Module | None, other: torch.nn.Module | None) -> bool:
    assert one is not None
    assert other is not None
    both = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a.bfloat16(), b.bfloat16()) for a, b in both)  # as it is written
