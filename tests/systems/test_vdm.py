"""Video Diffusion Models as a system: clips of every length and size, what is known kept, folders that are whole."""

from __future__ import annotations

import copy
import json
import shutil
from dataclasses import replace

import pytest
import torch

from carrara.core.types import Keyframes, VideoShape
from carrara.denoisers.unet3d import UNet3D, UNetConfig
from carrara.diffusion.conditioning import Start
from carrara.diffusion.predictions import target
from carrara.systems.cascade import shrink
from carrara.systems.latent import Defaults, Known, LatentVideo, Sampling
from carrara.systems.registry import load_system
from carrara.systems.stage import COSINE, Process, Stage, draw_levels
from carrara.systems.stage_phase import CaptionedClips, StagePhase
from carrara.systems.system import System
from carrara.systems.vdm import VDM, VDMSettings
from carrara.text.encoder import TextEncoder, TextEncoderConfig
from carrara.text.tokenizer import train_tokenizer

PROMPT = "a red ball bounces on the grass"
SAMPLING = Sampling(steps=3, guidance=2.0, sampler="ancestral", shift=1.0, grid="cosine")
SETTINGS = VDMSettings(frames=4, overlap=2, fine_frames=3, time=2, fine_steps=3)
NETWORK = UNetConfig(dim=8, multipliers=(1, 2), blocks=1, attention=(1,), head_dim=8, text_dim=16)


@torch.no_grad()
def random_vdm(fine: bool, settings: VDMSettings = SETTINGS) -> VDM:
    """A VDM whose every weight is drawn, so that no layer is the identity."""
    tokenizer = train_tokenizer([PROMPT, "a green frog jumps over the pond"])
    torch.manual_seed(0)
    text = TextEncoder(TextEncoderConfig(tokenizer.vocab_size, 16, 16, 32, 1, 1)).eval().requires_grad_(False)
    networks = {}
    for number, name in enumerate(("base", "fine") if fine else ("base",)):
        network = UNet3D(NETWORK)
        network.init_weights(number)
        generator = torch.Generator().manual_seed(number)
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
        networks[name] = network.eval().requires_grad_(False)
    defaults = Defaults(7, 16, 16, 16.0, SAMPLING) if fine else Defaults(4, 8, 8, 8.0, SAMPLING)
    return VDM(networks, text, tokenizer, defaults, settings)


@pytest.fixture(scope="module")
def base() -> VDM:
    return random_vdm(fine=False)


@pytest.fixture(scope="module")
def cascade() -> VDM:
    return random_vdm(fine=True)


def test_it_is_a_system_and_so_is_the_latent_one(base, tiny_system):
    assert isinstance(base, System)
    assert isinstance(tiny_system, System)


def test_a_seed_gives_the_same_clip_whatever_else_is_asked_for(base):
    shape = VideoShape(4, 8, 8)
    both = base.sample([PROMPT, "a green frog"], [5, 6], shape, SAMPLING)
    assert both.shape == (2, 3, 4, 8, 8)
    assert both.abs().max() <= 1
    torch.testing.assert_close(base.sample([PROMPT], [5], shape, SAMPLING), both[:1], atol=1e-4, rtol=1e-4)
    for other in ({"prompts": ["a green frog"]}, {"seeds": [7]}, {"negative": "the pond"}):
        asked = {"prompts": [PROMPT], "seeds": [5], "shape": shape, "sampling": SAMPLING, **other}
        assert (base.sample(**asked) - both[:1]).abs().max() > 1e-3


@pytest.mark.parametrize("frames", [1, 3, 5, 9])
def test_clips_of_any_length_begin_as_the_short_one(base, frames):
    clip = base.sample([PROMPT], [1], VideoShape(frames, 8, 8), SAMPLING)
    assert clip.shape == (1, 3, frames, 8, 8)
    if frames > 4:
        assert clip[:, :, :4].equal(base.sample([PROMPT], [1], VideoShape(4, 8, 8), SAMPLING))


@pytest.mark.parametrize("by", ["guide", "replace", "hold"])
def test_known_pixels_are_kept_to_the_bit_and_the_rest_answers_to_them(base, by):
    shape, mask = VideoShape(4, 8, 8), torch.zeros(1, 4, 8, 8, dtype=torch.bool)
    mask[:, 0], mask[:, 2, :, :4] = True, True
    drawn = [torch.rand(1, 3, 4, 8, 8, generator=torch.Generator().manual_seed(seed)) * 2 - 1 for seed in (0, 1)]
    made = [base.sample([PROMPT], [3], shape, SAMPLING, known=Known(known, mask, by)) for known in drawn]
    where = mask[:, None].expand(-1, 3, -1, -1, -1)
    for clip, known in zip(made, drawn):
        assert clip[where].equal(known[where])
    assert (made[0] - made[1])[~where].abs().max() > 1e-3


