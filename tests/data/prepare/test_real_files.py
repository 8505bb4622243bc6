"""Real files of every kind that breaks loaders: each ends as kept or dropped with a reason, in processes of its own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from carrara.data.prepare.reasons import REASONS
from carrara.data.prepare.run import prepare
from carrara.data.prepare.settings import Settings
from carrara.data.prepared import Prepared

ODD = Path(__file__).resolve().parents[4] / "shared" / "realdata" / "odd"
LONG = "x_long_180p_av1.mp4"  # 21,766 frames: a minute, in tests only its fate within a short time is asked

pytestmark = pytest.mark.skipif(not ODD.is_dir(), reason="the real files are not here")


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    """Rows kept and dropped of all files, at 8 frames a second, 5 at a time."""
    place = tmp_path_factory.mktemp("odd")
    source = place / "in"
    source.mkdir()
    for path in ODD.iterdir():
        if path.name not in (LONG, "metadata.jsonl"):
            (source / path.name).write_bytes(path.read_bytes())
    settings = Settings(fps=8, frames=(5,), sizes=((64, 64), (80, 48), (48, 80)), most_upscaled=2)
    prepare(source, place / "out", settings, workers=1)
    read = [(place / "out" / name).read_text().splitlines() for name in ("manifest.jsonl", "dropped.jsonl")]
    return place, *([json.loads(line) for line in lines] for lines in read)


def test_every_file_ends_as_kept_or_dropped_with_a_reason(odd):
    place, kept, dropped = odd
    files = {path.name for path in (place / "in").iterdir()}
    assert {row["source"] for row in [*kept, *dropped]} == files
    assert {row["reason"] for row in dropped} <= set(REASONS)
    assert all(row["sentence"] for row in dropped)
    prepared = Prepared(place / "out")
    prepared.verify()
    for number in range(0, len(prepared), 7):
        assert prepared.frames(number).shape[0] == 5


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("d_empty.mp4", "unreadable"),
        ("x_sample_audio_only.mp4", "unreadable"),
        ("x_subsample_encrypted_altref.webm", "unreadable"),
        ("x_sample_malformed_free_box.mp4", "unreadable"),
        ("x_silent-black-10s.mp4", "black"),
        ("d_truncated_200k.mp4", "damaged"),
        ("d_bitflips.mkv", "damaged"),
        ("x_iibbibb_editlist_videoonly.mp4", "low_rate"),
        ("x_hlg10-color-test.mp4", "hdr"),
        ("d_png_named.mp4", "too_short"),
    ],
)
def test_reasons(odd, name, reason):
    assert reason in {row["reason"] for row in odd[2] if row["source"] == name}


@pytest.mark.parametrize(
    ("name", "width", "height"),
    [
        ("exo_video_desks.3gp", 384, 288),
        ("exo_video_3.mp4", 288, 352),
        ("x_sample_rotate_and_reflect.mp4", 720, 1080),
        ("x_bbb_800x640_768kbps_30fps_avc_2b_firstpts_10_sec.mp4", 1137, 640),
        ("x_sample_empty_track.mp4", 1080, 720),
        ("tc_bt709_full_range.mp4", 1280, 720),
        ("tc_av1_video.mkv", 640, 360),
    ],
)
def test_kept_upright_and_in_shape(odd, name, width, height):
    rows = [row for row in odd[1] if row["source"] == name]
    assert rows
    assert rows[0]["start"] < 0.3
    assert (rows[0]["original"]["width"], rows[0]["original"]["height"]) == (width, height)


def test_a_file_of_twenty_thousand_frames_is_given_up_in_time_and_leaves_nothing(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / LONG).write_bytes((ODD / LONG).read_bytes())
    prepare(tmp_path / "in", tmp_path / "out", Settings(fps=8, seconds=0.5), workers=1)
    dropped = [json.loads(line) for line in (tmp_path / "out/dropped.jsonl").read_text().splitlines()]
    assert [row["reason"] for row in dropped] == ["too_slow"]
    assert dropped[0]["start"] is None
    assert (tmp_path / "out/manifest.jsonl").read_text() == ""
