"""Media files: what goes in comes out, the same bytes every time, and never a part of a file."""

from __future__ import annotations

import os
import subprocess
import sys
import tracemalloc
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from carrara.core.media import (
    EXTENSIONS,
    Record,
    check_output,
    contact_sheet,
    read_video,
    write_picture,
    write_video,
)
from carrara.core.types import VideoShape

SATURATED = [
    *[(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (0, 255, 255), (255, 0, 255)],
    *[(255, 255, 255), (0, 0, 0), (128, 128, 128), (200, 30, 90), (255, 128, 0), (40, 90, 20)],
]
METADATA = {"prompt": 'a "red" ball, é 球', "manifest": '{"seed": 1, "name": "é"}', "empty": "", "list": "[1]"}


def bars(frames: int = 6, height: int = 32, step: int = 0) -> np.ndarray:
    """Upright bars of saturated colours, 16 pixels wide, that move right by `step` bars every second frame."""
    row = np.repeat(np.array(SATURATED, np.uint8), 16, axis=0)
    return np.stack(
        [np.broadcast_to(np.roll(row, k // 2 * step * 16, axis=0), (height, *row.shape)) for k in range(frames)]
    )


def centres(frames: np.ndarray) -> np.ndarray:
    return np.asarray(frames)[:, 4:-4, 8::16].astype(int)


@pytest.mark.parametrize("extension", EXTENSIONS)
@pytest.mark.parametrize("step", [0, 1])  # still frames too: GIF and WebP merge equal neighbours
def test_colours_frames_rate_and_metadata_come_back(tmp_path, extension, step):
    path = tmp_path / f"clip{extension}"
    frames = bars(step=step)
    write_video(path, torch.from_numpy(frames), 24, METADATA)
    read, fps, metadata = read_video(path)
    assert read.dtype == torch.uint8
    assert tuple(read.shape) == frames.shape
    assert fps == 24
    assert metadata == METADATA
    assert abs(centres(read) - centres(frames)).max() <= (0 if extension == ".png" else 4)


@pytest.mark.parametrize("extension", EXTENSIONS)
@pytest.mark.parametrize("count", [1, 2, 17])
def test_any_number_of_frames_comes_back(tmp_path, extension, count):
    frames = np.zeros((count, 16, 32, 3), np.uint8)
    frames[count // 2 :, :, 16:] = 200
    write_video(tmp_path / f"x{extension}", frames, 16)
    read, fps, _ = read_video(tmp_path / f"x{extension}")
    assert tuple(read.shape) == frames.shape
    assert fps == 16
    assert abs(read.numpy().astype(int) - frames)[:, 4:12, [8, 24]].max() <= 4


@pytest.mark.parametrize("extension", EXTENSIONS)
def test_equal_frames_give_equal_bytes_whole_or_in_chunks(tmp_path, extension):
    frames = np.random.default_rng(0).integers(0, 256, (9, 32, 48, 3), np.uint8)
    files = [tmp_path / f"{name}{extension}" for name in "abc"]
    write_video(files[0], frames, 16, METADATA)
    write_video(files[1], torch.from_numpy(frames), 16.0, METADATA)
    write_video(files[2], (frames[k : k + 4] for k in range(0, 9, 4)), 16, METADATA, shape=VideoShape(9, 32, 48))
    assert files[0].read_bytes() == files[1].read_bytes() == files[2].read_bytes()


def test_mp4_is_h264_420_tagged_bt709_and_starts_fast(tmp_path):
    path = tmp_path / "x.mp4"
    write_video(path, bars(), 29.97, METADATA)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        codec = stream.codec_context
        assert (codec.name, codec.pix_fmt) == ("h264", "yuv420p")
        assert (codec.colorspace, codec.color_primaries, codec.color_trc, codec.color_range) == (1, 1, 1, 1)
        assert stream.average_rate == Fraction(2997, 100)
        assert stream.frames == 6
        frame = next(container.decode(stream))
        luma = frame.to_ndarray()[:32][4:-4, 8::16]
        assert abs(int(luma[0, 0]) - 63) <= 1  # red in BT.709 limited range: 16 + 219 * 0.2126
        assert luma.min() >= 15
        assert luma.max() <= 236
    data = path.read_bytes()
    assert 0 < data.index(b"moov") < data.index(b"mdat")


def test_long_metadata_and_fractions_of_rates_survive(tmp_path):
    write_video(tmp_path / "x.mp4", bars(), 30000 / 1001, {"x": "y" * 100_000})
    _, fps, metadata = read_video(tmp_path / "x.mp4")
    assert fps == 30000 / 1001
    assert metadata == {"x": "y" * 100_000}


@given(st.dictionaries(st.text(), st.text()), st.booleans())
def test_record_unpacks_what_it_packed(metadata, ascii_only):
    record = Record(12.5, VideoShape(5, 6, 8), metadata)
    assert Record.unpack(record.pack(ascii_only)) == record


@pytest.mark.parametrize("text", [None, "", "hello", "[]", '{"fps": 1}', '{"fps": 1, "frames": [1], "metadata": {}}'])
def test_a_foreign_comment_is_no_record(text):
    assert Record.unpack(text) is None


@pytest.mark.parametrize("extension", EXTENSIONS)
@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_nothing_is_left_when_frames_stop_coming(tmp_path, extension, error):
    def chunks():
        yield bars(3)
        raise error

    with pytest.raises(error):
        write_video(tmp_path / f"x{extension}", chunks(), 16, shape=VideoShape(6, 32, 192))
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("extension", EXTENSIONS)
def test_an_old_file_survives_a_failed_overwrite(tmp_path, extension):
    path = tmp_path / f"x{extension}"
    write_video(path, bars(), 16)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="3 frames came, 6 were announced"):
        write_video(path, iter([bars(3)]), 16, overwrite=True, shape=VideoShape(6, 32, 192))
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == [path.name]


def test_refused_before_the_first_chunk_is_asked_for(tmp_path):
    def never():
        raise AssertionError("asked for")
        yield

    (tmp_path / "there.mp4").touch()
    (tmp_path / "folder.mp4").mkdir()
    shape = VideoShape(5, 32, 32)
    for name, fps, size, said in [
        ("x.mpp4", 16, shape, "did you mean .mp4"),
        ("x", 16, shape, "without extension"),
        ("there.mp4", 16, shape, "exists already; pass --overwrite"),
        ("folder.mp4", 16, shape, "is a folder"),
        ("there.mp4/x.mp4", 16, shape, "is a file, not a folder"),
        ("n" * 300 + ".mp4", 16, shape, "too long"),
        ("a\0.mp4", 16, shape, "zero byte"),
        ("x.mp4", float("nan"), shape, "fps=nan"),
        ("x.mp4", 0, shape, "fps=0"),
        ("x.gif", 60, shape, "at most 50"),
        ("x.mp4", 16, VideoShape(5, 31, 32), "nearest 32x32"),
        ("x.webp", 16, VideoShape(5, 32, 20000), "16383"),
        ("x.mp4", 16, VideoShape(0, 32, 32), "at least one frame"),
    ]:
        with pytest.raises(ValueError, match=said):
            write_video(tmp_path / name, never(), fps, shape=size)
    with pytest.raises(ValueError, match="pass shape"):
        write_video(tmp_path / "x.mp4", never(), 16)
    assert sorted(os.listdir(tmp_path)) == ["folder.mp4", "there.mp4"]


def test_a_folder_that_cannot_be_written_is_refused():
    with pytest.raises(ValueError, match="cannot be written"):
        check_output("/proc/nowhere/x.mp4")


def test_checking_a_path_leaves_nothing_behind(tmp_path):
    check_output(tmp_path / "new/folder/x.mp4")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "frames", [np.zeros((3, 8, 8), np.uint8), np.zeros((3, 8, 8, 3), np.float32), np.zeros((3, 8, 8, 4), np.uint8)]
)
def test_other_arrays_are_refused(tmp_path, frames):
    with pytest.raises(ValueError, match="uint8 t h w 3"):
        write_video(tmp_path / "x.mp4", frames, 16)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("extension", EXTENSIONS)
@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_a_file_cut_short_is_an_error(tmp_path, extension, share):
    path = tmp_path / f"x{extension}"
    write_video(path, np.random.default_rng(0).integers(0, 256, (30, 32, 32, 3), np.uint8), 16)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(ValueError, match=r"damaged|not a readable"):
        read_video(path)


@pytest.mark.parametrize("extension", EXTENSIONS)
def test_the_beginning_of_a_longer_clip_is_that_of_the_whole(tmp_path, extension):
    path = tmp_path / f"x{extension}"
    write_video(path, bars(step=1), 16)
    whole, fps, _ = read_video(path)
    for longest in (1, 4, 6, 100):
        part, rate, _ = read_video(path, longest=longest)
        assert rate == fps
        assert (part == whole[:longest]).all()
        assert len(part) == min(longest, 6)


def test_files_without_video_and_beyond_the_limits_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no such file"):
        read_video(tmp_path / "none.mp4")
    (tmp_path / "text.mp4").write_text("not a video")
    with pytest.raises(ValueError, match="not a readable video"):
        read_video(tmp_path / "text.mp4")
    for extension in (".mp4", ".webp"):
        write_video(tmp_path / f"x{extension}", bars(step=1), 16)
        with pytest.raises(ValueError, match=r"more than 3 frames|over the limit"):
            read_video(tmp_path / f"x{extension}", max_frames=3)
        with pytest.raises(ValueError, match=r"GiB|over the limit"):
            read_video(tmp_path / f"x{extension}", max_bytes=30_000)


def test_an_ordinary_untagged_video_reads_as_bt601_with_its_own_tags(tmp_path):
    path = tmp_path / "x.mkv"
    with av.open(str(path), "w") as container:
        container.metadata["title"] = "plain"
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.bit_rate = 4_000_000
        planes = np.concatenate([np.full(64 * 48, 81), np.full(32 * 24, 90), np.full(32 * 24, 240)]).astype(np.uint8)
        for _ in range(5):  # red in BT.601
            frame = av.VideoFrame.from_ndarray(planes.reshape(72, 64), format="yuv420p")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    frames, fps, metadata = read_video(path)
    assert (tuple(frames.shape), fps) == ((5, 48, 64, 3), 25)
    assert abs(frames.numpy().astype(int) - (255, 0, 0)).max() <= 4
    assert metadata["title"] == "plain"


def test_rotated_videos_are_read_upright(tmp_path):
    """The display matrix in the header of an MP4 asks for a quarter turn."""
    path = tmp_path / "x.mp4"
    frames = np.zeros((2, 32, 64, 3), np.uint8)
    frames[:, :16, :16] = 255  # the upper left corner
    write_video(path, frames, 16)
    data = bytearray(path.read_bytes())
    identity = b"".join(value.to_bytes(4, "big") for value in (65536, 0, 0, 0, 65536, 0, 0, 0, 0x40000000))
    turned = b"".join(
        (value % 2**32).to_bytes(4, "big") for value in (0, 65536, 0, -65536, 0, 0, 32 * 65536, 0, 0x40000000)
    )
    at = data.index(identity, data.index(b"tkhd"))
    data[at : at + 36] = turned  # a quarter turn clockwise
    path.write_bytes(bytes(data))
    read = read_video(path)[0].numpy()
    assert read.shape == (2, 64, 32, 3)
    assert read[0, 4, -4].min() > 240  # the corner is at the upper right now
    assert read[0, 4, 4].max() < 15


@pytest.mark.parametrize(("aspect", "width"), [(Fraction(2), 96), (Fraction(1, 2), 24), (Fraction(1), 48)])
@pytest.mark.parametrize("turned", [False, True])
def test_pixels_are_read_as_stored_or_as_wide_as_they_are_shown(tmp_path, aspect, width, turned):
    """The aspect is that of the stored pixel, so a turned picture becomes higher and not wider."""
    path = tmp_path / "clip.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10, options={"crf": "1"})
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        stream.codec_context.sample_aspect_ratio = aspect
        if turned:
            stream.set_display_rotation(90)
        picture = np.repeat(np.array([0, 0, 200, 200], np.uint8), 12)[None, :, None].repeat(32, 0).repeat(3, 2)
        container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    stored, shown = read_video(path)[0], read_video(path, square=True)[0]
    assert stored.shape == ((1, 48, 32, 3) if turned else (1, 32, 48, 3))
    assert shown.shape == ((1, width, 32, 3) if turned else (1, 32, width, 3))
    assert (aspect == 1) == torch.equal(stored, shown)
    back = torch.nn.functional.interpolate(shown.permute(0, 3, 1, 2).float(), stored.shape[1:3], mode="area")
    assert (back.permute(0, 2, 3, 1) - stored.float()).abs().mean() < 8  # the edge lies in the same place
    if width > 48:
        with pytest.raises(ValueError, match="decodes to more than"):
            read_video(path, max_bytes=48 * 32 * 3, square=True)


def test_contact_sheets_are_tidy():
    frames = torch.zeros(17, 20, 30, 3, dtype=torch.uint8)
    sheet = contact_sheet(frames, columns=6)
    assert tuple(sheet.shape) == (3 * 22 - 2, 6 * 32 - 2, 3)
    assert (sheet[0:20, 30:32] == 255).all()  # the gap
    assert (sheet[44:, 160:] == 255).all()  # the place that is left
    assert int((sheet == 0).sum()) == frames.numel()
    assert contact_sheet(frames[:4]).shape[0] == 42  # 2 x 2
    assert torch.equal(contact_sheet(frames[:1]), frames[0])
    with pytest.raises(ValueError, match="columns=0"):
        contact_sheet(frames, columns=0)


def test_a_scaled_contact_sheet_is_an_ordinary_picture(tmp_path):
    write_picture(tmp_path / "x.png", torch.zeros(8, 9, 3, dtype=torch.uint8))
    assert tuple(read_video(tmp_path / "x.png")[0].shape) == (1, 8, 9, 3)
    with pytest.raises(ValueError, match=r"written as \.png"):
        write_picture(tmp_path / "x.jpg", torch.zeros(8, 9, 3, dtype=torch.uint8))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 12), st.integers(1, 9), st.integers(1, 9), st.sampled_from([1, 7.5, 12, 24, 50]))
def test_every_shape_and_rate_comes_back_from_pictures(tmp_path_factory, count, height, width, fps):
    frames = np.random.default_rng(count).integers(0, 2, (count, height, width, 3), np.uint8) * 255
    for extension in (".png", ".gif"):
        path = tmp_path_factory.getbasetemp() / f"shape{extension}"
        write_video(path, frames, fps, overwrite=True)
        read, rate, _ = read_video(path)
        assert rate == fps
        np.testing.assert_array_equal(read.numpy(), frames)


def test_an_avi_whose_header_counts_empty_places_is_whole_and_a_cut_one_is_not(tmp_path):
    """AVI shows a picture longer by leaving the next places empty; its header counts them."""
    path = tmp_path / "clip.avi"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for place in (0, 1, 4, 5):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 40 * place, np.uint8), format="rgb24")
            frame.pts, frame.time_base = place, Fraction(1, 10)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with av.open(str(path)) as container:
        assert container.streams.video[0].frames == 6
    frames, fps, _ = read_video(path)
    assert (len(frames), fps) == (4, 10)
    whole = path.read_bytes()
    path.write_bytes(whole[: whole.rindex(b"00dc", 0, whole.rindex(b"idx1"))])
    with pytest.raises(ValueError, match="damaged"):
        read_video(path)


