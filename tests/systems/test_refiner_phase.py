"""Training a refiner: it learns, words come to matter, and the model it belongs to stays."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tests.systems.refiner_fixtures import with_refiner

from carrara.systems.refiner import Refiner
from carrara.systems.refiner_phase import MeltedClips, RefinerLoss, RefinerPhase, around
from carrara.training.config import TrainConfig
from carrara.training.loop import train

WORDS = ["a red ball bounces on the grass", "a green frog jumps over the pond"]


def squares_or_bars(count: int, seed: int) -> MeltedClips:
    """One grey blob for both words; the truth is a square for the first and a bar for the second."""
    generator = torch.Generator().manual_seed(seed)
    video = torch.zeros(count, 1, 16, 16, 3, dtype=torch.uint8)
    melted, actors = video.clone(), torch.zeros(count, 1, 16, 16, dtype=torch.uint8)
    captions = []
    for row in range(count):
        kind = int(torch.randint(2, (), generator=generator))
        top, left = torch.randint(2, 8, (2,), generator=generator).tolist()
        melted[row, 0, top : top + 6, left : left + 6] = 90
        high, wide = ((6, 6), (2, 6))[kind]
        video[row, 0, top : top + high, left : left + wide] = 220
        actors[row, 0, top : top + high, left : left + wide] = 1
        captions.append(WORDS[kind])
    return MeltedClips(melted, captions, video[:, None], actors[:, None], (actors > 0) | (melted[..., 0] > 0))


def phase_of(system, seed: int | None = None) -> RefinerPhase:
    return RefinerPhase(
        with_refiner(system, seed), lambda step: squares_or_bars(16, step), squares_or_bars(8, 10**6), RefinerLoss()
    )


def test_it_learns_to_draw_what_the_words_say(tiny_system, tmp_path):
    phase = phase_of(tiny_system)
    before = phase.validate()
    rest = {name: value.clone() for name, value in phase.system.denoiser.state_dict().items()}
    config = TrainConfig(steps=150, warmup=5, optimizer="muon", learning_rate=3e-3, matrix_learning_rate=1e-2,
                         weight_decay=0.0, ema=0.9, precision="float32", validate_every=0, picture_every=0)  # fmt: skip
    model = train(phase, config, tmp_path)
    after = phase.validate()
    assert after["error"] < 0.5 * before["error"]
    assert after["overlap"] > 0.85
    assert after["overlap"] > after["overlap_of_other_words"] + 0.1
    assert all(torch.equal(value, rest[name]) for name, value in phase.system.denoiser.state_dict().items())
    assert (model / "refiner/model.safetensors").is_file()


def test_the_loss_counts_what_was_touched(tiny_system):
    phase, batch = phase_of(tiny_system), squares_or_bars(4, 0)
    found = phase.loss(batch, 0, torch.Generator().manual_seed(0))
    near = around(batch.touched)
    error = (batch.melted.float() - batch.video[:, 0].float()).abs().mean(-1) / 127.5  # a fresh one changes nothing
    torch.testing.assert_close(found["around"], (near * error).sum() / near.sum())
    assert found["first"] == 1
    bare = RefinerPhase(phase.system, phase.batch, batch, RefinerLoss(actors=0, outline=0))
    torch.testing.assert_close(bare.loss(batch, 0, torch.Generator().manual_seed(0))["loss"], error.mean())


def test_a_refiner_that_draws_what_its_teacher_draws_has_nothing_to_learn(tiny_system):
    batch, bare = squares_or_bars(4, 0), RefinerLoss(outline=0, caption_dropout=0)
    teacher = with_refiner(tiny_system, seed=3).refiner
    assert teacher is not None
    for weight in teacher.parameters():
        weight.data.add_(0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)))

    def loss(seed: int, taught: Refiner) -> float:
        student = with_refiner(tiny_system, seed)
        assert student.refiner is not None
        if taught is teacher and seed == 3:
            student.refiner.load_state_dict(teacher.state_dict())
        phase = RefinerPhase(student, lambda _: batch, batch, bare, taught)
        return phase.loss(batch, 0, torch.Generator().manual_seed(0))["loss"].item()

    clipped = loss(3, teacher)  # what a teacher draws is kept within what can be shown
    assert clipped < loss(4, teacher)
    assert not any(weight.requires_grad for weight in teacher.parameters())


def test_of_several_right_clips_the_nearest_counts(tiny_system):
    phase, batch = phase_of(tiny_system), squares_or_bars(4, 0)
    black = torch.zeros_like(batch.video)
    nobody = torch.zeros_like(batch.actors)
    ways = replace(
        batch,
        video=torch.cat((black + 255, batch.video, black + 255), dim=1),
        actors=torch.cat((nobody, batch.actors, nobody), dim=1),
    )
    alone, several = (phase.loss(each, 0, torch.Generator().manual_seed(0)) for each in (batch, ways))
    torch.testing.assert_close(several["loss"], alone["loss"])
    torch.testing.assert_close(several["around"], alone["around"])
    assert several["first"] == 0


def test_the_picture_has_three_rows_a_clip(tiny_system):
    phase = phase_of(tiny_system)
    picture = phase.picture()
    assert picture.shape == (3 * 4 * 16, 16, 3)
    batch = phase.validation
    assert torch.equal(picture[:16], batch.melted[0, 0])
    assert torch.equal(picture[32:48], batch.video[0, 0, 0])


def test_a_model_without_one_and_bad_settings_are_refused(tiny_system):
    with pytest.raises(ValueError, match="has no refiner"):
        RefinerPhase(tiny_system, squares_or_bars, squares_or_bars(1, 0), RefinerLoss())
    with pytest.raises(ValueError, match="actors=-1"):
        RefinerLoss(actors=-1)
    with pytest.raises(ValueError, match="caption_dropout=1"):
        RefinerLoss(caption_dropout=1)