def test_thresholds_that_scale_an_estimate_leave_what_is_known_as_it_is(base):
    shape, mask = VideoShape(4, 8, 8), torch.zeros(1, 4, 8, 8, dtype=torch.bool)
    mask[:, 0] = True
    known = torch.ones(1, 3, 4, 8, 8)
    for by in ("guide", "replace"):
        process = Process(threshold="dynamic")
        system = VDM(
            base.networks, base.text_encoder, base.tokenizer, base.defaults, replace(SETTINGS, process=process)
        )
        strong = replace(SAMPLING, guidance=40.0)  # estimates far beyond the limits
        made = system.sample([PROMPT], [3], shape, strong, known=Known(known, mask, by))
        assert made[:, :, 0].equal(known[:, :, 0])
        assert made.abs().max() <= 1


def test_guidance_towards_the_known_is_not_replacement_and_is_none_at_weight_zero(base):
    shape = VideoShape(8, 8, 8)

    def clip(**changes):
        system = VDM(base.networks, base.text_encoder, base.tokenizer, base.defaults, replace(SETTINGS, **changes))
        return system.sample([PROMPT], [2], shape, SAMPLING)

    replaced = clip(extend="replace")
    torch.testing.assert_close(clip(extend="guide", weight=0.0), replaced, atol=1e-5, rtol=1e-5)
    guided = clip(extend="guide", weight=2.0)
    assert guided[:, :, :4].equal(replaced[:, :, :4])
    assert (guided - replaced)[:, :, 4:].abs().max() > 1e-3


@pytest.mark.parametrize(("frames", "made"), [(1, 1), (5, 5), (6, 6), (7, 7), (12, 12)])
def test_the_fine_stage_makes_any_number_of_frames_of_twice_the_sides(cascade, frames, made):
    clip = cascade.sample([PROMPT], [1], VideoShape(frames, 16, 16), SAMPLING)
    assert clip.shape == (1, 3, made, 16, 16)
    assert clip.abs().max() <= 1


def test_the_fine_stage_is_steered_to_the_clip_that_it_enlarges(cascade):
    """The more it is guided, the nearer its clip, made smaller and slower, is to the base's."""
    small = torch.rand(1, 3, 4, 8, 8, generator=torch.Generator().manual_seed(0)) - 0.5
    misses = []
    for weight in (0.0, 2.0, 8.0):
        settings = replace(SETTINGS, fine_weight=weight, fine_steps=8)
        system = VDM(cascade.networks, cascade.text_encoder, cascade.tokenizer, cascade.defaults, settings)
        system.draw_base = lambda *_: small  # the same clip to enlarge for all
        made = system.sample([PROMPT], [1], VideoShape(7, 16, 16), SAMPLING)
        misses.append(float((shrink(made, 2, 2) - small).square().mean()))
    assert misses[2] < 0.9 * misses[1] < 0.81 * misses[0]


def test_progress_counts_every_evaluation_and_watching_changes_nothing(cascade):
    steps, seen = [], []
    shape = VideoShape(9, 16, 16)
    clip = cascade.sample(
        [PROMPT],
        [1],
        shape,
        SAMPLING,
        progress=lambda done, total: steps.append((done, total)),
        watch=lambda point, x, denoised: seen.append(x.shape),
    )
    assert [done for done, _ in steps] == list(range(1, len(steps) + 1))
    assert {total for _, total in steps} == {len(steps)}
    assert len(seen) == len(steps)
    assert {tuple(size[2:]) for size in seen} == {(4, 8, 8), (3, 16, 16)}
    assert clip.equal(cascade.sample([PROMPT], [1], shape, SAMPLING))


