"""Laws of the modes, with a small random model: what is given stays, and windows begin where the last ones ended."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from carrara.core.media import read_video, write_picture, write_video
from carrara.core.types import VideoShape
from carrara.diffusion.conditioning import GUIDE_WEIGHT
from carrara.generation.conditions import Conditions
from carrara.generation.latents import save_latents, window_file
from carrara.generation.making import Remembered
from carrara.generation.manifest import Manifest, read_manifest
from carrara.generation.passes import encoded
from carrara.generation.request import Request
from carrara.generation.run import GenerationError, Model, load
from carrara.systems.kinds import T2V_1_3B, T2V_A14B, TI2V_5B
from carrara.systems.latent import LatentVideo
from carrara.systems.parts import defaults_of
from carrara.systems.phases import to_bytes

PROMPT = "a red ball bounces on the grass"
H, W = 16, 32


def film(frames: int, seed: int = 0, height: int = H, width: int = W) -> Tensor:
    """A clip of smooth noise, every frame of which is different."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, frames, 4, 4, generator=generator) * 255
    smooth = torch.nn.functional.interpolate(coarse, (frames, height, width), mode="trilinear")
    return smooth[0].permute(1, 2, 3, 0).round().to(torch.uint8)


def bars(frames: int) -> Tensor:
    """A mask that covers a moving bar of six columns."""
    mask = torch.zeros(frames, H, W, dtype=torch.bool)
    for index in range(frames):
        mask[index, :, index : index + 6] = True
    return mask


class Spy(LatentVideo):
    """The system, remembering every pass and what it was told."""

    def __init__(self, system: LatentVideo) -> None:
        self.__dict__.update(system.__dict__)
        self.passes: list[dict] = []

    def sample(self, prompts, seeds, shape, sampling, negative="", progress=None, *told):
        known, keyframes, _, start = told
        seen: list[int] = []
        made = super().sample(prompts, seeds, shape, sampling, negative, lambda done, _: seen.append(done), *told)
        self.passes.append(
            {"prompt": prompts[0], "seed": seeds[0], "shape": shape, "known": known, "keyframes": keyframes}
            | {"start": start, "made": made, "evaluations": len(seen)}
        )
        return made


@pytest.fixture(scope="module")
def model(tiny_folder):
    return load(tiny_folder)


@pytest.fixture
def spied(model):
    return Model(model.name, Spy(model.system))


def told_times(one: dict) -> list[float]:
    return [] if one["keyframes"] is None else one["keyframes"].times[0].tolist()


def test_a_prompt_alone_makes_the_same_bytes_as_ever(model, tmp_path):
    """Sampled and decoded by hand, with a manifest that knows nothing of modes."""
    system = model.system
    latents = system.sample([PROMPT], [5], VideoShape(9, H, W), system.defaults.sampling)
    plan = model.plan(Request(PROMPT, seed=5, model=model.name))
    frames = to_bytes(torch.cat(list(system.autoencoder.decode_chunks(latents)), dim=2))[0]
    text = model.manifest(plan).to_json()
    assert not {"conditions", "inputs", "seconds", "window", "prompt_at"} & set(json.loads(text))
    write_video(tmp_path / "hand.mp4", frames, 8.0, {"carrara": text})
    model.write(plan, tmp_path / "made.mp4")
    assert (tmp_path / "hand.mp4").read_bytes() == (tmp_path / "made.mp4").read_bytes()


def test_the_first_frame_is_the_picture_as_the_autoencoder_gives_it_back(spied):
    picture = film(1, 3)[0]
    clip = spied.generate(PROMPT, Conditions(image=picture), seed=1)
    (one,) = spied.system.passes
    kept = encoded(spied.system, picture[None])
    assert torch.equal(one["made"][:, :, :1], kept)  # to the bit
    assert torch.equal(clip.frames[:1], to_bytes(spied.system.autoencoder.decode(one["made"]))[0, :1])
    back = to_bytes(spied.system.autoencoder.decode(kept))[0]
    assert (clip.frames[:1].int() - back.int()).abs().max() <= 1
    assert clip.frames.shape == (9, H, W, 3)
    assert not told_times(one)


