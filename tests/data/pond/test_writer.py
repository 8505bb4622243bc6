from __future__ import annotations

import json
from pathlib import Path

import pytest

from carrara.core.config import from_dict
from carrara.core.media import read_video
from carrara.core.types import VideoShape
from carrara.data.pond import writer
from carrara.data.pond.captions import LEVELS, caption
from carrara.data.pond.render import render
from carrara.data.pond.sampling import Mix, is_held_out, sample_scene
from carrara.data.pond.simulate import simulate
from carrara.data.pond.world import Scene
from carrara.data.pond.writer import write_pond, write_scenes

SIZE = (64, 48)


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "pond"
    write_pond(folder, clips=5, size=SIZE, frames=9, fps=8, seed=3)
    return folder


def test_every_clip_is_there_with_captions_scene_and_truth(folder: Path) -> None:
    rows = lines(folder)
    assert len(rows) == 5
    assert sorted(path.name for path in folder.iterdir()) == ["clips", "dataset.json", "metadata.jsonl", "truth"]
    for i, row in enumerate(rows):
        scene = from_dict(Scene, row["scene"], "scene")
        assert scene == sample_scene(3 + i, Mix())
        frames, fps, metadata = read_video(folder / row["file_name"])
        assert (tuple(frames.shape), fps) == ((9, 48, 64, 3), 8)
        assert (row["frames"], row["height"], row["width"], row["fps"]) == (9, 48, 64, 8)
        assert metadata["caption"] == row["caption"] == row["caption_medium"]
        assert json.loads(metadata["scene"]) == row["scene"]
        for level in LEVELS:
            said = caption(scene, level, seed=i, canonical=i % 2 == 0)
            assert (row[f"caption_{level}"], row["says"][level]) == (said.text, sorted(said.attributes))
        truth = json.loads((folder / "truth" / f"{i:06d}.json").read_text())
        assert truth == simulate(scene, 9, 8, aspect=64 / 48).plain()


def test_the_file_shows_what_was_rendered(folder: Path) -> None:
    row = lines(folder)[0]
    rendered = render([from_dict(Scene, row["scene"], "scene")], VideoShape(9, 48, 64), 8).video[0]
    frames, _, _ = read_video(folder / row["file_name"])
    assert (frames.int() - rendered.int()).abs().float().mean() < 6  # lossy, subsampled colour


def test_held_out_scenes_can_be_written(tmp_path: Path) -> None:
    write_pond(tmp_path / "pond", 4, (32, 32), 1, split="held_out", mix=Mix(two=0))
    for row in lines(tmp_path / "pond"):
        scene = from_dict(Scene, row["scene"], "scene")
        assert is_held_out(scene)
        assert len(scene.actors) == 1
    about = json.loads((tmp_path / "pond" / "dataset.json").read_text())
    assert (about["clips"], about["split"], about["world"]["two"]) == (4, "held_out", 0)


def test_batches_do_not_show(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "BATCH_PIXELS", 1)
    seen: list[tuple[int, int]] = []
    write_pond(tmp_path / "pond", 5, SIZE, 9, 8, 3, progress=lambda *done: seen.append(done))
    assert lines(tmp_path / "pond") == lines(folder)
    assert seen == [(i, 5) for i in range(1, 6)]
    for row in lines(folder):
        one, other = (read_video(where / row["file_name"])[0] for where in (folder, tmp_path / "pond"))
        assert (one.int() - other.int()).abs().float().mean() < 0.5  # the same clip, encoded twice


def test_nothing_half_written_counts(tmp_path: Path, folder: Path) -> None:
    scenes = [from_dict(Scene, row["scene"], "scene") for row in lines(folder)]

    def interrupt(done: int, count: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    shape = VideoShape(1, 32, 32)
    with pytest.raises(KeyboardInterrupt):
        write_scenes(tmp_path / "pond", scenes, shape, progress=interrupt)
    assert list(tmp_path.iterdir()) == []
    write_scenes(tmp_path / "pond", scenes[:2], shape)
    with pytest.raises(KeyboardInterrupt):
        write_scenes(tmp_path / "pond", scenes, shape, overwrite=True, progress=interrupt)
    assert [path.name for path in tmp_path.iterdir()] == ["pond"]
    assert len(lines(tmp_path / "pond")) == 2
    write_scenes(tmp_path / "pond", scenes, shape, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["pond"]
    assert len(lines(tmp_path / "pond")) == 5


def test_only_its_own_folders_are_replaced(tmp_path: Path) -> None:
    scenes = [sample_scene(0)]
    shape = VideoShape(1, 32, 32)
    (tmp_path / "empty").mkdir()
    write_scenes(tmp_path / "empty", scenes, shape)
    with pytest.raises(ValueError, match="is not empty; pass overwrite"):
        write_scenes(tmp_path / "empty", scenes, shape)
    home = tmp_path / "home"
    home.mkdir()
    (home / "letter.txt").write_text("dear")
    with pytest.raises(ValueError, match="holds other files than a pond data set"):
        write_scenes(home, scenes, shape, overwrite=True)
    with pytest.raises(ValueError, match="is a file, not a folder"):
        write_scenes(home / "letter.txt", scenes, shape, overwrite=True)
    with pytest.raises(ValueError, match=r"pond.*cannot be written"):
        write_scenes(home / "letter.txt" / "pond", scenes, shape)
    assert (home / "letter.txt").read_text() == "dear"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"clips": 0}, "clips=0: write at least 1"),
        ({"size": (63, 48)}, "63x48: H.264 needs even sides; nearest 64x48"),
        ({"frames": 0}, "at least one frame"),
        ({"fps": 0}, "fps=0"),
        ({"split": "test"}, "unknown split 'test'"),
    ],
)
def test_wrong_numbers_are_refused_before_anything_is_written(tmp_path: Path, wrong: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        write_pond(tmp_path / "pond", **{"clips": 1, "size": SIZE, "frames": 5, **wrong})
    assert list(tmp_path.iterdir()) == []