def test_what_a_vdm_cannot_take_is_refused(base, cascade):
    shape, pixels = VideoShape(4, 8, 8), torch.zeros(1, 3, 4, 8, 8)
    keyframes = Keyframes(torch.zeros(1, 3, 1, 8, 8), torch.ones(1, 1), torch.zeros(1, 1))
    known = Known(pixels, torch.ones(1, 4, 8, 8, dtype=torch.bool))
    with pytest.raises(ValueError, match="no keyframes"):
        base.sample([PROMPT], [1], shape, SAMPLING, keyframes=keyframes)
    with pytest.raises(ValueError, match="no clip to begin from"):
        base.sample([PROMPT], [1], shape, SAMPLING, start=Start(pixels, 0.5))
    with pytest.raises(ValueError, match="up to 4 frames"):
        base.sample([PROMPT], [1], VideoShape(5, 8, 8), SAMPLING, known=known)
    with pytest.raises(ValueError, match="one stage, and this one has two"):
        cascade.sample([PROMPT], [1], VideoShape(4, 16, 16), SAMPLING, known=known)
    with pytest.raises(ValueError, match="width=18: must be a multiple of 4"):
        cascade.sample([PROMPT], [1], VideoShape(4, 16, 18), SAMPLING)
    with pytest.raises(ValueError, match="the cosine grid has none"):
        base.sample([PROMPT], [1], shape, replace(SAMPLING, shift=3.0))


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"extend": "guided"}, "did you mean guide"),
        ({"overlap": 4}, "overlap=4"),
        ({"fine_frames": 4}, r"fine_frames=4: must be 2k\+1"),
        ({"weight": -1.0}, "weight=-1"),
        ({"time": 0}, "time=0"),
    ],
)
def test_bad_settings_are_refused(changes, match):
    with pytest.raises(ValueError, match=match):
        replace(SETTINGS, **changes)


def test_networks_that_do_not_belong_together_are_refused(base):
    def made(networks):
        return VDM(networks, base.text_encoder, base.tokenizer, base.defaults, SETTINGS)

    with pytest.raises(ValueError, match="has a base"):
        made({"fine": base.first})
    with pytest.raises(ValueError, match="text_dim=8; the encoder's is 16"):
        made({"base": UNet3D(replace(NETWORK, text_dim=8))})
    with pytest.raises(ValueError, match="told of text alone"):
        made({"base": UNet3D(replace(NETWORK, given_channels=3))})


def test_a_folder_is_the_system(cascade, tmp_path):
    cascade.save(tmp_path / "model")
    again = load_system(tmp_path / "model")
    assert isinstance(again, VDM)
    assert (again.defaults, again.settings) == (cascade.defaults, cascade.settings)
    assert again.fingerprint
    shape = VideoShape(5, 16, 16)
    made, before = (system.sample([PROMPT], [1], shape, SAMPLING) for system in (again, cascade))
    torch.testing.assert_close(made, before, atol=1e-4, rtol=1e-4)
    assert not any(parameter.requires_grad for parameter in again.denoiser.parameters())
    narrow = tmp_path / "narrow"
    cascade.save(narrow, torch.float16)
    assert load_system(narrow).fingerprint != again.fingerprint


def test_every_folder_goes_to_the_system_that_wrote_it(base, small_folder, tmp_path):
    assert isinstance(load_system(small_folder), LatentVideo)
    with pytest.raises(ValueError, match="CarraraVDM is expected"):
        VDM.load(small_folder)
    base.save(tmp_path)
    with pytest.raises(ValueError, match="CarraraVDM"):
        LatentVideo.load(tmp_path)


def test_a_damaged_folder_is_one_clear_line(base, tmp_path):
    base.save(tmp_path / "model")

    def broken(change):
        folder = tmp_path / "broken"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(tmp_path / "model", folder)
        change(folder)
        with pytest.raises(ValueError) as caught:
            load_system(folder)
        return str(caught.value)

    def less(folder):
        config = json.loads((folder / "base/config.json").read_text())
        (folder / "base/config.json").write_text(json.dumps(config | {"dim": 16}))

    def unknown(folder):
        (folder / "carrara.json").write_text('{"settings": {"frame": 3}}')

    assert "no base/ in it" in broken(lambda folder: shutil.rmtree(folder / "base"))
    assert "has shape" in broken(less)
    assert "did you mean frames" in broken(unknown)
    assert "no weights here" in broken(lambda folder: (folder / "base/model.safetensors").unlink())


# Training


def clips(step: int, images: int = 2) -> CaptionedClips:
    generator = torch.Generator().manual_seed(step)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randint(0, 256, (*shape, 3), generator=generator, dtype=torch.uint8)

    said = tuple(f"a red ball {number}" for number in range(2 * images))
    return CaptionedClips(draw(2, 4, 8, 8), (PROMPT, "a green frog"), draw(2, images, 8, 8), said)


def phase_of(system: VDM, stage: str = "base", text: bool = True) -> StagePhase:
    return StagePhase(
        copy.deepcopy(system), stage, clips, clips(99, 0), SAMPLING, VideoShape(4, 8, 8), [PROMPT], text=text
    )


