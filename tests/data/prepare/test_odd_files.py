"""Files that are odd in one known way, made here: each ends with its pixels right, or with its reason."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image
from tests.data.prepare.filming import shot, write

from carrara.data.prepare.run import prepare
from carrara.data.prepare.settings import Settings
from carrara.data.prepared import Prepared

SMALL = Settings(frames=(5,), sizes=((64, 48), (48, 64)), most_upscaled=1.5, black=0.06)


def run(tmp_path, settings=SMALL):
    """(what is kept, rows of dropped.jsonl) of the folder `in`."""
    prepare(tmp_path / "in", tmp_path / "out", settings)
    assert sorted(path.name for path in (tmp_path / "out").iterdir() if path.suffix != ".tar") == [
        "dropped.jsonl",
        "manifest.jsonl",
        "prepared.json",
        "report",
    ]
    rows = (tmp_path / "out" / "manifest.jsonl").read_text().splitlines()
    dropped = (tmp_path / "out" / "dropped.jsonl").read_text().splitlines()
    return [json.loads(row) for row in rows], [json.loads(row) for row in dropped]


def pixels(tmp_path, number=0):
    return Prepared(tmp_path / "out").frames(number).numpy().astype(int)


def near(one, other, mean=4.0):
    """Alike up to coding and scaling."""
    assert one.shape == other.shape
    assert abs(one - other.astype(int)).mean() < mean


def frames(count=10, **more):
    return shot(0, count, **more)


def test_a_plain_film_comes_back_frame_by_frame(tmp_path):
    film = frames()
    write(tmp_path / "in/a.mp4", film)
    rows, dropped = run(tmp_path)
    assert [(row["start"], row["end"]) for row in rows] == [(0.0, 0.3125), (0.3125, 0.625)]
    assert dropped == []
    near(pixels(tmp_path, 0), film[:5])
    near(pixels(tmp_path, 1), film[5:])
    assert rows[0]["original"] == {"width": 64, "height": 48, "fps": pytest.approx(16)}


@pytest.mark.parametrize(("rotation", "turns"), [(90, 1), (180, 2), (-90, 3)])
def test_rotation_is_applied(tmp_path, rotation, turns):
    film = frames()
    write(tmp_path / "in/a.mp4", film, before=lambda stream: stream.set_display_rotation(rotation))
    run(tmp_path)
    near(pixels(tmp_path), np.rot90(film[:5], turns, axes=(1, 2)))


def test_a_flip_in_the_display_matrix_is_applied(tmp_path):
    film = frames()
    write(tmp_path / "in/a.mp4", film, before=lambda stream: stream.set_display_rotation(0, hflip=True))
    run(tmp_path)
    near(pixels(tmp_path), film[:5, :, ::-1])


def test_pixels_that_are_not_square_are_shown_as_wide_as_they_are_meant(tmp_path):
    film = frames(height=48, width=32)
    write(tmp_path / "in/a.mp4", film, aspect=Fraction(2))
    rows, _ = run(tmp_path)
    assert (rows[0]["width"], rows[0]["height"]) == (64, 48)
    assert rows[0]["original"]["width"] == 64
    near(pixels(tmp_path)[:, :, ::2], film[:5], 8)


def test_a_start_that_is_not_zero_is_the_beginning(tmp_path):
    film = frames()
    write(tmp_path / "in/a.mkv", film, pts=[10_000 + round(1000 * n / 16) for n in range(10)], base=Fraction(1, 1000))
    rows, _ = run(tmp_path)
    assert [row["start"] for row in rows] == [0.0, 0.3125]
    near(pixels(tmp_path), film[:5])


def test_variable_rate_shows_each_frame_for_its_time(tmp_path):
    """Frames at 0, 1, 2, 4, 6, 7, 8 and 9 sixteenths: those before a gap are shown twice as long, and no sooner."""
    film = frames(8, pan=2)
    write(tmp_path / "in/a.mkv", film, pts=[round(n * 62.5) for n in (0, 1, 2, 4, 6, 7, 8, 9)], base=Fraction(1, 1000))
    run(tmp_path)
    shown = np.concatenate([pixels(tmp_path, 0), pixels(tmp_path, 1)])
    which = [int(np.argmin([abs(frame - original.astype(int)).mean() for original in film])) for frame in shown]
    assert [which[n] for n in (0, 1, 2, 4, 6, 7, 8, 9)] == list(range(8))
    assert which == sorted(which)


@pytest.mark.parametrize("codec", ["libx264", "mpeg4", "libvpx-vp9"])
@pytest.mark.parametrize(("tagged", "matrix", "value"), [(False, None, 2), (True, 6, 5), (True, 1, 1)])
def test_the_matrix_of_the_file_is_honoured(tmp_path, codec, tagged, matrix, value):
    """Saturated colours through BT.601 and BT.709, tagged or not: untagged small files are BT.601."""
    colours = [(200, 30, 30), (30, 200, 30), (30, 30, 200), (200, 200, 30)]
    flat = np.repeat(np.array(colours, np.uint8), 16, axis=0)
    film = np.broadcast_to(flat, (6, 48, 64, 3)).copy()
    film[:, :8, :8] = (np.arange(6) * 40)[:, None, None, None]
    path = tmp_path / "in/a.mkv"
    path.parent.mkdir()
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=16, options={"crf": "4"} if codec != "mpeg4" else {"qscale": "1"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.bit_rate = 4_000_000
        if tagged:
            stream.codec_context.colorspace, stream.codec_context.color_range = matrix, 1
        for index, picture in enumerate(film):
            rgb = av.VideoFrame.from_ndarray(picture, format="rgb24")
            coded = 1 if value == 1 else 5
            frame = rgb.reformat(format="yuv420p", src_color_range=2, dst_colorspace=coded, dst_color_range=1)
            if tagged:
                frame.colorspace, frame.color_range = matrix, 1
            frame.pts, frame.time_base = index, Fraction(1, 16)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    run(tmp_path)
    shown = pixels(tmp_path)[0]
    assert abs(shown[12:44, 8::16] - np.array(colours)).max() <= 6


def test_full_range_is_not_stretched_again(tmp_path):
    grey = np.zeros((6, 48, 64, 3), np.uint8)
    grey[:] = np.linspace(0, 255, 64).astype(np.uint8)[None, None, :, None]
    grey[:, :8, :8] = (np.arange(6) * 40)[:, None, None, None]
    path = tmp_path / "in/a.mp4"
    write(path, grey, pix_fmt="yuvj420p")
    run(tmp_path)
    # Stretched twice it would be off by 19; the file's own grey has colours of 127 instead of 128 in places.
    assert abs(pixels(tmp_path)[:, 12:] - grey[:5, 12:].astype(int)).max() <= 6


@pytest.mark.parametrize(
    ("name", "codec", "pix_fmt"),
    [
        ("a.gif", "gif", "rgb8"),
        ("a.mkv", "ffv1", "bgra"),
        ("a.mp4", "libx264", "yuv444p"),
        ("a.mkv", "libx264", "yuv420p10le"),
    ],
)
def test_pixel_formats(tmp_path, name, codec, pix_fmt):
    film = frames()
    write(tmp_path / "in" / name, film, codec=codec, pix_fmt=pix_fmt, fps=10)
    rows, _ = run(tmp_path)
    assert len(rows) == 3  # the second that ten frames last
    near(pixels(tmp_path)[0], film[0], 20 if name == "a.gif" else 5)


def test_hdr_is_told_apart(tmp_path):
    def tag(stream):
        stream.codec_context.color_trc, stream.codec_context.color_primaries = 16, 9

    write(tmp_path / "in/a.mp4", frames(), pix_fmt="yuv420p10le", before=tag)
    rows, dropped = run(tmp_path)
    assert rows == []
    assert [row["reason"] for row in dropped] == ["hdr"]


def test_the_larger_of_two_videos_is_not_mixed_with_the_other(tmp_path):
    path = tmp_path / "in/a.mkv"
    path.parent.mkdir()
    film, other = frames(), shot(9, 10, height=24, width=32)
    with av.open(str(path), "w") as container:
        streams = [container.add_stream("libx264", rate=16, options={"crf": "10"}) for _ in range(2)]
        for stream, pictures in zip(streams, (other, film)):
            stream.height, stream.width = pictures.shape[1:3]
            stream.pix_fmt = "yuv420p"
        for stream, pictures in zip(streams, (other, film)):
            for index, picture in enumerate(pictures):
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
                frame.pts, frame.time_base = index, Fraction(1, 16)
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
    rows, _ = run(tmp_path)
    assert rows[0]["original"]["width"] == 64
    near(pixels(tmp_path), film[:5])


def test_a_name_that_begins_with_a_dash_or_looks_like_a_pattern(tmp_path):
    write(tmp_path / "in/-i %03d.mp4", frames())
    rows, _ = run(tmp_path)
    assert rows[0]["source"] == "-i %03d.mp4"


def test_metadata_that_is_no_text_does_not_keep_a_file_from_being_read(tmp_path):
    path = write(
        tmp_path / "in/a.mp4", frames(), before=lambda stream: stream.container.metadata.update(title="ABCDEFGH")
    )
    path.write_bytes(path.read_bytes().replace(b"ABCDEFGH", b"\xfe\xff\xfe\xff\xfe\xff\xfe\xff"))
    assert len(run(tmp_path)[0]) == 2


def test_damage_costs_what_cannot_be_decoded_and_no_more(tmp_path):
    """A key frame every ten; packets 12 to 14 are overwritten: of the second group only its beginning is left."""
    film = np.concatenate([frames(10), shot(1, 10), shot(2, 10)])
    path = write(tmp_path / "whole.mkv", film, codec="mpeg4", options={"g": "10", "bf": "0", "qscale": "2"})
    with av.open(str(path)) as container:
        packets = [bytes(packet) for packet in container.demux(video=0) if packet.size]
    data = path.read_bytes()
    for packet in packets[12:15]:
        data = data.replace(packet, b"\0" * len(packet))
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.mkv").write_bytes(data)
    rows, dropped = run(tmp_path)
    assert [row["start"] for row in rows] == [0.0, 0.3125, 1.25, 1.5625]
    assert [(row["reason"], round(row["start"], 2), round(row["end"], 2)) for row in dropped] == [
        ("too_short", 0.62, 0.75),
        ("damaged", 0.75, 1.25),
    ]
    near(pixels(tmp_path, 2), film[20:25], 9)
    assert abs(pixels(tmp_path, 2) - film[10:15].astype(int)).mean() > 30


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".webm", ".gif", ".avi", ".png", ".jpg", ".webp", ".tar"])
@pytest.mark.parametrize("data", [b"", b"\0" * 5000, b"not a video", b"#EXTM3U\nfile:///etc/hostname\n"])
def test_rubbish_under_any_name_is_a_reason(tmp_path, suffix, data):
    (tmp_path / "in").mkdir()
    (tmp_path / f"in/a{suffix}").write_bytes(data)
    rows, dropped = run(tmp_path)
    assert rows == []
    assert [row["reason"] for row in dropped] == ["unreadable"]


def test_a_file_cut_anywhere_is_kept_or_dropped(tmp_path):
    whole = write(tmp_path / "a.mp4", frames(30), container_options={"movflags": "faststart"}).read_bytes()
    (tmp_path / "in").mkdir()
    for share in (10, 40, 70, 95, 99):
        (tmp_path / f"in/{share}.mp4").write_bytes(whole[: len(whole) * share // 100])
    rows, dropped = run(tmp_path)
    assert {row["source"] for row in [*rows, *dropped]} == {f"{share}.mp4" for share in (10, 40, 70, 95, 99)}
    assert any(row["reason"] == "damaged" and row["source"] == "70.mp4" for row in dropped)


def test_pictures_upright_flat_and_small_enough(tmp_path):
    picture = frames(1)[0]
    (tmp_path / "in").mkdir()
    turned = Image.fromarray(np.ascontiguousarray(np.rot90(picture)))
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn clockwise shows it upright
    turned.save(tmp_path / "in/turned.png", exif=exif)
    clear = np.dstack([shot(3, 1)[0], np.full((48, 64), 255, np.uint8)])
    clear[:24, :, 3] = 0
    Image.fromarray(clear).save(tmp_path / "in/clear.png")
    Image.fromarray(np.zeros((48, 64, 3), np.uint8)).save(tmp_path / "in/dark.png")
    Image.new("L", (5000, 5000)).save(tmp_path / "in/huge.png")
    Image.fromarray(frames(1)[0][:20, :20]).save(tmp_path / "in/tiny.png")
    deep = shot(4, 1)[0].mean(-1)
    Image.fromarray((deep * 257).astype(np.uint16)).save(tmp_path / "in/deep.png")
    rows, dropped = run(tmp_path, Settings(frames=(5,), sizes=((64, 48),), most_pixels=10_000_000))
    assert [row["source"] for row in rows] == ["clear.png", "deep.png", "turned.png"]
    assert [row["frames"] for row in rows] == [1, 1, 1]
    assert {row["source"]: row["reason"] for row in dropped} == {
        "dark.png": "black",
        "huge.png": "too_large",
        "tiny.png": "too_small",
    }
    assert (pixels(tmp_path, 0)[0, :24] == 255).all()
    assert (pixels(tmp_path, 0)[0, 24:] == clear[24:, :, :3]).all()
    assert abs(pixels(tmp_path, 1)[0] - deep[..., None]).max() <= 1
    assert (pixels(tmp_path, 2)[0] == picture).all()


def test_an_animated_webp_is_a_video(tmp_path):
    film = [Image.fromarray(picture) for picture in frames(8)]
    (tmp_path / "in").mkdir()
    film[0].save(tmp_path / "in/a.webp", save_all=True, append_images=film[1:], duration=100, lossless=True)
    rows, _ = run(tmp_path)
    assert rows[0]["frames"] == 5
    assert rows[0]["original"]["fps"] == pytest.approx(10)


def test_a_large_picture_of_a_video_is_refused_before_it_is_decoded(tmp_path):
    write(tmp_path / "in/a.mp4", np.zeros((2, 1024, 1024, 3), np.uint8))
    rows, dropped = run(tmp_path, Settings(frames=(5,), sizes=((64, 48),), most_pixels=1 << 19))
    assert [row["reason"] for row in dropped] == ["too_large"]
    assert rows == []


def test_memory_does_not_grow_with_the_number_of_frames(tmp_path):
    """1000 frames against 100: what is held of a film is a piece and a few frames."""
    code = (
        "import sys, resource; from pathlib import Path; from carrara.data.prepare.run import prepare\n"
        "from carrara.data.prepare.settings import Settings\n"
        "prepare(sys.argv[1], sys.argv[2], Settings(frames=(5,), sizes=((64, 48),), duplicate=0, frozen=0))\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    import subprocess
    import sys

    peaks = []
    still = [np.full((240, 320, 3), value, np.uint8) for value in (60, 200)]
    for count in (100, 1000):
        folder = Path(tmp_path / str(count))
        options = {"preset": "ultrafast", "crf": "40"}
        write(folder / "in/a.mp4", [still[index // 50 % 2] for index in range(count)], fps=240, options=options)
        command = [sys.executable, "-c", code, str(folder / "in"), str(folder / "out")]
        peaks.append(int(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    assert peaks[1] < peaks[0] + 30_000  # kB; 900 frames are 104 MB
