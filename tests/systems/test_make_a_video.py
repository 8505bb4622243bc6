"""Make-A-Video as a system: text goes in through the prior alone, and clips teach without words."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import pytest
import torch

from carrara.core.types import Keyframes, VideoShape
from carrara.denoisers.prior import Prior, PriorConfig
from carrara.denoisers.unet3d import MAKE_A_VIDEO_TIME, NO_TIME, Conditions, UNet3D, UNetConfig
from carrara.denoisers.unet_inflation import inflate
from carrara.diffusion.conditioning import Start
from carrara.systems import make_a_video
from carrara.systems.cascade import augment
from carrara.systems.image_prior import Captions, ContrastivePhase, PriorPhase
from carrara.systems.latent import Defaults, Known, Sampling
from carrara.systems.make_a_video import FASTEST, STAGES, Asked, MakeAVideo, MakeAVideoSettings
from carrara.systems.registry import load_system
from carrara.systems.stage import COSINE, Tally
from carrara.systems.stage_phase import CaptionedClips
from carrara.systems.system import System
from carrara.systems.unlabelled_phase import UnlabelledClips, UnlabelledPhase, draw_known
from carrara.text.contrastive import Contrastive, ContrastiveConfig
from carrara.text.encoder import TextEncoder, TextEncoderConfig
from carrara.text.tokenizer import train_tokenizer

PROMPT = "a red ball on the grass"
SAMPLING = Sampling(steps=2, guidance=2.0, sampler="ancestral", shift=1.0, grid="cosine")
SETTINGS = MakeAVideoSettings(frames=4, fps=4.0, skip=2, overlap=2, prior_steps=2, fine_steps=2)
STILL = UNetConfig(
    dim=8, multipliers=(1, 2), blocks=1, attention=(1,), head_dim=8, temporal=NO_TIME, text="none", vector_dim=6
)
DECODER = replace(STILL, temporal=MAKE_A_VIDEO_TIME, scalars=("fps",))
CONFIGS = {
    "decoder": DECODER,
    "interpolation": replace(DECODER, given_channels=4),
    "space_time": replace(DECODER, vector_dim=0, given_channels=3, scalars=("augmentation",)),
    "space": replace(STILL, vector_dim=0, given_channels=3, scalars=("augmentation",)),
}


@torch.no_grad()
def drawn(config: UNetConfig, number: int = 0) -> UNet3D:
    """A network whose every weight is drawn, so that no layer is the identity."""
    network = UNet3D(config)
    network.init_weights(number)
    generator = torch.Generator().manual_seed(number)
    for parameter in network.parameters():
        parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return network.eval().requires_grad_(False)


@torch.no_grad()
def system_of(stages: int = 4, still: bool = False, settings: MakeAVideoSettings = SETTINGS) -> MakeAVideo:
    tokenizer = train_tokenizer([PROMPT, "a green frog jumps over the pond"])
    torch.manual_seed(0)
    text = TextEncoder(TextEncoderConfig(tokenizer.vocab_size, 16, 16, 32, 1, 1)).eval().requires_grad_(False)
    contrastive = Contrastive(ContrastiveConfig(side=8, dim=4, levels=2, text_dim=16, embedding=6))
    contrastive.init_weights(0)
    prior = Prior(PriorConfig(embedding=6, text_dim=16, dim=8, blocks=1))
    prior.init_weights(0)
    for parameter in prior.parameters():
        parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    configs = {"decoder": STILL} if still else {name: CONFIGS[name] for name in STAGES[:stages]}
    networks = {name: drawn(config, number) for number, (name, config) in enumerate(configs.items())}
    others = {"contrastive": contrastive.requires_grad_(False), "prior": prior.requires_grad_(False)}
    side = 8 * settings.space ** max(0, len(configs) - 2)
    defaults = Defaults(7 if stages > 1 else 4, side, side, 8.0, SAMPLING)
    return MakeAVideo(networks, text, tokenizer, defaults, settings, others=others)


@pytest.fixture(scope="module")
def whole() -> MakeAVideo:
    return system_of()


@pytest.fixture(scope="module")
def filling() -> MakeAVideo:
    return system_of(2)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pixels(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


# Growing


def told(config: UNetConfig, rows: int, frames: int, side: int = 8) -> Conditions:
    given = pixels(rows, config.given_channels, frames, side, side) if config.given_channels else None
    scalars = {name: torch.full((rows,), 0.4) for name in config.scalars}
    return Conditions(vector=pixels(rows, 6, seed=5), scalars=scalars, given=given)


def test_the_inflated_decoder_begins_as_the_image_model_frame_by_frame_and_to_the_bit_on_one():
    image = drawn(STILL)
    video = inflate(image, DECODER).eval()
    x, t = pixels(2, 3, 4, 8, 8), torch.tensor([0.3, 0.8])
    for frame in range(4):
        alone = x[:, :, frame : frame + 1]
        made = video(alone, t, told(DECODER, 2, 1))
        assert made.equal(image(alone, t, told(STILL, 2, 1)))
        torch.testing.assert_close(
            video(x, t, told(DECODER, 2, 4))[:, :, frame : frame + 1], made, atol=1e-5, rtol=1e-5
        )
    assert video.time_parameters()


def test_the_interpolating_network_begins_as_the_decoder_whatever_it_is_given():
    decoder = drawn(DECODER)
    filling = inflate(decoder, CONFIGS["interpolation"]).eval()
    x, t = pixels(2, 3, 4, 8, 8), torch.tensor([0.3, 0.8])
    made = filling(x, t, told(CONFIGS["interpolation"], 2, 4))
    torch.testing.assert_close(made, decoder(x, t, told(DECODER, 2, 4)), atol=1e-5, rtol=1e-5)


def test_what_cannot_grow_is_refused():
    with pytest.raises(ValueError, match="keep the sizes"):
        inflate(drawn(STILL), replace(DECODER, dim=16))
    with pytest.raises(ValueError, match="only time, scalars and channels may be new"):
        inflate(drawn(replace(STILL, vector_dim=0)), DECODER)
    with pytest.raises(ValueError, match="has no place for it"):
        inflate(drawn(DECODER), replace(DECODER, scalars=()))


# What teaches what


def unlabelled_batch(step: int = 0, frames: int = 4, side: int = 8) -> UnlabelledClips:
    generator = torch.Generator().manual_seed(step)
    return UnlabelledClips(
        torch.randint(0, 256, (2, frames, side, side, 3), generator=generator, dtype=torch.uint8), 4.0
    )


def captioned(step: int = 0, frames: int = 1) -> CaptionedClips:
    video = unlabelled_batch(step, frames).video
    return CaptionedClips(video, (PROMPT, "a green frog"), video[:, :0], ())


@pytest.mark.parametrize("stage", STAGES)
def test_a_caption_in_a_batch_of_a_stage_is_refused_even_on_images(whole, stage):
    system = copy.deepcopy(whole)
    with pytest.raises(ValueError, match="forbids captions here"):
        UnlabelledPhase(system, stage, unlabelled_batch, captioned(), SAMPLING)  # type: ignore[arg-type]
    phase = UnlabelledPhase(system, stage, lambda step: captioned(step, 4), unlabelled_batch(), SAMPLING)  # type: ignore[arg-type,return-value]
    with pytest.raises(ValueError, match="forbids captions here"):
        phase.batch(0)
    with pytest.raises(ValueError, match="forbids captions here"):
        phase.loss(captioned(0, 4), 0, torch.Generator().manual_seed(0))  # type: ignore[arg-type]


@pytest.mark.parametrize("phase", [ContrastivePhase, PriorPhase])
def test_readers_of_text_refuse_clips_and_what_has_no_captions(whole, phase):
    system = copy.deepcopy(whole)
    made = phase(system, captioned, captioned())
    with pytest.raises(ValueError, match="captioned clips of 4 frames"):
        made.loss(captioned(0, 4), 0, torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="captions are needed here"):
        made.loss(unlabelled_batch(), 0, torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="captioned clips of 4 frames"):
        phase(system, captioned, captioned(0, 4))


def trained_by(phase, system: MakeAVideo) -> set[str]:
    """Which parts of a system the loss of a phase has a gradient for."""
    phase.loss(phase.batch(0), 0, torch.Generator().manual_seed(0))["loss"].backward()
    parts = {**system.networks, **system.others, "text_encoder": system.text_encoder}
    return {
        name
        for name, part in parts.items()
        if any(p.grad is not None and bool(p.grad.any()) for p in part.parameters())
    }


def test_every_phase_trains_its_own_part_alone(whole):
    for phase, parts in ((ContrastivePhase, {"contrastive", "text_encoder"}), (PriorPhase, {"prior"})):
        system = copy.deepcopy(whole)
        made = phase(system, captioned, captioned())
        assert {name.split(".")[0] for name, _ in made.module.named_parameters()} == parts
        assert trained_by(made, system) == parts
        assert made.validate() == made.validate()
    for stage in STAGES:
        system = copy.deepcopy(whole)
        made = UnlabelledPhase(system, stage, unlabelled_batch, unlabelled_batch(9), SAMPLING)
        assert trained_by(made, system) == {stage}
        assert made.validate() == made.validate()
        assert made.picture().equal(made.picture())
        assert made.step_flops() > 0


def test_known_frames_are_every_few_or_the_first_and_never_all():
    known = draw_known(300, 7, 4, torch.Generator().manual_seed(0))
    assert not known.all(dim=1).any()
    patterns = {tuple(row) for row in known.int().tolist()}
    assert {(1, 0, 1, 0, 1, 0, 1), (1, 0, 0, 1, 0, 0, 1), (1, 0, 0, 0, 0, 0, 0), (1, 1, 0, 0, 0, 0, 0)} <= patterns
    assert (1, 1, 1, 1, 1, 1, 0) in patterns  # the last block of a longer clip may lack one frame
    assert not draw_known(50, 2, 2, torch.Generator().manual_seed(0)).all(dim=1).any()


def test_frames_that_are_not_known_are_hidden_from_the_interpolating_network(whole):
    clip = pixels(3, 3, 4, 8, 8)
    conditions, known = whole.tell("interpolation", clip, 8.0, torch.Generator().manual_seed(0))
    given = conditions.given
    assert given is not None
    assert given.shape == (3, 4, 4, 8, 8)
    assert given[:, 3].amax(dim=(2, 3)).bool().equal(known)
    where = known[:, None, :, None, None].expand_as(clip)
    assert given[:, :3][where].equal(clip[where])
    assert given[:, :3][~where].eq(0).all()
    assert conditions.scalars["fps"].eq(8 / FASTEST).all()


# Making clips


def test_it_is_a_system_and_text_reaches_it_through_the_embedding_alone(whole, monkeypatch):
    assert isinstance(whole, System)
    shape = VideoShape(3, 32, 32)
    one, other = (whole.sample([prompt], [1], shape, SAMPLING) for prompt in (PROMPT, "a green frog"))
    assert (one - other).abs().max() > 1e-3
    assert (whole.sample([PROMPT], [2], shape, SAMPLING) - one).abs().max() > 1e-3
    assert (whole.sample([PROMPT], [1], shape, SAMPLING, negative="the pond") - one).abs().max() > 1e-3
    both = whole.sample([PROMPT, "a green frog"], [1, 1], shape, SAMPLING)
    torch.testing.assert_close(both, torch.cat((one, other)), atol=1e-4, rtol=1e-4)
    vector = torch.ones(1, 6)
    draw = Captions.draw
    monkeypatch.setattr(Captions, "draw", lambda *given: 0 * draw(*given) + vector)
    told = [whole.sample([prompt], [1], shape, SAMPLING) for prompt in (PROMPT, "a green frog")]
    assert told[0].equal(told[1])


@pytest.mark.parametrize("frames", [1, 2, 6, 7, 12])
def test_clips_of_any_length_are_made_and_progress_counts_every_evaluation(whole, frames):
    steps = []
    clip = whole.sample([PROMPT], [1], VideoShape(frames, 32, 32), SAMPLING, progress=lambda *done: steps.append(done))
    assert clip.shape == (1, 3, frames, 32, 32)
    assert clip.abs().max() <= 1
    assert steps == [(done, len(steps)) for done in range(1, len(steps) + 1)]


def test_the_decoder_s_frames_stay_as_they_are_among_those_filled_in(filling, monkeypatch):
    shape = VideoShape(7, 8, 8)
    seen = []
    fill = filling.fill
    monkeypatch.setattr(filling, "fill", lambda clip, known, asked: seen.append(clip) or fill(clip, known, asked))
    made = filling.sample([PROMPT], [1], shape, SAMPLING)
    assert made[:, :, ::2].equal(seen[0][:, :, ::2])
    assert seen[0][:, :, 1::2].eq(0).all()
    assert (made[:, :, 1::2].abs() > 0).all(dim=1).any()


def test_known_frames_are_noised_for_the_interpolating_network_as_in_training(filling):
    """With the noise that sampling began with, at the level of the rest, at every step."""
    clip, known = pixels(1, 3, 4, 8, 8), torch.tensor([[True, False, True, False]])
    network, seen = filling.networks["interpolation"], []
    hook = network.register_forward_pre_hook(lambda _, given: seen.append((given[0], given[1])))
    sampling = replace(SAMPLING, steps=6)
    asked = Asked(torch.ones(1, 6), None, sampling, [torch.Generator().manual_seed(0)], Tally(6))
    with torch.no_grad():
        made = filling.fill(clip, known, asked)
    hook.remove()
    assert made[:, :, ::2].equal(clip[:, :, ::2])
    noises = [(x - COSINE.alpha(t.float()) * clip) / COSINE.sigma(t.float()) for x, t in seen]
    assert len(noises) == 6
    for noise in noises:
        torch.testing.assert_close(noise[:, :, ::2], noises[0][:, :, ::2], atol=1e-3, rtol=1e-3)
    assert noises[0][:, :, ::2].std().item() == pytest.approx(1, abs=0.15)
    assert (noises[0] - noises[-1])[:, :, 1::2].abs().max() > 0.1


def test_networks_are_told_the_rates_the_levels_and_the_empty_embedding_that_training_tells(whole, monkeypatch):
    told: dict[str, list[Conditions]] = {name: [] for name in STAGES}
    hooks = [
        network.register_forward_pre_hook(lambda _, given, name=name: told[name].append(given[2]))
        for name, network in whole.networks.items()
    ]
    noised = []
    monkeypatch.setattr(make_a_video, "augment", lambda *given: noised.append(given[1]) or augment(*given))
    whole.sample([PROMPT], [1], VideoShape(7, 32, 32), SAMPLING)
    for hook in hooks:
        hook.remove()
    for name, rate in (("decoder", SETTINGS.fps), ("interpolation", SETTINGS.fps * SETTINGS.skip)):
        assert {conditions.scalars["fps"].item() for conditions in told[name]} == {rate / FASTEST}
        withheld = {bool(conditions.vector.eq(0).all()) for conditions in told[name]}
        assert withheld == {True, False}  # both sides of guidance, of which training shows the one now and then:
    dropping = replace(SETTINGS, vector_dropout=0.999999)
    never = system_of(settings=dropping).tell("decoder", pixels(2, 3, 4, 8, 8), 4.0, generator(), training=True)[0]
    assert never.vector.eq(0).all()
    for name, levels in zip(("space_time", "space"), noised, strict=True):
        assert {conditions.scalars["augmentation"].item() for conditions in told[name]} == {levels.item()}
        assert levels.item() == pytest.approx(SETTINGS.augmentation.level)
    noised.clear()
    conditions, _ = whole.tell("space", pixels(5, 3, 4, 16, 16), 8.0, generator(), training=True)
    assert conditions.scalars["augmentation"].equal(noised[0])
    assert len(set(noised[0].tolist())) == 5


def test_one_frame_is_the_first_of_a_clip_once_layers_along_time_are_there(whole):
    clip = whole.sample([PROMPT], [1], VideoShape(SETTINGS.frames, 32, 32), SAMPLING)
    image = whole.sample([PROMPT], [1], VideoShape(1, 32, 32), SAMPLING)
    torch.testing.assert_close(image, clip[:, :, :1], atol=1e-5, rtol=1e-5)
    assert whole.peak_memory(VideoShape(1, 32, 32)) == whole.peak_memory(VideoShape(SETTINGS.frames, 32, 32))
    still = system_of(1, still=True)
    assert still.sample([PROMPT], [1], VideoShape(1, 8, 8), SAMPLING).shape == (1, 3, 1, 8, 8)


def test_an_image_is_animated_kept_to_the_bit_and_read_instead_of_the_text(whole):
    shape = VideoShape(6, 32, 32)
    mask = torch.zeros(1, 6, 32, 32, dtype=torch.bool)
    mask[:, 0] = True
    made = [
        whole.sample([prompt], [1], shape, SAMPLING, known=Known(clip, mask))
        for prompt, clip in (
            (PROMPT, pixels(1, 3, 6, 32, 32)),
            ("a green frog", pixels(1, 3, 6, 32, 32)),
            (PROMPT, -pixels(1, 3, 6, 32, 32)),
        )
    ]
    assert made[0].equal(made[1])
    assert made[0][:, :, 0].equal(pixels(1, 3, 6, 32, 32)[:, :, 0])
    assert (made[0] - made[2])[:, :, 1:].abs().max() > 1e-3
    mask[:, 0, :4] = False
    with pytest.raises(ValueError, match="keeps whole frames"):
        whole.sample([PROMPT], [1], shape, SAMPLING, known=Known(pixels(1, 3, 6, 32, 32), mask))


def test_what_stands_still_stands_still_when_enlarged_frame_by_frame(whole):
    """One noise for all frames, on what is enlarged and to begin with: equal frames come out equal, to rounding."""
    small = pixels(1, 3, 1, 8, 8).expand(-1, -1, 5, -1, -1)
    generators = [torch.Generator().manual_seed(3)]
    with torch.no_grad():
        still = whole.draw_larger("space", small, SAMPLING, generators, Tally(2))
        moves = whole.draw_larger("space_time", small[:, :, :4], SAMPLING, generators, Tally(2))
    assert still.shape == (1, 3, 5, 16, 16)
    torch.testing.assert_close(still, still[:, :, :1].expand_as(still), atol=1e-5, rtol=1e-5)
    assert moves.diff(dim=2).abs().max() > 1e-3


def test_stages_that_are_not_there_yet_are_said():
    shape = VideoShape(1, 8, 8)
    still, moving = system_of(still=True), system_of(1)
    assert still.sample([PROMPT], [1], shape, SAMPLING).shape == (1, 3, 1, 8, 8)
    assert moving.sample([PROMPT], [1], VideoShape(4, 8, 8), SAMPLING).shape == (1, 3, 4, 8, 8)
    with pytest.raises(ValueError, match="frames=2: this Make-A-Video makes up to 1 so far"):
        still.sample([PROMPT], [1], VideoShape(2, 8, 8), SAMPLING)
    with pytest.raises(ValueError, match="frames=5: this Make-A-Video makes up to 4 so far"):
        moving.sample([PROMPT], [1], VideoShape(5, 8, 8), SAMPLING)
    known = Known(pixels(1, 3, 4, 8, 8), torch.ones(1, 4, 8, 8, dtype=torch.bool))
    with pytest.raises(ValueError, match="no interpolating network yet"):
        moving.sample([PROMPT], [1], VideoShape(4, 8, 8), SAMPLING, known=known)


def test_what_it_cannot_take_is_refused(whole):
    shape = VideoShape(4, 32, 32)
    keyframes = Keyframes(torch.zeros(1, 3, 1, 8, 8), torch.ones(1, 1), torch.zeros(1, 1))
    for given in ({"keyframes": keyframes}, {"start": Start(pixels(1, 3, 4, 32, 32), 0.5)}):
        with pytest.raises(ValueError, match="takes no keyframes and no clip to begin from"):
            whole.sample([PROMPT], [1], shape, SAMPLING, **given)
    with pytest.raises(ValueError, match="width=36: must be a multiple of 8"):
        whole.sample([PROMPT], [1], VideoShape(4, 32, 36), SAMPLING)


def test_networks_that_do_not_belong_together_are_refused(whole):
    def made(networks, others=whole.others):
        return MakeAVideo(networks, whole.text_encoder, whole.tokenizer, whole.defaults, SETTINGS, others=others)

    first = {"decoder": whole.first}
    with pytest.raises(ValueError, match="in this order"):
        made({"interpolation": whole.networks["interpolation"]})
    with pytest.raises(ValueError, match="expected contrastive, prior"):
        made(first, {"prior": whole.others["prior"]})
    with pytest.raises(ValueError, match="the prior alone reads text"):
        made({"decoder": drawn(replace(DECODER, text="pooled", text_dim=16))})
    with pytest.raises(ValueError, match="decoder: given_channels, vector_dim, scalars are"):
        made({"decoder": drawn(replace(DECODER, given_channels=4))})
    looks = drawn(replace(CONFIGS["space"], temporal=MAKE_A_VIDEO_TIME))
    with pytest.raises(ValueError, match="enlarges frame by frame"):
        made({**whole.networks, "space": looks})
    narrow = Prior(PriorConfig(embedding=4, text_dim=16, dim=8, blocks=1))
    with pytest.raises(ValueError, match="prior: text_dim=16, embedding=4 do not fit"):
        made(first, {**whole.others, "prior": narrow})


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"overlap": 4}, "overlap=4"),
        ({"skip": 1}, "skip=1: must be at least 2"),
        ({"fps": 20.0}, "at most 32 frames per second"),
        ({"vector_dropout": 1.0}, "vector_dropout=1"),
    ],
)
def test_bad_settings_are_refused(changes, match):
    with pytest.raises(ValueError, match=match):
        replace(SETTINGS, **changes)


def test_a_folder_is_the_system(whole, tmp_path):
    whole.save(tmp_path / "model")
    again = load_system(tmp_path / "model")
    assert isinstance(again, MakeAVideo)
    assert (again.defaults, again.settings) == (whole.defaults, whole.settings)
    shape = VideoShape(5, 32, 32)
    made, before = (system.sample([PROMPT], [1], shape, SAMPLING) for system in (again, whole))
    torch.testing.assert_close(made, before, atol=1e-4, rtol=1e-4)
    index = json.loads((tmp_path / "model/model_index.json").read_text())
    (tmp_path / "model/model_index.json").write_text(json.dumps(index | {"_class_name": "CarraraVDM"}))
    with pytest.raises(ValueError, match="CarraraMakeAVideo is expected"):
        MakeAVideo.load(tmp_path / "model")
