"""Budgets of compute: what a step costs, how many a budget is, and that recipes spend what they are given."""

from __future__ import annotations

import json
import math
import random
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from carrara.cli import run
from carrara.diffusion.fields import FieldMix
from carrara.recipes import RECIPES
from carrara.recipes.compute import Cost, cost_of, for_flops
from carrara.recipes.make_a_video import PHASES, MakeAVideoRecipe
from carrara.recipes.pond import PondRecipe
from carrara.recipes.pond_data import ImageSteps
from carrara.recipes.trials import open_run
from carrara.training.config import TrainConfig

BUDGET = 6e9


class Linear:
    """A phase of one product."""

    def __init__(self) -> None:
        self.module = nn.Linear(5, 3, bias=False)

    def batch(self, step: int) -> torch.Tensor:
        return torch.ones(7, 5)

    def loss(self, batch: torch.Tensor, step: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
        return {"loss": self.module(batch).sum()}


def told(folder: Path) -> dict:
    return json.loads((folder / "compute.json").read_text())


def test_a_step_is_counted_forward_and_backward():
    assert cost_of(Linear()).step == 2 * (2 * 7 * 5 * 3)  # the product, and the gradient of its weights


@pytest.mark.parametrize("seed", range(5))
def test_a_budget_becomes_the_nearest_number_of_steps(seed):
    draw = random.Random(seed)
    stills = [draw.random() < 0.4 for _ in range(200)]
    for cost in (Cost(draw.randint(1, 50)), Cost(draw.randint(20, 50), draw.randint(1, 20), stills.__getitem__)):
        for flops in (1, 130, 999.5):
            steps = cost.within(flops)
            off = [abs(cost.of(n) - flops) for n in range(1, min(len(stills), 1100))]
            assert off[steps - 1] == min(off)
            assert cost.of(steps + 1) - cost.of(steps) in (cost.step, cost.image_step)
    config = TrainConfig(minutes=3, decay_at=7)
    assert for_flops(config, None, Cost(10)) == config
    assert for_flops(config, 104, Cost(10)) == TrainConfig(steps=10)


@pytest.mark.parametrize(
    ("name", "setting"),
    [("make-a-video-tiny", "--flops"), ("pond-tiny", "--denoiser.flops"), ("vdm-tiny", "--base.flops")],
)
def test_a_budget_of_nothing_is_refused_before_anything_is_written(name, setting, tmp_path, capsys):
    for wrong in ("0", "-1e9", "inf"):
        assert run(["train", name, "-o", str(tmp_path / "new"), f"{setting}={wrong}"]) == 2
        assert "must be above 0, such as 1e15" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_shares_must_make_up_the_whole(capsys):
    recipe = RECIPES["make-a-video"]()
    assert isinstance(recipe, MakeAVideoRecipe)
    assert sum(getattr(recipe, name).share for name in PHASES) == pytest.approx(1)
    with pytest.raises(ValueError, match=r"decoder\.share 0\.5, .* add up to 1\.18; they must add up to 1"):
        replace(recipe, decoder=replace(recipe.decoder, share=0.5))
    with pytest.raises(ValueError, match="share=0"):
        replace(recipe.decoder, share=0.0)


@pytest.fixture(scope="module")
def spent(tmp_path_factory):
    """A Make-A-Video that was given a budget."""
    folder = tmp_path_factory.mktemp("run")
    recipe = replace(RECIPES["make-a-video-tiny"](), flops=BUDGET)
    assert isinstance(recipe, MakeAVideoRecipe)
    return folder, recipe, recipe.run(folder)


def test_every_phase_spends_its_share_and_the_sum_is_told(spent):
    folder, recipe, model = spent
    assert model == folder / "space/model"
    for name in PHASES:
        each = told(folder / name)
        assert each["stage"] == name
        assert each["flops"] == each["steps"] * each["step_flops"]
        assert abs(each["flops"] - BUDGET * getattr(recipe, name).share) <= each["step_flops"] / 2
    whole = told(folder)
    assert whole["stages"] == [told(folder / name) for name in PHASES]
    assert whole["flops"] == sum(stage["flops"] for stage in whole["stages"])
    assert abs(whole["flops"] - BUDGET) <= sum(stage["step_flops"] for stage in whole["stages"]) / 2


def test_compute_and_shares_are_lengths_that_a_resumed_run_may_change(spent, tmp_path):
    folder, recipe, _ = spent
    shutil.copytree(folder, tmp_path / "run")
    for name in ("space_time", "space"):
        shutil.rmtree(tmp_path / "run" / name / "model")
    shutil.rmtree(tmp_path / "run" / "space" / "checkpoints")
    (tmp_path / "run/contrastive/compute.json").unlink()  # as where phases were trained before they were counted
    longer = replace(
        recipe,
        flops=1.5 * BUDGET,
        decoder=replace(recipe.decoder, share=0.2),
        space=replace(recipe.space, share=0.1785),
    )
    longer.run(tmp_path / "run")
    assert told(tmp_path / "run/contrastive") == told(folder / "contrastive")
    assert told(tmp_path / "run/space_time") == told(folder / "space_time")  # its decay was over
    space = told(tmp_path / "run/space")
    assert abs(space["flops"] - 1.5 * BUDGET * 0.1785) <= space["step_flops"] / 2
    shutil.rmtree(tmp_path / "run/space_time/model")
    with pytest.raises(ValueError, match="side"):
        replace(longer, side=32).run(tmp_path / "run")


@pytest.fixture(scope="module")
def pond(tmp_path_factory):
    """A latent model whose steps are on clips and on single frames."""
    folder = tmp_path_factory.mktemp("run")
    recipe = RECIPES["pond-tiny"]()
    assert isinstance(recipe, PondRecipe)
    stage = replace(recipe.denoiser, flops=3e8, images=ImageSteps(first=3, share=0.4, clips=2))
    recipe = replace(recipe, denoiser=stage)
    return folder, recipe, recipe.run(folder)


def test_a_denoiser_trains_for_its_compute_and_the_autoencoder_s_stands_beside(pond):
    folder, recipe, _ = pond
    found, made = told(folder / "denoiser"), open_run(recipe, folder)
    batches = recipe.denoiser_phase(made.autoencoder, made.latents, made.validation, made.device).batch
    stills = [batches(step).latents.shape[2] == 1 for step in range(found["steps"])]
    assert stills == [recipe.on_images(step) for step in range(found["steps"])]
    assert 3 < sum(stills) < len(stills)
    spent = sum(found["image_step_flops"] if still else found["step_flops"] for still in stills)
    assert found["flops"] == spent
    assert abs(spent - 3e8) <= max(found["step_flops"], found["image_step_flops"]) / 2
    beside = told(folder / "autoencoder")
    assert beside["flops"] == sum(stage["flops"] for stage in beside["stages"]) > 0
    assert [stage["steps"] for stage in beside["stages"]] == [4]
    (folder / "autoencoder/compute.json").unlink()  # as where it was trained before it was counted
    recipe.train_autoencoder(folder / "autoencoder", made.device)
    assert told(folder / "autoencoder") == beside


def test_a_wider_transformer_costs_what_its_further_products_do(pond):
    """Of each token in each layer 2 d multiplications for every unit of the feed-forward layer, three times: forward,
    and for the gradients of inputs and of weights."""
    folder, recipe, _ = pond
    made, plain = open_run(recipe, folder), FieldMix(equal=1.0, prefix=0.0, keyframe=0.0, independent=0.0, region=0.0)
    stage = replace(recipe.denoiser, fields=plain)
    model, further = stage.model, 24
    wider = replace(stage, model=replace(model, ffn_dim=model.ffn_dim + further))
    arms = [replace(recipe, denoiser=each) for each in (stage, wider)]
    costs = [
        arm.denoiser_cost(
            arm.denoiser_phase(made.autoencoder, made.latents, made.validation, made.device), made.latents
        )
        for arm in arms
    ]
    clip, frame = (
        replace(recipe.shape, frames=frames).latent(recipe.autoencoder.model.stride).tokens(model.patch)
        for frames in (recipe.frames, 1)
    )
    each = 3 * 2 * 2 * model.heads * model.head_dim * further * model.layers
    assert costs[1].step - costs[0].step == stage.batch * math.prod(clip) * each
    assert costs[1].image_step - costs[0].image_step == 2 * stage.batch * math.prod(frame) * each


def test_a_denoiser_s_compute_is_no_setting_and_runs_that_did_not_know_it_go_on(pond, tmp_path):
    folder, recipe, _ = pond
    recorded = json.loads((folder / "denoiser/config.json").read_text())["recipe"]
    assert "flops" not in recorded["denoiser"]
    shutil.copytree(folder, tmp_path / "run")
    shutil.rmtree(tmp_path / "run/denoiser/model")
    by_steps = replace(recipe, denoiser=replace(recipe.denoiser, flops=None))
    assert by_steps.run(tmp_path / "run") == tmp_path / "run/denoiser/model"
    other = replace(recipe, denoiser=replace(recipe.denoiser, flops=1e9, batch=2))
    with pytest.raises(ValueError, match="batch"):
        other.run(tmp_path / "run")


def test_which_steps_are_on_images_is_drawn_as_batches_draw_it():
    images, drawn = ImageSteps(first=2, share=0.5), []
    for step in range(50):
        generator = torch.Generator().manual_seed(step)
        drawn.append(images.alone(step, generator))
        assert (generator.get_state() == torch.Generator().manual_seed(step).get_state()).all() == (step < 2)
    assert all(drawn[:2])
    assert 10 < sum(drawn) < 40