def test_a_last_picture_is_a_token_at_the_time_of_the_last_frame(spied):
    first, last = film(2, 4)
    clip = spied.generate(PROMPT, Conditions(image=first, last=last), seed=1)
    (one,) = spied.system.passes
    assert told_times(one) == [8 / 4]
    assert torch.equal(one["keyframes"].latents, encoded(spied.system, last[None]))
    assert one["keyframes"].levels.tolist() == [[0.0]]
    assert torch.equal(one["made"][:, :, :1], encoded(spied.system, first[None]))
    alone = spied.generate(PROMPT, Conditions(image=first), seed=1)
    assert not torch.equal(alone.frames[1:], clip.frames[1:])


def test_seconds_are_windows_that_begin_where_the_last_ended(spied):
    clip = spied.generate(PROMPT, seconds=3.0, seed=2)
    assert len(clip.frames) == 24
    passes, windows = spied.system.passes, spied.plan(Request(PROMPT, seconds=3.0)).timeline.windows
    assert len(passes) == len(windows) == 5
    for one, window in zip(passes[1:], windows[1:]):
        before = clip.frames[window.start : window.fresh]
        assert len(before) >= 5
        kept = encoded(spied.system, before)
        assert torch.equal(one["made"][:, :, : kept.shape[2]], kept)
    assert len({one["seed"] for one in passes}) == 5
    assert passes[0]["seed"] == 2


def test_windows_are_as_long_as_is_said(spied):
    clip = spied.generate(PROMPT, seconds=3.0, window=13, seed=2)
    again = spied.generate(Request(PROMPT, seed=2, seconds=3.0, window=13))
    assert torch.equal(clip.frames, again.frames)
    assert clip.manifest.window == 13
    assert {one["made"].shape[2] for one in spied.system.passes} == {4}  # latent frames of 13
    with pytest.raises(ValueError, match="window=12: must be 4k"):
        spied.generate(PROMPT, seconds=3.0, window=12)


