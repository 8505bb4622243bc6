"""Laws of distillation on real networks: nothing to learn where one evaluation is the window, exact levels, known
frames kept, a student that comes nearer, and a folder that samples in few steps."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from carrara.core.types import VideoShape
from carrara.diffusion import fields
from carrara.diffusion.fields import FieldMix
from carrara.diffusion.grids import flow_grid
from carrara.systems.distill_phase import Distillation, DistillPhase
from carrara.systems.latent import Known, LatentVideo
from carrara.systems.phases import CaptionedLatents
from carrara.training.pieces import cut

SHAPE = VideoShape(5, 64, 64)
PROMPTS = ["a red ball bounces on the grass", "a green frog jumps over the pond", "a red ball", "the pond"]
EQUAL = FieldMix().only(fields.EQUAL)


def captioned(step: int) -> CaptionedLatents:
    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(4, 8, *shape, generator=torch.Generator().manual_seed(step))

    return CaptionedLatents(draw(2, 4, 4), PROMPTS, draw(2, 4, 4), torch.tensor([[0.5, 1.0]] * 4))


def phase_of(system: LatentVideo, **settings) -> DistillPhase:
    config = replace(Distillation(steps=4, shift=3.0, parts=1, rolled=1), **settings)
    return DistillPhase(copy.copy(system), captioned, captioned(99), config, PROMPTS, SHAPE, len(PROMPTS))


def told(network: torch.nn.Module, seen: list[torch.Tensor]):
    """Record the levels that a network is told."""
    return network.register_forward_pre_hook(lambda module, args: seen.append(args[1].clone()))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_a_student_says_that_it_has_learned_its_strides_alone(small_system, tmp_path):
    phase_of(small_system).export(tmp_path)
    made, teacher = LatentVideo.load(tmp_path).defaults, small_system.defaults
    assert (made.strides, made.steps, made.guidance) == (True, 4, 1)
    assert not teacher.strides


def test_where_a_window_is_one_unguided_step_of_the_teacher_there_is_nothing_to_learn(small_system):
    phase = phase_of(small_system, guidance=1.0, solver="euler")
    for seed in range(3):
        assert phase.loss(captioned(seed), 0, generator(seed))["loss"].item() < 1e-11
    found = phase.validate()
    assert found["endpoint"] == found["endpoint_undistilled"] > 0
    guided = phase_of(small_system, guidance=3.0, solver="euler")
    assert guided.loss(captioned(0), 0, generator())["loss"].item() > 1e-7


@pytest.mark.parametrize("rolled", [0, 1, 4])
def test_the_loss_is_a_function_of_its_generator_and_reaches_the_students_weights_only(rolled, small_system):
    phase = phase_of(small_system, rolled=rolled, guidance=3.0)
    first, again, other = (phase.loss(captioned(0), 0, generator(seed))["loss"] for seed in (1, 1, 2))
    assert first.equal(again)
    assert not first.equal(other)
    first.backward()
    grown = [p.grad is not None and bool(p.grad.any()) for p in phase.student.parameters()]
    assert sum(grown) > 0.9 * len(grown)
    assert not any(
        p.requires_grad for p in (*phase.teacher.denoiser.parameters(), *phase.teacher.text_encoder.parameters())
    )


def test_pieces_of_a_batch_roll_their_share_of_its_clips_and_tell_the_same_parts(small_system):
    """Processes add up what their pieces tell: other parts of one than of another would leave them waiting forever."""
    phase, batch = phase_of(small_system, rolled=1), captioned(0)
    seen: list[torch.Tensor] = []
    told_of, rolled = set(), 0
    with told(phase.student, seen):
        for seed in range(24):
            for row in range(4):
                seen.clear()
                told_of.add(tuple(phase.loss(cut(batch, slice(row, row + 1), 4), 0, generator(seed * 4 + row))))
                rolled += len(seen) > 1  # its own path asks the student before it is compared
    assert told_of == {("loss",)}
    assert 12 <= rolled <= 38  # a quarter of 96, within three and a half deviations
    assert set(phase.loss(batch, 0, generator())) == {"loss", "loss_rolled", "loss_noised"}


@pytest.mark.parametrize(("steps", "shift"), [(4, 3.0), (7, 1.7), (8, 1.0)])
def test_in_training_and_in_sampling_the_student_is_told_the_same_levels_to_the_bit(steps, shift, small_system):
    phase = phase_of(small_system, steps=steps, shift=shift, rolled=1, fields=EQUAL)
    seen: list[torch.Tensor] = []
    with told(phase.student, seen):
        phase.loss(captioned(0), 0, generator())
    student = phase.system()
    trained = set(torch.cat([level.flatten() for level in seen]).tolist())
    seen.clear()
    with told(phase.student, seen):
        student.sample(PROMPTS[:1], [0], SHAPE, student.defaults.sampling)
    assert len(seen) == steps  # one evaluation a step
    assert [float(level) for level in seen] == flow_grid(steps, shift).told.tolist()
    assert trained == {float(level) for level in seen}


@pytest.mark.parametrize(
    "mix", [FieldMix().only(fields.PREFIX), FieldMix().only(fields.KEYFRAME)], ids=["prefix", "keyframe"]
)
def test_what_is_known_is_told_and_kept_on_both_paths(mix, small_system):
    phase = phase_of(small_system, rolled=2, fields=replace(mix, noisy_known=0.0, keyframe_prefix=0.0))
    seen: list[tuple] = []
    hook = phase.student.register_forward_pre_hook(lambda module, args: seen.append(args))
    batch = captioned(0)
    assert phase.loss(batch, 0, generator())["loss"].isfinite()
    hook.remove()
    rows = {2: [0, 1], 10: [0, 0, 0, 0, 1, 1, 1, 1, 2, 3]}
    starts = set(phase.windows[:-1].tolist())
    assert len(seen) == 4  # three steps to the starts of the later windows, then the answers
    for x, levels, _, keyframes in seen:
        clips = rows[len(x)]
        if mix.prefix:
            assert keyframes is None
            assert set(levels[:, 1].tolist()) <= starts
            assert not levels[:, 0].any()
            assert x[:, :, 0].equal(batch.latents[clips][:, :, 0])
        else:
            assert set(levels.flatten().tolist()) <= starts
            count = keyframes.times.shape[1]
            assert count in (1, 2)
            for given, one in zip(keyframes.latents, batch.keyframes[clips]):
                assert all(any(given[:, k].equal(one[:, j]) for j in range(2)) for k in range(count))


def test_training_brings_the_students_ends_to_the_teachers(small_system):
    system = copy.copy(small_system)
    system.denoiser = copy.deepcopy(system.denoiser)
    with torch.no_grad():  # a teacher whose paths bend, and whose guidance matters
        for parameter in system.denoiser.parameters():
            parameter.mul_(1.6)
    phase = phase_of(system, guidance=3.0, shift=1.0, parts=4, fields=EQUAL)
    before = phase.validate()
    optimizer = torch.optim.AdamW(phase.student.parameters(), 5e-3, weight_decay=0.0)
    for step in range(80):
        optimizer.zero_grad()
        phase.loss(captioned(step), step, generator(step))["loss"].backward()
        optimizer.step()
    after = phase.validate()
    assert after["endpoint"] < 0.7 * before["endpoint"]
    assert after["endpoint"] < 0.7 * after["endpoint_undistilled"]


def test_validation_and_pictures_repeat_and_show_teacher_over_student(small_system):
    phase = phase_of(small_system)
    found, picture = phase.validate(), phase.picture()
    torch.rand(7)
    assert phase.validate() == found
    assert phase.picture().equal(picture)
    assert (picture.dtype, picture.shape) == (torch.uint8, (8 * 64, 5 * 64, 3))


def test_the_student_is_exported_as_a_folder_that_samples_in_few_steps(small_system, tmp_path):
    phase = phase_of(small_system)
    phase.export(tmp_path / "model")
    system = LatentVideo.load(tmp_path / "model")
    sampling = system.defaults.sampling
    assert (sampling.steps, sampling.guidance, sampling.sampler) == (4, 1.0, "euler")
    assert (sampling.shift, sampling.grid) == (3.0, "flow")
    assert (system.defaults.frames, system.defaults.height, system.defaults.fps) == (5, 64, 8.0)
    known = Known(torch.ones(1, 8, 2, 4, 4), torch.zeros(1, 2, 4, 4, dtype=torch.bool))
    known.mask[:, 0] = True
    latents = system.sample(PROMPTS[:1], [0], SHAPE, sampling, known=known)
    assert latents[:, :, 0].equal(known.latents[:, :, 0])
    assert latents.isfinite().all()


def test_what_cannot_be_distilled_is_refused_before_anything_runs(small_system):
    with pytest.raises(ValueError, match="steps=0"):
        Distillation(steps=0)
    with pytest.raises(ValueError, match="did you mean midpoint"):
        Distillation(solver="midpont")
    with pytest.raises(ValueError, match=r"fields\.independent=0\.08"):
        Distillation(fields=FieldMix())
    rescaled = replace(small_system.defaults.sampling, rescale=0.5)
    system = copy.copy(small_system)
    system.defaults = replace(system.defaults, sampling=rescaled)
    with pytest.raises(ValueError, match=r"rescale=0\.5"):
        phase_of(system)
    with pytest.raises(ValueError, match="shift"):
        phase_of(small_system, shift=-1.0)
