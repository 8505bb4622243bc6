"""Pictures, clips and masks as people have them: what can be meant in one way is done, the rest is one clear line."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from carrara.core.media import write_picture, write_video
from carrara.core.types import Stride
from carrara.generation.conditions import Conditions
from carrara.generation.holes import filled, latent_hole
from carrara.generation.inputs import Footage, digest, fit_frames, fit_mask, read_clip, read_mask, read_picture


def ramp(height: int, width: int) -> torch.Tensor:
    """A picture whose left is dark and whose top is blue, so that turning it shows."""
    columns = torch.linspace(0, 255, width).expand(height, width)
    rows = torch.linspace(255, 0, height)[:, None].expand(height, width)
    return torch.stack([columns, columns, rows], dim=-1).round().to(torch.uint8)


def test_a_picture_is_its_pixels_and_a_turned_one_is_upright(tmp_path):
    pixels = ramp(16, 32)
    write_picture(tmp_path / "a.png", pixels)
    assert torch.equal(read_picture(tmp_path / "a.png", "image").frames[0], pixels)
    assert torch.equal(read_picture(pixels, "image").frames[0], pixels)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn right to show
    Image.fromarray(pixels.rot90(1, (0, 1)).numpy()).save(tmp_path / "b.png", exif=exif)
    assert torch.equal(read_picture(tmp_path / "b.png", "image").frames[0], pixels)


def saved(folder, kind):
    """A file that is no plain picture, and what is said of it."""
    pixels = ramp(16, 32).numpy()
    if kind == "animated":
        write_video(folder / "x.gif", torch.from_numpy(np.stack([pixels, 255 - pixels])), 8)
        return folder / "x.gif", r"is animated \(2 pictures\), and image is one"
    if kind == "sheet":
        write_video(folder / "x.png", torch.from_numpy(np.stack([pixels, 255 - pixels])), 8)
        return folder / "x.png", "holds 2 frames, and image is one picture"
    if kind == "transparent":
        alpha = np.full((16, 32, 1), 200, np.uint8)
        Image.fromarray(np.concatenate([pixels, alpha], -1), "RGBA").save(folder / "x.png")
        return folder / "x.png", "partly transparent; put it on a background"
    if kind == "transparent palette":
        Image.fromarray(pixels).quantize(8).save(folder / "x.png", transparency=0)
        return folder / "x.png", "partly transparent"
    if kind == "16 bits":
        Image.fromarray(np.arange(512, dtype=np.uint16).reshape(16, 32)).save(folder / "x.png")
        return folder / "x.png", "more than 8 bits a channel"
    if kind == "clip":
        write_video(folder / "x.mp4", torch.from_numpy(np.stack([pixels] * 5)), 8)
        return folder / "x.mp4", "not a readable picture; .* a clip goes to extend"
    if kind == "cut":
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(folder / "y.png")
        (folder / "x.png").write_bytes((folder / "y.png").read_bytes()[:3000])
        return folder / "x.png", "damaged"
    if kind == "folder":
        return folder, "is a folder, not a file"
    (folder / "x.png").touch()
    return (folder / "x.png", "not a readable picture") if kind == "empty" else (folder / "none.png", "no such file")


KINDS = ("animated", "sheet", "transparent", "transparent palette", "16 bits", "clip", "cut", "folder", "empty", "none")


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_plain_picture_is_one_clear_line(tmp_path, kind):
    path, said = saved(tmp_path, kind)
    with pytest.raises(ValueError, match=said) as caught:
        read_picture(path, "image")
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_an_opaque_alpha_channel_and_grey_are_plain(tmp_path):
    pixels = ramp(16, 32)
    alpha = torch.full((16, 32, 1), 255, dtype=torch.uint8)
    Image.fromarray(torch.cat([pixels, alpha], -1).numpy(), "RGBA").save(tmp_path / "a.png")
    assert torch.equal(read_picture(tmp_path / "a.png", "image").frames[0], pixels)
    Image.fromarray(pixels[..., 0].numpy(), "L").save(tmp_path / "b.png")
    assert torch.equal(read_picture(tmp_path / "b.png", "image").frames[0], pixels[..., :1].expand(-1, -1, 3))


@pytest.mark.parametrize(
    ("name", "codec", "pixels"),
    [("x.mov", "qtrle", "argb"), ("x.mkv", "ffv1", "yuva420p"), ("x.webm", "libvpx-vp9", "yuva420p")],
)
def test_videos_that_one_can_see_through_are_refused(tmp_path, name, codec, pixels):
    """Also a WebM, whose decoder does not look at its alpha channel: only a tag says that it is there."""
    import av

    path = tmp_path / name
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=8)
        stream.width, stream.height, stream.pix_fmt = 32, 16, pixels
        for _ in range(9):
            frame = av.VideoFrame.from_ndarray(np.zeros((16, 32, 3), np.uint8), format="rgb24")
            container.mux(stream.encode(frame.reformat(format=stream.pix_fmt)))
        container.mux(stream.encode(None))
    for read in (
        lambda: read_clip(path, "extend", 1, ""),
        lambda: read_mask(path, Footage(ramp(16, 32)[None], None, "x")),
    ):
        with pytest.raises(ValueError, match=r"x\..*: has an alpha channel; put it on a background"):
            read()


def test_clips_and_their_masks_are_seen_with_square_pixels(tmp_path):
    """A wide picture that is stored squeezed needs no crop where it is made wide, and its mask is as wide as it is."""
    import av

    path = tmp_path / "clip.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=8)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        stream.codec_context.sample_aspect_ratio = 2
        for _ in range(5):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(255 - ramp(32, 32).numpy(), format="rgb24")))
        container.mux(stream.encode(None))
    clip = read_clip(path, "extend", 5, "a motion")
    assert fit_frames(clip, 16, 32, None).shape == (5, 16, 32, 3)
    with pytest.raises(ValueError, match="64x32, and the clip to be made is 32x32"):
        fit_frames(clip, 32, 32, None)
    assert read_mask(path, clip).shape == (5, 32, 64)


def test_clips_that_are_too_short_say_what_to_do(tmp_path):
    clip = torch.stack([ramp(16, 32)] * 4)
    write_video(tmp_path / "x.gif", clip, 8)
    with pytest.raises(ValueError, match="4 frames, and extend needs at least 5: a motion"):
        read_clip(clip, "extend", 5, "a motion")
    with pytest.raises(ValueError, match="1 frame, and extend needs"):
        read_clip(clip[:1], "extend", 5, "a motion")
    with pytest.raises(ValueError, match="expected uint8 t h w 3"):
        read_clip(clip.float(), "extend", 5, "a motion")


@pytest.mark.parametrize(("size", "fit"), [((32, 64), None), ((16, 32), None), ((40, 40), "crop"), ((24, 72), "pad")])
def test_frames_are_scaled_and_stay_in_place(size, fit):
    """Whatever is cut off or added, what was in the middle stays there."""
    frames = ramp(16, 32)[None]
    made = fit_frames(Footage(frames, None, "x"), *size, fit)
    assert made.shape == (1, *size, 3)
    assert made.dtype == torch.uint8
    middle = made[0, size[0] // 2 - 1 : size[0] // 2 + 1, size[1] // 2 - 1 : size[1] // 2 + 1].float().mean((0, 1))
    assert (middle - frames[0, 7:9, 15:17].float().mean((0, 1))).abs().max() <= 2
    if fit == "pad":
        assert (made[:, :, :12] == 0).all()
        assert (made[:, :, 60:] == 0).all()
        assert (made[:, :, 14:58] > 0).any(-1).all()
    elif fit == "crop":
        assert (made[0, :, 0] > 40).any(-1).all()
    if size == (16, 32):
        assert made is frames


def test_another_shape_needs_a_word():
    with pytest.raises(ValueError, match=r"x\.png: 32x16, and the clip to be made is 32x32; crop cuts off"):
        fit_frames(Footage(ramp(16, 32)[None], None, "x.png"), 32, 32, None)


@pytest.mark.parametrize("fit", ["crop", "pad", None])
def test_a_mask_is_fitted_as_its_clip(fit):
    frames = torch.zeros(3, 16, 32, 3, dtype=torch.uint8)
    frames[:, 4:9, 10:20] = 255
    height, width = (48, 48) if fit else (32, 64)
    footage = Footage(frames, None, "x")
    white = fit_frames(footage, height, width, fit).float().mean(-1) > 127
    mask = fit_mask(frames[..., 0] > 0, footage, height, width, fit)
    assert (mask | ~white).all()  # covers all that it covered
    assert (mask & ~white).float().mean() < 0.05


def test_masks_of_another_size_or_length_are_refused(tmp_path):
    clip = Footage(torch.zeros(9, 16, 32, 3, dtype=torch.uint8), 8.0, "a.mp4")
    white = torch.full((5, 16, 32, 3), 255, dtype=torch.uint8)
    write_video(tmp_path / "five.gif", white, 8)
    write_picture(tmp_path / "one.png", white[0])
    write_picture(tmp_path / "small.png", white[0, :8])
    write_picture(tmp_path / "black.png", white[0] * 0)
    assert read_mask(tmp_path / "one.png", clip).shape == (9, 16, 32)
    for name, said in (
        ("five.gif", "a mask of 5 frames for a clip of 9; give one picture for all, or 9 frames"),
        ("small.png", r"32x8, and a\.mp4 is 32x16; draw the mask at the clip's own size"),
        ("black.png", "marks nothing; make it white where to paint"),
    ):
        with pytest.raises(ValueError, match=said):
            read_mask(tmp_path / name, clip)
    with pytest.raises(ValueError, match="expected bool h w or t h w"):
        read_mask(white, clip)


def test_a_mask_that_is_cropped_away_is_refused():
    mask = torch.zeros(1, 16, 64, dtype=torch.bool)
    mask[:, :, :4] = True
    footage = Footage(torch.zeros(1, 16, 64, 3, dtype=torch.uint8), None, "x")
    with pytest.raises(ValueError, match="only what is cropped away"):
        fit_mask(mask, footage, 16, 16, "crop")
    assert fit_mask(mask, footage, 16, 16, "pad").any()


def test_hashes_tell_files_and_frames_apart(tmp_path):
    (tmp_path / "a").write_bytes(b"a")
    (tmp_path / "b").write_bytes(b"b")
    frames = ramp(16, 32)
    found = {digest(tmp_path / "a"), digest(str(tmp_path / "b")), digest(frames), digest(frames.flip(0))}
    assert len(found) == 4
    assert digest(frames) == digest(frames.clone())
    assert digest(frames) != digest(frames.reshape(32, 16, 3))


def test_a_hole_takes_every_latent_it_touches_in_every_frame_that_a_latent_stands_for():
    hole = torch.zeros(9, 32, 64, dtype=torch.bool)
    hole[0, 0, 0] = hole[3, 31, 63] = True
    latent = latent_hole(hole, Stride(4, 8))
    assert latent.shape == (3, 4, 8)
    expected = torch.zeros(3, 4, 8, dtype=torch.bool)
    expected[0, 0, 0] = True  # the first frame is a latent frame of its own
    expected[1, 3, 7] = True  # frames 1 to 4
    assert torch.equal(latent, expected)


def test_a_hole_is_filled_from_around_it_whatever_was_there():
    frames = torch.stack([ramp(24, 40)] * 2)
    hole = torch.zeros(2, 24, 40, dtype=torch.bool)
    hole[0, 8:16, 10:20] = True
    other = frames.clone()
    other[hole] = 255 - other[hole]
    smooth = filled(frames, hole)
    assert torch.equal(smooth, filled(other, hole))
    assert torch.equal(smooth[~hole], frames[~hole])
    assert (smooth[hole].int() - frames[hole].int()).abs().float().mean() < 25  # near what a smooth picture had there
    assert (filled(frames, torch.ones_like(hole)) == 128).all()


@pytest.mark.parametrize(
    ("said", "wrong"),
    [
        ("extend and edit: each is another way", {"extend": "a", "edit": "b"}),
        ("image and extend: the clip gives these frames itself", {"extend": "a", "image": "b"}),
        ("last and between: the clip gives these frames", {"between": ("a", "b"), "last": "c"}),
        ("image and inpaint: the clip gives the frames; to spread", {"inpaint": "a", "mask": "m", "image": "b"}),
        ("loop and edit: the given clip already says", {"edit": "a", "loop": True}),
        ("loop and last: a loop ends where it begins", {"loop": True, "last": "a"}),
        ("before: needs extend", {"before": True}),
        ("before and loop: what is made before", {"extend": "a", "before": True, "loop": True}),
        ("factor: needs interpolate", {"factor": 2}),
        ("mask: needs inpaint", {"mask": "a", "extend": "b"}),
        ("strength: needs edit or inpaint", {"strength": 0.5}),
        ("inpaint: needs a mask", {"inpaint": "a"}),
        ("factor=3: must be 2 or 4", {"interpolate": "a", "factor": 3}),
        ("factor=2.0: must be 2 or 4", {"interpolate": "a", "factor": 2.0}),
        ("strength=0: must be more than 0", {"edit": "a", "strength": 0.0}),
        ("strength=1.5", {"edit": "a", "strength": 1.5}),
        ("strength=nan: must be a number", {"edit": "a", "strength": float("nan")}),
        ("unknown fit 'crob'; did you mean crop", {"image": "a", "fit": "crob"}),
        ("unknown known_by 'holt'; did you mean hold", {"image": "a", "known_by": "holt"}),
        ("guide_weight=4.0: says how strongly known_by=guide", {"image": "a", "guide_weight": 4.0}),
        ("guide_weight=-1.0: must be", {"image": "a", "known_by": "guide", "guide_weight": -1.0}),
        ("guide_weight=nan: must be", {"image": "a", "known_by": "guide", "guide_weight": float("nan")}),
        ("between: give two clips", {"between": ("a",)}),
        ("image is empty: say which file", {"image": ""}),
        ("between 2 is empty", {"between": ("a", "")}),
        ("between 2 is a NoneType: expected a path", {"between": ("a", None)}),
        ("image is a ndarray: expected a path, or a torch tensor", {"image": np.zeros((4, 4, 3), np.uint8)}),
        ("strength=True: must be a number", {"edit": "a", "strength": True}),
        ("loop='no': must be True or False", {"loop": "no"}),
        ("fit: says what to do with pictures and clips", {"fit": "crop", "loop": True}),
    ],
)
def test_what_does_not_go_together_is_refused_with_the_reason(said, wrong):
    with pytest.raises(ValueError, match=said) as caught:
        Conditions(**wrong).check()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "right",
    [
        {},
        {"image": "a", "last": "b", "fit": "crop"},
        {"image": "a", "loop": True},
        {"extend": "a", "last": "b"},
        {"extend": "a", "loop": True},
        {"extend": "a", "before": True},
        {"between": ("a", "b")},
        {"interpolate": "a", "factor": 4},
        {"inpaint": "a", "mask": "m", "strength": 0.7},
        {"edit": "a", "mask": "m", "image": "b", "strength": 1.0, "known_by": "guide", "guide_weight": 5.0},
    ],
)
def test_what_goes_together_comes_back_from_its_record(right):
    conditions = Conditions(**right)
    conditions.check()
    assert Conditions.from_recorded(conditions.recorded(), "x") == conditions
    with pytest.raises(ValueError, match="no condition 'imege'; did you mean image"):
        Conditions.from_recorded({"imege": "a"}, "x")