def test_captions_stand_as_the_network_reads_them():
    batch = clips(0)
    assert batch.texts() == [PROMPT, "a red ball 0", "a red ball 1", "a green frog", "a red ball 2", "a red ball 3"]
    frames = batch.frames()
    assert frames.shape == (2, 3, 6, 8, 8)
    assert frames[1, :, 5].permute(1, 2, 0).add(1).mul(127.5).round().to(torch.uint8).equal(batch.images[1, 1])
    with pytest.raises(ValueError, match="one caption each"):
        replace(batch, captions=(PROMPT,))


def test_the_loss_is_a_function_of_its_generator_and_reaches_the_weights(base):
    phase = phase_of(base)
    found = [phase.loss(phase.batch(0), 0, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert found[0]["loss"].equal(found[1]["loss"])
    assert not found[0]["loss"].equal(found[2]["loss"])
    torch.testing.assert_close(found[0]["loss"].detach(), (4 * found[0]["clip"] + 2 * found[0]["images"]) / 6)
    found[0]["loss"].backward()
    grown = {name for name, p in phase.module.named_parameters() if p.grad is not None and p.grad.any()}
    assert len(grown) > 0.9 * len(dict(phase.module.named_parameters()))
    assert any(name.startswith("text_encoder") for name in grown)


def test_images_teach_what_every_frame_passes_and_no_layer_along_time(base):
    phase = phase_of(base)
    network = phase.system.first
    batch = replace(clips(0), video=clips(0).video[:, :1])  # clips of one frame: nothing but images
    phase.loss(batch, 0, torch.Generator().manual_seed(0))["loss"].backward()
    times = network.time_parameters()
    assert times
    assert all(parameter.grad is None for parameter in times.values())
    others = [parameter for name, parameter in network.named_parameters() if name not in times]
    assert sum(parameter.grad is not None and bool(parameter.grad.any()) for parameter in others) > 0.9 * len(others)


def test_the_fine_stage_trains_the_fine_network_alone(cascade):
    phase = phase_of(cascade, "fine", text=False)
    phase.loss(phase.batch(0), 0, torch.Generator().manual_seed(0))["loss"].backward()
    system = phase.system
    assert {name.split(".")[0] for name, _ in phase.module.named_parameters()} == {"fine"}
    assert all(p.grad is None for part in (system.first, system.text_encoder) for p in part.parameters())
    with pytest.raises(ValueError, match="this system has base, fine"):
        phase_of(cascade, "finest")


def test_validation_and_pictures_repeat_and_compute_is_counted(base):
    phase = phase_of(base)
    first, picture = phase.validate(), phase.picture()
    torch.rand(3)
    assert phase.validate() == first
    assert phase.picture().equal(picture)
    assert picture.shape == (8, 4 * 8, 3)
    assert first["loss_mean"] == pytest.approx(sum(v for k, v in first.items() if "_at_" in k) / 6)
    without = phase_of(base)
    without.batch = lambda step: clips(step, 0)
    assert 1.2 < phase.step_flops() / without.step_flops() < 1.6  # 6 frames for 4, two of them without time


def test_levels_are_one_for_a_clip_and_one_for_each_image():
    levels = draw_levels(8, 3, 7, torch.Generator().manual_seed(0))
    assert levels.shape == (8, 7)
    assert levels[:, :4].eq(levels[:, :1]).all()
    assert levels[:, 3:].flatten().unique().numel() == 8 * 4
    assert levels[:, 3:].flatten().sort().values.diff().max() < 2 / 32 + 1e-6


def test_an_exact_prediction_has_no_error_of_either_kind():
    """A network that answers the target: both kinds of prediction imply the clip itself."""
    clip, noise = torch.rand(2, 3, 2, 4, 4) * 2 - 1, torch.randn(2, 3, 2, 4, 4)

    class Knows(torch.nn.Module):
        def __init__(self, kind):
            super().__init__()
            self.kind, self.leave = kind, torch.nn.Linear(1, 1)

        def forward(self, x, t, conditions, alone=0):
            t = t.float()
            return target(self.kind, clip, noise, COSINE.alpha(t), COSINE.sigma(t))

    for kind in ("noise", "v"):
        stage = Stage(Knows(kind), Process(kind, "none"))
        assert stage.errors(clip, noise, torch.tensor([0.2, 0.7]), None).max() == 0
        point = Sampling(steps=4, shift=1.0, grid="cosine").points().points[2]
        torch.testing.assert_close(
            stage.estimate(None)(point.alpha * clip + point.sigma * noise, point), clip, atol=1e-4, rtol=1e-4
        )
    with pytest.raises(ValueError, match="prediction"):
        Process("flow")  # type: ignore[arg-type]
