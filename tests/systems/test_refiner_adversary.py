"""What tells a refiner that a clip does not look right: it learns what is true, of which words, and makes up minds."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from tests.systems.refiner_fixtures import with_refiner

from carrara.systems.latent import LatentVideo
from carrara.systems.phases import to_unit
from carrara.systems.refiner import Refiner
from carrara.systems.refiner_adversary import Adversary, Discriminator, strayed
from carrara.systems.refiner_phase import MeltedClips, RefinerLoss, RefinerPhase, around
from carrara.training.config import TrainConfig
from carrara.training.loop import train

WORDS = ["a red ball bounces on the grass", "a green frog jumps over the pond"]


def bars(count: int, seed: int, placed: bool = False) -> MeltedClips:
    """A grey blob, and somewhere else, in the truth, a bar: across for the first words, upright for the second."""
    generator = torch.Generator().manual_seed(seed)
    video = torch.zeros(count, 1, 16, 16, 3, dtype=torch.uint8)
    melted, captions = video.clone(), []
    for row in range(count):
        kind, *places = torch.randint(2, 9, (5,), generator=generator).tolist()
        kind %= 2
        melted[row, 0, places[0] : places[0] + 6, places[1] : places[1] + 6] = 90
        high, wide = ((2, 6), (6, 2))[kind]
        video[row, 0, places[2] : places[2] + high, places[3] : places[3] + wide] = 250
        captions.append(WORDS[kind])
    others = [WORDS[1 - WORDS.index(text)] for text in captions]
    actors = (video[..., 0] > 0).to(torch.uint8)
    touched = (melted[..., 0] > 0) | (actors > 0)
    return MeltedClips(melted, captions, video[:, None], actors[:, None], touched, others, placed)


def phase_of(system: LatentVideo, adversary: Adversary | None, placed: bool = False) -> RefinerPhase:
    return RefinerPhase(
        with_refiner(system, None),
        lambda step: bars(8, step, placed),
        bars(8, 10**6),
        RefinerLoss(caption_dropout=0),
        adversary=adversary,
    )


CONFIG = TrainConfig(steps=160, warmup=5, learning_rate=3e-3, betas=(0.5, 0.95), weight_decay=0.0, clip=5.0,
                     ema=0.9, precision="float32", validate_every=0, picture_every=0)  # fmt: skip


def drawn(phase: RefinerPhase) -> torch.Tensor:
    """What is drawn of a blob at rows and columns 5 to 10 for either words, `2 16 16` from 0 to 1."""
    blob = torch.full((2, 3, 1, 16, 16), -1.0)
    blob[..., 5:11, 5:11] = 90 / 127.5 - 1
    return (phase.refiner.refine(blob, phase.read(WORDS)).mean(1)[:, 0] + 1) / 2


def test_where_errors_answer_with_a_mean_it_draws_something_that_could_be_true(tiny_system, tmp_path):
    brightest = {}
    for name, adversary in (("alone", None), ("opposed", Adversary(weight=1.0, smooth=1.0))):
        phase = phase_of(tiny_system, adversary)
        train(phase, CONFIG, tmp_path / name)
        brightest[name] = drawn(phase).amax((1, 2))
    assert (brightest["alone"] < 0.5).all(), "a bar may be anywhere, so nothing is drawn of it"
    assert (brightest["opposed"] > 0.7).all(), "bars are bright"


def test_it_learns_what_is_true_and_of_which_words(tiny_system):
    refiner = with_refiner(tiny_system, None).refiner
    assert refiner is not None
    phase, judge = phase_of(tiny_system, None), Discriminator(refiner)
    optimizer = torch.optim.Adam(judge.parameters(), 3e-3, (0.5, 0.95))
    config = Adversary(weight=1.0, smooth=0.1)
    for step in range(80):
        batch = bars(16, step)
        true, shown = (to_unit(x) for x in (batch.video[:, 0], batch.melted))
        text, other = phase.read(batch.captions), phase.read(batch.others)
        weights = around(batch.touched)
        loss, found = judge.loss(true, shown, text, other, weights, config, torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step == 0:
            assert all(value == 0 for value in found.values()), "it begins undecided"
    assert found["found_true"] > 1
    assert found["found_drawn"] < -1
    assert found["found_other"] < -1


def test_neither_learns_by_what_the_other_is_told_by(tiny_system):
    system = with_refiner(tiny_system, 0)
    assert system.refiner is not None
    refiner: Refiner = copy.deepcopy(system.refiner).requires_grad_(True)
    judge = Discriminator(refiner)
    judge.network.unet.leave.weight.data.normal_()
    phase, batch = phase_of(tiny_system, None), bars(2, 0)
    text, weights = phase.read(batch.captions), torch.ones(2, 1, 16, 16)
    true, shown = (to_unit(x) for x in (batch.video[:, 0], batch.melted))
    drawn, _ = refiner(shown, text)
    judge.deceived(drawn, text, weights).backward()
    assert all(p.grad is None for p in judge.parameters())
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in refiner.parameters())
    assert all(p.requires_grad for p in judge.parameters())
    refiner.zero_grad()
    drawn, _ = refiner(shown, text)
    generator = torch.Generator().manual_seed(0)
    judge.loss(true, drawn, text, phase.read(batch.others), weights, Adversary(1.0), generator)[0].backward()
    assert all(p.grad is None for p in refiner.parameters())
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in judge.parameters())


def test_colours_stray_by_their_means_alone():
    generator = torch.Generator().manual_seed(0)
    shown, weights = torch.rand(1, 3, 2, 16, 16, generator=generator), torch.ones(1, 2, 16, 16)
    assert strayed(shown, shown, weights, 8) == 0
    board = torch.ones(16, 16)
    board[::2, ::2] = board[1::2, 1::2] = -1
    assert strayed(shown + 0.5 * board, shown, weights, 8) < 1e-6
    assert strayed(shown + 0.5, shown, weights, 8) == pytest.approx(0.5)
    half = weights.clone()
    half[..., 8:] = 0
    right = shown.clone()
    right[..., 12:] += 1
    assert strayed(right, shown, half, 4) == 0, "only where it counts"


def test_clips_that_are_where_their_truth_is_are_held_to_it(tiny_system):
    loose = phase_of(tiny_system, Adversary(weight=1e-9, anchor=0.0, smooth=0.0))
    parts = []
    for placed in (True, False):
        found = loose.loss(bars(4, 0, placed), 0, torch.Generator().manual_seed(0))
        assert {"found_true", "found_drawn", "found_other"} <= set(found)
        parts.append(found["loss"].item())
    undecided = 2 * torch.log(torch.tensor(2.0)).item()
    assert parts[1] == pytest.approx(undecided, abs=1e-4)
    assert parts[0] > parts[1] + 0.1


def test_the_model_that_is_left_has_the_refiner_alone(tiny_system, tmp_path):
    phase = phase_of(tiny_system, Adversary(weight=0.5))
    made = LatentVideo.load(train(phase, replace(CONFIG, steps=2), tmp_path))
    assert made.refiner is not None
    assert set(made.refiner.state_dict()) == set(phase.refiner.state_dict())


def test_what_is_missing_or_out_of_range_is_refused(tiny_system):
    phase = phase_of(tiny_system, Adversary(weight=0.5))
    with pytest.raises(ValueError, match="0 other captions for 4 clips"):
        phase.loss(replace(bars(4, 0), others=()), 0, torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="weight=-1"):
        Adversary(weight=-1)
    with pytest.raises(ValueError, match="anchored=0"):
        Adversary(anchored=0)
    assert phase_of(tiny_system, Adversary(weight=0)).adversary is None
