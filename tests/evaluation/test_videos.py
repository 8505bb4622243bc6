"""Videos of any size and rate: what can be read is measured, what cannot is named, and nothing is left half done."""

import json
from pathlib import Path

import numpy as np
import pytest

from carrara.cli import run
from carrara.core.media import write_video
from carrara.core.types import VideoShape
from carrara.data.pond.render import render
from carrara.data.pond.sampling import SINGLES, sample_scene
from carrara.evaluation.video_files import find_videos
from carrara.evaluation.videos import evaluate_videos

ODD = Path(__file__).parents[3] / "shared" / "realdata" / "odd"


def write(folder: Path, names: list[str], height: int = 48, width: int = 64, frames: int = 9) -> Path:
    """Renders of the pond under these names, with sound file formats chosen by their endings."""
    folder.mkdir(exist_ok=True)
    scenes = [sample_scene((8 << 40) + n, SINGLES) for n in range(len(names))]
    for name, video in zip(names, render(scenes, VideoShape(frames, height, width)).video):
        write_video(folder / name, video, 8)
    return folder


def test_every_format_size_and_rate_is_measured_and_the_rest_named(tmp_path):
    folder = write(tmp_path / "clips", ["a.mp4", "b.gif", "c.webp"])
    write(folder, ["wide.mp4"], 32, 128, 12)
    (folder / "broken.mp4").write_bytes(b"not a video")
    (folder / "empty.gif").write_bytes(b"")
    (folder / "-notes.txt").write_text("not meant to be one")
    lines: list[str] = []
    evaluate_videos(folder, tmp_path / "out", only=("consistency",), tell=lines.append, progress=False)
    report = json.loads((tmp_path / "out" / "report.json").read_text("utf-8"))
    files = report["sections"]["files"]["data"]["clips"]
    assert sorted(files["files"]) == ["a.mp4", "b.gif", "c.webp", "wide.mp4"]
    assert files["files"]["wide.mp4"] == {"frames": 12, "width": 128, "height": 32, "fps": 8.0}
    assert sorted(files["unreadable"]) == ["broken.mp4", "empty.gif"]
    assert len(lines) == 2
    assert "broken.mp4: not measured: not a readable" in lines[0]
    assert "notes" not in (tmp_path / "out" / "report.json").read_text("utf-8")
    assert {"clips", "frozen", "shuffled"} <= set(report["sections"]["consistency"]["data"]["clips"])
    before = (tmp_path / "out" / "report.json").read_bytes()
    evaluate_videos(folder, tmp_path / "out", only=("consistency",), tell=lines.append, progress=False)
    assert (tmp_path / "out" / "report.json").read_bytes() == before


def test_a_gap_is_stated_and_the_rest_goes_on(tmp_path):
    clips, others = write(tmp_path / "a", ["a.mp4", "b.mp4"]), write(tmp_path / "b", ["a.mp4", "b.mp4"])
    lines: list[str] = []
    sections = evaluate_videos(clips, tmp_path / "out", against=others, tell=lines.append, progress=False)
    assert [section.name for section in sections] == ["files", "consistency", "distribution"]
    assert "2 clips are too few; 10 are needed" in sections[-1].about
    assert lines == ["not measured: distribution: clips: 2 clips are too few; 10 are needed"]


def test_different_sizes_are_refused_where_they_matter(tmp_path):
    clips = write(tmp_path / "a", [f"{n:02d}.gif" for n in range(10)], 32, 32, 5)
    others = write(tmp_path / "b", [f"{n:02d}.gif" for n in range(20)], 36, 36, 5)
    with pytest.raises(ValueError, match=r"different sizes \(32x32, 36x36\)"):
        evaluate_videos(clips, tmp_path / "out", against=others, only=("distribution",), tell=print, progress=False)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda folder: None, "no such folder of videos"),
        (lambda folder: folder.write_text("x"), "a file, not a folder"),
        (lambda folder: folder.mkdir(), "no videos in it; expected files like *.mp4"),
        (lambda folder: (folder.mkdir(), (folder / "x.mp4").write_bytes(b"x")), "none of its 1 videos can be read"),
        (lambda folder: write(folder, ["a.gif"], 32, 32, 3), "1 clip that can be read: too few for an interval"),
    ],
)
def test_where_nothing_can_be_measured_it_is_one_line_and_exit_2(make, said, tmp_path, capsys):
    make(tmp_path / "clips")
    assert run(["evaluate", "--clips", str(tmp_path / "clips"), "-o", str(tmp_path / "out")]) == 2
    captured = capsys.readouterr()
    assert said in captured.err.splitlines()[-1]
    assert captured.out == ""
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--against", "x"], "--against: what is held against"),
        (["pond", "--clips", "x"], "give a model or a folder of videos, not both"),
        (["--clips", "x", "--only", "consistncy"], "did you mean consistency"),
        (["--clips", "x", "-o", "/dev/null"], "is a file, not a folder"),
        (["--suite", "fast"], "expected"),
    ],
)
def test_wrong_options_are_one_line_and_exit_2(args, said, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(["evaluate", *args]) == 2
    captured = capsys.readouterr()
    assert said.lower() in captured.err.lower()
    assert captured.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not ODD.is_dir(), reason="the odd files are not here")
def test_odd_files_do_not_stop_the_rest(tmp_path):
    small = ("d_empty.mp4", "d_png_named.mp4", "d_truncated_200k.mp4", "tc_h265_video.mp4", "x_sample_audio_only.mp4")
    for name in small:
        (tmp_path / name).symlink_to(ODD / name)
    lines: list[str] = []
    found, pictures = find_videos(tmp_path, "clips", lines.append, progress=False)
    assert [file.path.name for file in found.files] == ["d_png_named.mp4", "tc_h265_video.mp4"]
    assert len(pictures) == len(found) == 2
    assert set(found.unreadable) == {"d_empty.mp4", "d_truncated_200k.mp4", "x_sample_audio_only.mp4"}
    assert found.unreadable["x_sample_audio_only.mp4"] == "has no video stream"
    for frames, fps in found:
        assert isinstance(frames, np.ndarray)
        assert frames.dtype == np.uint8
        assert fps > 0