def test_decoding_has_no_seam(spied):
    """The frames are those of all new latents decoded as one clip."""
    clip = spied.generate(PROMPT, seconds=3.0, seed=2)
    windows = spied.plan(Request(PROMPT, seconds=3.0)).timeline.windows
    parts = [spied.system.passes[0]["made"]]
    for one, window in zip(spied.system.passes[1:], windows[1:]):
        parts.append(one["made"][:, :, (window.prefix - 1) // 4 + 1 :])
    whole = to_bytes(spied.system.autoencoder.decode(torch.cat(parts, dim=2)))[0]
    assert len(whole) == windows[-1].stop
    assert (whole[:24].int() - clip.frames.int()).abs().max() <= 1


def test_a_clip_goes_on_and_stays(spied):
    given = film(11, 5)
    clip = spied.generate(PROMPT, Conditions(extend=given), seed=1, seconds=2.0)
    assert torch.equal(clip.frames[:11], given)
    assert len(clip.frames) == 11 + 16
    first = spied.system.passes[0]
    assert torch.equal(first["made"][:, :, :2], encoded(spied.system, given[6:]))
    whole = to_bytes(spied.system.autoencoder.decode(first["made"]))[0]
    assert (clip.frames[11:15].int() - whole[5:].int()).abs().max() <= 1  # decoded behind what it goes on from


def test_what_comes_before_a_clip_arrives_at_it(spied):
    given = film(6, 6)
    clip = spied.generate(PROMPT, Conditions(extend=given, before=True), seed=1, seconds=1.0)
    assert torch.equal(clip.frames[8:], given)
    passes = spied.system.passes
    assert [told_times(one) for one in passes] == [[1.0, 2.0], [1.0, 2.0]]
    assert torch.equal(passes[0]["keyframes"].latents[:, :, :1], encoded(spied.system, given[:1]))
    assert torch.equal(passes[0]["keyframes"].latents[:, :, 1:], encoded(spied.system, given[4:5]))
    assert torch.equal(passes[1]["keyframes"].latents[:, :, :1], encoded(spied.system, clip.frames[4:5]))
    assert torch.equal(passes[1]["keyframes"].latents[:, :, 1:], encoded(spied.system, clip.frames[8:9]))
    later = to_bytes(spied.system.autoencoder.decode(passes[0]["made"]))[0]
    assert (clip.frames[4:8].int() - later[:4].int()).abs().max() <= 1  # decoded in other pieces


def test_two_clips_are_connected(spied):
    a, b = film(7, 7), film(6, 8)
    clip = spied.generate(PROMPT, Conditions(between=(a, b)), seed=1, seconds=0.375)
    assert torch.equal(clip.frames[:7], a)
    assert torch.equal(clip.frames[-6:], b)
    assert len(clip.frames) == 7 + 3 + 6
    (one,) = spied.system.passes
    assert torch.equal(one["made"][:, :, :2], encoded(spied.system, a[2:]))
    assert told_times(one) == [8 / 4]  # frame 10 in a window that begins at 2
    assert torch.equal(one["keyframes"].latents, encoded(spied.system, b[:1]))


def test_a_loop_leads_back_to_its_first_frame(spied):
    clip = spied.generate(PROMPT, Conditions(loop=True), seed=1)
    still, one = spied.system.passes
    assert len(clip.frames) == 8  # the ninth would be the first again
    assert still["shape"].frames == 1
    assert torch.equal(one["made"][:, :, :1], encoded(spied.system, clip.frames[:1]))
    assert told_times(one) == [8 / 4]
    assert torch.equal(one["keyframes"].latents, encoded(spied.system, clip.frames[:1]))


def test_a_long_loop_is_told_its_own_beginning(spied):
    """In its last window, which has a context on both sides."""
    picture = film(1, 3)[0]
    request = Request(PROMPT, seed=1, seconds=3.5, window=17, conditions=Conditions(loop=True, image=picture))
    clip = spied.generate(request)
    assert len(clip.frames) == 28
    last = spied.system.passes[-1]
    assert told_times(last) == [3.0, 4.0]  # frames 28 and 32 in a window that begins at 16
    assert torch.equal(last["made"][:, :, :2], encoded(spied.system, clip.frames[16:21]))
    assert torch.equal(last["keyframes"].latents[:, :, :1], encoded(spied.system, picture[None]))
    assert torch.equal(last["keyframes"].latents[:, :, 1:], encoded(spied.system, clip.frames[4:5]))
    assert all(not told_times(one) for one in spied.system.passes[:-1])


def test_a_given_clip_is_made_a_loop(spied):
    given = film(9, 9)
    clip = spied.generate(PROMPT, Conditions(extend=given, loop=True), seed=1, seconds=0.375)
    assert torch.equal(clip.frames[:9], given)
    assert len(clip.frames) == 12
    (one,) = spied.system.passes
    assert torch.equal(one["keyframes"].latents, encoded(spied.system, given[:1]))
    assert told_times(one) == [8 / 4]


@pytest.mark.parametrize("factor", [2, 4])
def test_interpolation_keeps_the_given_frames_where_they_were(spied, factor):
    given = film(5, 10)
    clip = spied.generate(PROMPT, Conditions(interpolate=given, factor=factor), seed=1)
    assert len(clip.frames) == 4 * factor + 1
    assert clip.fps == 8.0 * factor
    assert torch.equal(clip.frames[::factor], given)
    windows = spied.plan(Request(PROMPT, conditions=Conditions(interpolate=given, factor=factor))).timeline.windows
    for one, window in zip(spied.system.passes, windows):
        inside = [index for index in range(window.fresh, min(window.stop, len(clip.frames))) if index % factor == 0]
        assert told_times(one) == [(index - window.start) / 4 for index in inside]
        tokens = torch.cat([encoded(spied.system, given[index // factor][None]) for index in inside], dim=2)
        assert torch.equal(one["keyframes"].latents, tokens)


def test_painting_leaves_the_rest_alone_and_forgets_what_was_there(spied):
    given, mask = film(9, 11), bars(9)
    clip = spied.generate(PROMPT, Conditions(inpaint=given, mask=mask), seed=1)
    assert torch.equal(clip.frames[~mask], given[~mask])
    assert not torch.equal(clip.frames[mask], given[mask])
    (one,) = spied.system.passes
    kept = one["known"].mask[0]
    assert kept.any()
    assert torch.equal(one["made"][:, :, kept], one["known"].latents[:, :, kept])  # to the bit
    other = given.clone()
    other[mask] = 255 - other[mask]
    assert torch.equal(spied.generate(PROMPT, Conditions(inpaint=other, mask=mask), seed=1).frames, clip.frames)


def test_what_is_kept_far_from_a_hole_is_the_encoded_clip(spied):
    """Where the encoder does not see the hole, the known latents are those of the clip itself."""
    given, mask = film(9, 12, H, 128), torch.zeros(9, H, 128, dtype=torch.bool)
    mask[:, :, :10] = True
    spied.generate(PROMPT, Conditions(inpaint=given, mask=mask), seed=1, size=(128, H))
    (one,) = spied.system.passes
    assert one["known"].mask[0, :, :, 2:].all()
    assert not one["known"].mask[0, :, :, :2].any()  # ten columns of pixels touch two of latents
    whole = encoded(spied.system, given)
    difference = (one["known"].latents - whole).abs()
    assert difference[..., -1].max() < 0.2 * difference[..., :2].max()


def test_an_edit_of_strength_one_is_the_prompt_alone(model):
    given = film(9, 13)
    free = model.generate(PROMPT, seed=3)
    assert torch.equal(model.generate(PROMPT, Conditions(edit=given, strength=1.0), seed=3).frames, free.frames)


def test_a_weak_edit_is_near_the_clip_and_takes_fewer_steps(spied):
    given = film(9, 13)
    back = to_bytes(spied.system.autoencoder.decode(encoded(spied.system, given)))[0].float()
    distances, counts = [], []
    for strength in (0.05, 0.4, 0.9):
        plan = spied.plan(Request(PROMPT, seed=3, steps=20, conditions=Conditions(edit=given, strength=strength)))
        frames = torch.cat(list(spied.frames(plan)))
        told = spied.system.passes[-1]
        assert told["start"].level == strength
        counts.append(told["evaluations"])
        distances.append(float((frames.float() - back).abs().mean()))
    assert distances == sorted(distances)
    assert counts == sorted(counts)
    assert counts[0] < counts[1] < 20


def test_an_edit_inside_a_mask_keeps_the_rest(spied):
    given, mask = film(9, 14), bars(9)
    clip = spied.generate(PROMPT, Conditions(edit=given, mask=mask, strength=0.5), seed=1)
    assert torch.equal(clip.frames[~mask], given[~mask])
    assert spied.system.passes[0]["start"].level == 0.5


def test_an_edited_first_picture_is_kept_while_the_rest_follows(spied):
    given, picture = film(9, 15), film(1, 16)[0]
    spied.generate(PROMPT, Conditions(edit=given, image=picture), seed=1)
    (one,) = spied.system.passes
    torch.testing.assert_close(one["made"][:, :, :1], encoded(spied.system, picture[None]))
    assert one["start"].level == 0.6


def test_long_clips_are_changed_window_by_window(spied):
    given, mask = film(21, 17), bars(21)
    clip = spied.generate(PROMPT, Conditions(inpaint=given, mask=mask), seed=1)
    assert torch.equal(clip.frames[~mask], given[~mask])
    assert len(spied.system.passes) > 1
    window = spied.plan(Request(PROMPT, conditions=Conditions(inpaint=given, mask=mask))).timeline.windows[1]
    kept = spied.system.passes[1]["known"]
    beginning = encoded(spied.system, clip.frames[window.start : window.fresh])
    torch.testing.assert_close(kept.latents[:, :, : beginning.shape[2]], beginning)
    assert kept.mask[:, : beginning.shape[2]].all()


def test_prompts_change_along_the_clip(spied):
    other = "a green frog jumps over the pond"
    clip = spied.generate(PROMPT, seconds=3.0, prompt_at=((1.6, other),), seed=1)
    plan = spied.plan(Request(PROMPT, seconds=3.0, prompt_at=((1.6, other),)))
    assert [plan.prompt_of(window) for window in plan.timeline.windows] == [
        one["prompt"] for one in spied.system.passes
    ]
    first = next(window for window in plan.timeline.windows if plan.prompt_of(window) == other)
    assert first.fresh == 13  # the place nearest to frame 12.8 at which a window may stop
    same = spied.generate(PROMPT, seconds=1.6, seed=1)
    assert torch.equal(clip.frames[:9], same.frames[:9])


@pytest.mark.parametrize("by", ["replace", "guide"])
def test_models_that_know_one_level_only_keep_what_is_known_too(spied, by):
    picture = film(1, 3)[0]
    held = spied.generate(PROMPT, Conditions(image=picture), seed=1)
    other = spied.generate(PROMPT, Conditions(image=picture, known_by=by), seed=1)
    assert torch.equal(spied.system.passes[-1]["made"][:, :, :1], encoded(spied.system, picture[None]))
    assert (
        torch.equal(held.frames[:1], other.frames[:1]) or (held.frames[0].int() - other.frames[0].int()).abs().max() < 2
    )
    assert not torch.equal(held.frames, other.frames)
    with pytest.raises(ValueError, match="later frames need hold"):
        spied.plan(Request(PROMPT, conditions=Conditions(last=picture, known_by=by)))


def test_what_a_model_was_not_trained_for_is_refused(model, monkeypatch):
    defaults, picture, clip = model.system.defaults, film(1, 3)[0], film(9, 3)
    asked = {
        "image": Request(PROMPT, conditions=Conditions(image=picture)),
        "mask": Request(PROMPT, conditions=Conditions(edit=clip, mask=bars(9))),
        "windows": Request(PROMPT, seconds=4.0),
        "last": Request(PROMPT, conditions=Conditions(last=picture)),
        "before": Request(PROMPT, conditions=Conditions(extend=clip, before=True)),
        "loop": Request(PROMPT, conditions=Conditions(loop=True)),
        "between": Request(PROMPT, conditions=Conditions(between=(clip, clip))),
        "interpolate": Request(PROMPT, conditions=Conditions(interpolate=clip)),
    }
    free = (Request(PROMPT), Request(PROMPT, conditions=Conditions(edit=clip)))
    monkeypatch.setattr(model.system, "defaults", replace(defaults, knows=("levels",)))
    for name, request in asked.items():
        if name in ("image", "mask", "windows"):
            model.plan(request)
        else:
            with pytest.raises(ValueError, match=f"{name}: tells a frame behind the beginning, which this model"):
                model.plan(request)
    monkeypatch.setattr(model.system, "defaults", replace(defaults, knows=()))
    for name in ("image", "mask", "windows"):
        with pytest.raises(ValueError, match=r"not trained to keep what is given.*known_by=guide"):
            model.plan(asked[name])
        model.plan(replace(asked[name], conditions=replace(asked[name].conditions, known_by="guide")))
    for request in free:
        model.plan(request)


@pytest.mark.parametrize(("kind", "knows"), [(T2V_1_3B, ()), (T2V_A14B, ()), (TI2V_5B, ("levels",))])
def test_released_models_know_what_they_were_trained_for(kind, knows):
    assert defaults_of(kind, kind.shift, "unipc", "wan").knows == knows


@pytest.mark.parametrize("given", ["image", "edit"])
def test_the_weight_of_guidance_reaches_the_sampler(model, given):
    """A beginning and a region: without weight it is replacement, and another weight makes another clip."""
    said = {"image": film(1, 3)[0]} if given == "image" else {"edit": film(9, 3), "mask": bars(9)}

    def made(by: str, weight: float | None = None) -> Tensor:
        conditions = Conditions(**said, known_by=by, guide_weight=weight)
        return model.generate(PROMPT, conditions, seed=1).frames

    replaced = made("replace")
    assert (made("guide", 0.0).int() - replaced.int()).abs().max() <= 1  # with gradients other kernels run
    assert (made("guide", 8.0).int() - replaced.int()).abs().max() > 1
    assert torch.equal(made("guide"), made("guide", GUIDE_WEIGHT))


def files(folder) -> dict[str, str]:
    """Inputs on disk: pictures, clips, masks."""
    names = {name: str(folder / name) for name in ("a.mp4", "b.mp4", "first.png", "last.png", "mask.png", "mask.mp4")}
    write_video(names["a.mp4"], film(9, 20), 8.0)
    write_video(names["b.mp4"], film(9, 21), 8.0)
    write_picture(names["first.png"], film(1, 22)[0])
    write_picture(names["last.png"], film(1, 23)[0])
    mask = bars(9)
    write_picture(names["mask.png"], mask[2, ..., None].expand(-1, -1, 3).to(torch.uint8) * 255)
    write_video(names["mask.mp4"], mask[..., None].expand(-1, -1, -1, 3).to(torch.uint8) * 255, 8.0)
    return names


REQUESTS = {
    "image": {"image": "first.png"},
    "image and last": {"image": "first.png", "last": "last.png"},
    "extend": {"extend": "a.mp4"},
    "before": {"extend": "a.mp4", "before": True},
    "between": {"between": ("a.mp4", "b.mp4")},
    "loop": {"loop": True},
    "loop of a clip": {"extend": "a.mp4", "loop": True},
    "interpolate": {"interpolate": "a.mp4", "factor": 4},
    "inpaint": {"inpaint": "a.mp4", "mask": "mask.mp4"},
    "edit": {"edit": "a.mp4", "strength": 0.5, "mask": "mask.png"},
    "guided": {"image": "first.png", "known_by": "guide"},
}


def named(said: dict, names: dict[str, str]) -> Conditions:
    def full(value):
        return tuple(map(full, value)) if isinstance(value, tuple) else names.get(value, value)

    return Conditions(
        **{name: full(value) if isinstance(value, (str, tuple)) else value for name, value in said.items()}
    )


@pytest.mark.parametrize("mode", REQUESTS)
def test_the_manifest_makes_it_again_and_refuses_other_inputs(model, tmp_path, mode):
    names = files(tmp_path)
    plan = model.plan(Request(PROMPT, seed=4, conditions=named(REQUESTS[mode], names), model=model.name))
    manifest = model.write(plan, tmp_path / "x.mp4")
    assert Manifest.from_json(manifest.to_json(), "x") == manifest == read_manifest(tmp_path / "x.mp4")
    request = Request.from_manifest(manifest)
    changed = Model(model.name, model.system)
    model.write(changed.plan(request), tmp_path / "y.mp4")
    assert (tmp_path / "x.mp4").read_bytes() == (tmp_path / "y.mp4").read_bytes()
    assert not [path for path in tmp_path.iterdir() if "latents" in path.name]
    for name, source in request.conditions.sources().items():
        kept = Path(source).read_bytes()
        Path(source).write_bytes(kept + b"0")
        with pytest.raises(ValueError, match="not the file that the clip was made from") as caught:
            model.plan(request)
        assert source in str(caught.value), name
        Path(source).write_bytes(kept)


def test_frames_in_memory_cannot_be_made_again_from_the_file(model, tmp_path):
    manifest = model.write(model.plan(Request(PROMPT, conditions=Conditions(image=film(1)[0]))), tmp_path / "x.mp4")
    with pytest.raises(ValueError, match="made from frames in memory"):
        model.plan(Request.from_manifest(manifest))


@pytest.mark.parametrize("size", [3.0, 1.0])
def test_lengths_come_back_from_the_manifest(model, tmp_path, size):
    plan = model.plan(Request(PROMPT, seed=4, seconds=size, prompt_at=((size / 2, "a green frog"),), model=model.name))
    manifest = model.write(plan, tmp_path / "x.mp4")
    assert manifest.frames == 8 * size
    assert model.plan(Request.from_manifest(manifest)) == plan
    assert len(read_video(tmp_path / "x.mp4")[0]) == 8 * size


def test_a_window_that_fails_keeps_those_before_it(model, tmp_path):
    """Latents of the first windows wait on disk; going on from them gives the same bytes as never having failed."""
    plan = model.plan(Request(PROMPT, seed=4, seconds=3.0, model=model.name))
    broken = Spy(model.system)
    sample, count = broken.sample, 0

    def fails(*args):
        nonlocal count
        count += 1
        if count == 3:
            raise MemoryError("no memory left")
        return sample(*args)

    broken.sample = fails
    path = tmp_path / "x.mp4"
    with pytest.raises(GenerationError, match=r"no memory left.*go on with: carrara generate --from") as caught:
        Model(model.name, broken).write(plan, path)
    kept = tmp_path / "x.mp4.latents.safetensors"
    assert str(kept) in str(caught.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([kept.name, window_file(kept, 1).name])
    again = Model(model.name, Spy(model.system))
    again.write(plan, path, saved=kept)
    assert len(again.system.passes) == len(plan.timeline.windows) - 2
    assert not window_file(kept, 2).exists()
    model.write(plan, tmp_path / "whole.mp4")
    assert path.read_bytes() == (tmp_path / "whole.mp4").read_bytes()
    save_latents(kept, torch.zeros(1, 4, 1, 2, 2), model.manifest(plan))
    with pytest.raises(GenerationError, match="latents of shape"):
        model.write(plan, tmp_path / "z.mp4", saved=kept)


def test_frames_are_forgotten_while_a_long_clip_is_made(model):
    """Of what was made at most two windows are alive at any time."""
    import weakref

    plan = model.plan(Request(PROMPT, seed=4, seconds=12.0, steps=1))
    alive: list[weakref.ref] = []
    most = 0
    for chunk in model.frames(plan):
        storage = chunk.untyped_storage()
        alive.append(weakref.ref(storage))
        del storage, chunk
        most = max(most, sum(ref() is not None for ref in alive))
    assert len(alive) > 20
    assert most <= 3


def test_frames_made_backwards_wait_on_disk(model, monkeypatch):
    """Of what was made before a clip at most two windows are in memory at any time."""
    import weakref

    alive: list[weakref.ref] = []
    most: list[int] = []
    add = Remembered.add

    def watched(self: Remembered, index: int, frames: Tensor) -> None:
        alive.append(weakref.ref(frames.untyped_storage()))
        most.append(sum(ref() is not None for ref in alive))
        add(self, index, frames)

    monkeypatch.setattr(Remembered, "add", watched)
    clip = model.generate(PROMPT, Conditions(extend=film(6, 6), before=True), seed=4, seconds=6.0, steps=1)
    assert len(clip.frames) == 48 + 6
    assert len(alive) > 5
    assert max(most) <= 2


def test_what_waits_on_disk_waits_beside_the_file_for_other_places_may_be_memory(model, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "nowhere"))
    plan = model.plan(Request(PROMPT, conditions=Conditions(extend=film(6, 6), before=True), seed=4, steps=1))
    model.write(plan, tmp_path / "new" / "clip.mp4")  # a folder that is not there yet
    assert [path.name for path in tmp_path.rglob("*")] == ["new", "clip.mp4"]


def test_an_empty_prompt_is_enough_where_there_is_a_picture(model):
    plan = model.plan(Request("", conditions=Conditions(image=film(1)[0])))
    assert plan.sampling.guidance == 1.0
    assert model.plan(Request("", conditions=Conditions(image=film(1)[0]), guidance=3.0)).sampling.guidance == 3.0
    with pytest.raises(ValueError, match="prompt is empty"):
        model.plan(Request("", conditions=Conditions(loop=True)))