def test_an_unknown_codec_and_too_many_frames_are_refused_before_decoding(tmp_path):
    path = tmp_path / "clip.mp4"
    write_video(path, np.zeros((5, 16, 16, 3), np.uint8), fps=8)
    with pytest.raises(ValueError, match="more than 4 frames"):
        read_video(path, max_frames=4)
    start = path.read_bytes().rindex(b"avc1")
    path.write_bytes(path.read_bytes()[:start] + b"xxxx" + path.read_bytes()[start + 4 :])
    with pytest.raises(ValueError, match="not known here"):
        read_video(path)


@pytest.mark.parametrize("extension", [".webp", ".gif"])
def test_a_picture_that_would_be_hours_of_its_shortest_frame_is_refused_before_anything_is_made(tmp_path, extension):
    path = tmp_path / f"slow{extension}"
    pictures = [Image.fromarray(np.full((16, 16, 3), 20 * shade, np.uint8)) for shade in range(8)]
    durations = [10, *[600_000] * 7]  # ms; 420,000 frames of 10 ms
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=durations)
    tracemalloc.start()
    with pytest.raises(ValueError, match="more than 20000 frames"):
        read_video(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2e6


def test_codecs_are_imported_when_used():
    code = "import sys, carrara.core.media; assert not {'av', 'PIL', 'torch'} & set(sys.modules), sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)
