"""The whole of it: the same to the byte however it is interrupted, on however many processes, or refused in a line."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
from tests.data.prepare.filming import shot, write

from carrara.cli import run as command
from carrara.data.prepare import pool, run
from carrara.data.prepare.item import item_folder
from carrara.data.prepare.run import prepare
from carrara.data.prepare.settings import Settings
from carrara.data.prepare.sources import list_items
from carrara.data.prepared import Prepared

SETTINGS = Settings(frames=(5, 9), sizes=((64, 48), (48, 64)), most_upscaled=1.5, shard_bytes=40_000)


def tree(folder: Path) -> dict[str, str]:
    """Every file below a folder with the hash of its bytes."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def rows(folder: Path, name: str = "manifest.jsonl") -> list[dict]:
    return [json.loads(line) for line in (folder / name).read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two films of known shots, one upright, one repeated in another coding, one black, one still, one damaged."""
    root = tmp_path_factory.mktemp("source") / "clips"
    film = np.concatenate([shot(1, 20), shot(2, 12), np.zeros((6, 48, 64, 3), np.uint8), shot(3, 4), shot(4, 11)])
    film = film.repeat(2, axis=1).repeat(2, axis=2)
    write(root / "film.mp4", film)
    write(root / "upright.mkv", shot(5, 24, height=64, width=48))
    write(root / "copy/film again.mov", film, options={"crf": "18", "preset": "veryfast"})
    write(root / "still.mp4", np.repeat(shot(6, 1), 30, axis=0))
    write(root / "slow.mp4", shot(7, 6, pan=6), fps=2)
    (root / "bad.mp4").write_bytes(b"no film")
    lines = [{"file_name": "film.mp4", "caption": "a pan over colours", "licence": "CC0-1.0"}]
    lines.append({"file_name": "gone.mp4", "caption": "nothing"})
    (root / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return root


@pytest.fixture(scope="module")
def once(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared in one go, in one process."""
    folder = tmp_path_factory.mktemp("once") / "out"
    prepare(source, folder, SETTINGS)
    return folder


def test_shots_and_pieces_are_where_they_are_known_to_be(once):
    kept = [(row["source"], row["frames"], round(row["start"] * 16)) for row in rows(once)]
    assert kept == [
        ("film.mp4", 9, 0),
        ("film.mp4", 9, 9),
        ("film.mp4", 9, 20),
        ("film.mp4", 9, 42),
        ("upright.mkv", 9, 0),
        ("upright.mkv", 9, 9),
        ("upright.mkv", 5, 18),
    ]
    told = {
        (row["source"], row["reason"], None if row["start"] is None else round(row["start"] * 16))
        for row in rows(once, "dropped.jsonl")
    }
    assert told == {
        ("bad.mp4", "unreadable", None),
        ("gone.mp4", "missing", None),
        *(("copy/film again.mov", "duplicate", start) for start in (0, 9, 20, 42)),
        *((name, "remainder", start) for name in ("film.mp4", "copy/film again.mov") for start in (18, 29, 51)),
        *((name, "black", 32) for name in ("film.mp4", "copy/film again.mov")),
        *((name, "too_short", 38) for name in ("film.mp4", "copy/film again.mov")),
        *(("still.mp4", "frozen", start) for start in (0, 9, 18)),
        ("still.mp4", "remainder", 27),
        *(("slow.mp4", "low_rate", start) for start in (0, 9, 18, 27, 36)),
        ("upright.mkv", "remainder", 23),
    }


def test_the_manifest_says_where_each_clip_is_from(once, source):
    row = rows(once)[0]
    assert (row["caption"], row["caption_by"], row["licence"]) == ("a pan over colours", "given", "CC0-1.0")
    assert row["source_sha256"] == hashlib.sha256((source / "film.mp4").read_bytes()).hexdigest()
    assert row["original"] == {"width": 128, "height": 96, "fps": pytest.approx(16)}
    last = rows(once)[-1]
    assert (last["caption"], last["caption_by"], last["licence"]) == (None, None, None)
    twins = [row for row in rows(once, "dropped.jsonl") if row["reason"] == "duplicate"]
    assert [row["duplicate_of"] for row in twins] == ["000000000", "000000001", "000000002", "000000003"]


def test_shards_are_webdataset_of_one_bucket_each_and_decode_to_what_was_filmed(once):
    index, manifest = json.loads((once / "prepared.json").read_text()), {row["key"]: row for row in rows(once)}
    seen = []
    for shard in index["shards"]:
        path = once / shard["file"]
        assert (path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest()) == (shard["bytes"], shard["sha256"])
        with tarfile.open(path) as tar:
            names = tar.getnames()
            for name in names:
                key, suffix = name.split(".")
                data = tar.extractfile(name).read()
                row = manifest[key]
                assert [row["frames"], row["height"], row["width"]] == shard["bucket"]
                assert row["shard"] == shard["file"]
                if suffix == "mp4":
                    seen.append(key)
                    assert hashlib.sha256(data).hexdigest() == row["sha256"]
                elif suffix == "json":
                    assert json.loads(data) == row
                else:
                    assert data.decode() == row["caption"]
        assert sum(name.endswith(".txt") for name in names) == sum(
            manifest[k]["caption"] is not None for k in {n[:9] for n in names}
        )
    assert sorted(seen) == sorted(manifest)
    prepared = Prepared(once)
    prepared.verify()
    film = shot(1, 20)
    for number, start in ((0, 0), (1, 9)):
        assert abs(prepared.frames(number).numpy().astype(int) - film[start : start + 9]).mean() < 6
    assert not (once / ".work").exists()


@pytest.mark.parametrize("workers", [1, 3])
def test_processes_do_not_show(source, once, tmp_path, workers):
    prepare(source, tmp_path / "out", SETTINGS, workers=workers)
    assert tree(tmp_path / "out") == tree(once)


def test_killed_at_many_moments_it_ends_the_same(source, once, tmp_path):
    """kill -9 of the parent, again and again, each time a little later; its processes end by themselves."""
    code = (
        "import sys; from carrara.data.prepare.run import prepare; from carrara.data.prepare.settings import Settings\n"
        f"prepare(sys.argv[1], sys.argv[2], {SETTINGS!r}, workers=2)"
    )
    folder, wait = tmp_path / "out", 1.0
    for _ in range(60):
        process = subprocess.Popen([sys.executable, "-c", code, str(source), str(folder)], start_new_session=True)
        try:
            assert process.wait(wait) == 0
            break
        except subprocess.TimeoutExpired:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            wait *= 1.5
    assert tree(folder) == tree(once)


def test_interrupted_between_any_two_files_and_shards_it_ends_the_same(source, once, tmp_path, monkeypatch):
    """Stops in every step of the last part too."""
    folder = tmp_path / "out"
    for name in ("make_plan", "write_captions", "draw_pictures", "write_shard", "write_lines", "write_page"):
        whole = getattr(run, name)
        calls = 0

        def stop(*args, whole=whole, name=name, **more):
            nonlocal calls
            calls += 1
            result = whole(*args, **more)
            if calls == 2 or name in ("make_plan", "write_captions", "draw_pictures", "write_page"):
                raise KeyboardInterrupt
            return result

        monkeypatch.setattr(run, name, stop)
        with pytest.raises(KeyboardInterrupt):
            prepare(source, folder, SETTINGS)
        monkeypatch.setattr(run, name, whole)
        assert not (folder / "prepared.json").exists()
    said: list[str] = []
    prepare(source, folder, SETTINGS, tell=said.append)
    assert tree(folder) == tree(once)
    prepare(source, folder, SETTINGS, tell=said.append)
    assert said[-1].endswith("is prepared already")


def test_other_settings_and_another_source_are_refused(source, tmp_path, monkeypatch):
    root = tmp_path / "clips"
    write(root / "a.mp4", shot(1, 9))
    prepare(root, tmp_path / "out", SETTINGS)
    before = tree(tmp_path / "out")
    with pytest.raises(ValueError, match=r"other settings: fps 8 \(was 16.0\)"):
        prepare(root, tmp_path / "out", Settings(**{**SETTINGS.__dict__, "fps": 8}))
    (root / "a.txt").write_text("a caption that came later")
    with pytest.raises(ValueError, match="have changed since"):
        prepare(root, tmp_path / "out", SETTINGS)
    assert tree(tmp_path / "out") == before


def test_a_file_that_kills_or_stops_its_process_costs_itself_alone(source, tmp_path, monkeypatch):
    """Real processes: one file is exchanged for a pipe that nobody writes to."""
    root = tmp_path / "clips"
    write(root / "a.mp4", shot(1, 9))
    write(root / "b.mp4", shot(2, 9))
    settings = Settings(**{**SETTINGS.__dict__, "stall": 4.0})
    items, _ = list_items(root, settings)
    work = tmp_path / "work"
    (work / "items").mkdir(parents=True)
    (root / "a.mp4").unlink()
    os.mkfifo(root / "a.mp4")
    done: list[int] = []
    pool.in_processes(root, work, items, settings, done.append, 2)
    assert sorted(done) == [0, 1]
    results = [json.loads((item_folder(work, number) / "item.json").read_text()) for number in (0, 1)]
    assert [row["reason"] for row in results[0]["dropped"]] == ["crashed"]
    assert len(results[1]["pieces"]) == 1


def test_a_process_that_is_killed_is_tried_again(source, tmp_path):
    root, work = tmp_path / "clips", tmp_path / "work"
    write(root / "a.mp4", np.concatenate([shot(seed, 60) for seed in range(8)]))
    items, _ = list_items(root, SETTINGS)
    (work / "items").mkdir(parents=True)
    killed: list[int] = []

    class Killing(pool._Worker):
        def take(self, item):
            super().take(item)
            if not killed:
                killed.append(self.process.pid)
                time.sleep(0.3)
                self.process.kill()

    original, pool._Worker = pool._Worker, Killing  # type: ignore[misc]
    try:
        done: list[int] = []
        pool.in_processes(root, work, items, SETTINGS, done.append, 1)
    finally:
        pool._Worker = original  # type: ignore[misc]
    assert done == [0]
    assert killed
    assert json.loads((item_folder(work, 0) / "item.json").read_text())["pieces"]


def test_results_that_cannot_be_written_end_the_run_and_not_the_file(source, tmp_path):
    """A folder without room: nothing is blamed on the files."""
    work = tmp_path / "work"
    work.mkdir()
    (work / "items").write_text("a file where a folder should be")
    items, _ = list_items(source, SETTINGS)
    with pytest.raises(RuntimeError, match="results cannot be written"):
        pool.in_processes(source, work, items, SETTINGS, lambda number: None, 1)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["nowhere", "out"], "nowhere: no such folder"),
        (["clips/a.mp4", "out"], "a file, not a folder"),
        (["clips", "clips/out"], "lies in clips"),
        (["clips", "clips"], "lies in clips"),
        (["clips", "."], "lies in ."),
        (["clips", "/proc/x"], "cannot be written"),
        (["clips", "full"], "full: holds other files"),
        (["empty", "out"], "no videos, pictures or tars in it"),
        (["clips", ""], "DST is empty"),
        (["clips"], "DST is missing"),
        (["clips", "out", "--fps", "0"], "fps=0"),
        (["clips", "out", "--fps", "fast"], "--fps 'fast': expected FLOAT"),
        (["clips", "out", "--frames", "16"], "nearest 13 or 17"),
        (["clips", "out", "--frames", "x"], "--frames 'x': expected whole numbers"),
        (["clips", "out", "--sizes", "100x100"], "width=100: must be a multiple of 16; nearest 96 or 112"),
        (["clips", "out", "--sizes", "64"], "--sizes '64': expected WIDTHxHEIGHT"),
        (["clips", "out", "--sizes", "64x64", "--multiple", "128"], "width=64: must be a multiple of 128"),
        (["clips", "out", "--workers", "-1"], "--workers -1"),
        (["clips", "out", "--captioner", "no-such-program {clip}"], "no such command"),
        (["clips", "out", "--captioner", "echo hello"], "name the file with {clip} or {sheet}"),
        (["clips", "out", "--caption-model", "nowhere"], "not a folder with a transformers model"),
        (["clips", "out", "--caption-column", "words"], "caption column 'words': no metadata file has it"),
        (["clips", "out", "--framez", "17"], "did you mean --frames"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(args, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "clips/a.mp4", shot(1, 5))
    (tmp_path / "clips/metadata.jsonl").write_text('{"file_name": "a.mp4", "caption": "c"}\n')
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full/letter.txt").write_text("dear")
    before = tree(tmp_path)
    assert command(["data", "prepare", *args]) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("carrara: ")
    assert said in captured.err
    assert tree(tmp_path) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clips", "empty", "full"]


def test_the_commands(source, once, tmp_path, capsys):
    options = ["--frames", "5,9", "--sizes", "64x48,48x64", "--upscale", "1.5", "--workers", "2"]
    assert command(["data", "prepare", str(source), str(tmp_path / "out"), *options]) == 0
    assert "7 clips, 0 pictures, 4 with a caption" in capsys.readouterr().out
    assert rows(tmp_path / "out", "dropped.jsonl") == rows(once, "dropped.jsonl")
    assert command(["data", "inspect", str(once), "--verify"]) == 0
    out = capsys.readouterr().out
    assert "4 of 7" in out
    assert "9 frames of 64x48: 4" in out
    assert command(["data", "inspect", str(source)]) == 2
    assert "not a prepared folder" in capsys.readouterr().err


def test_an_unfinished_folder_says_how_to_go_on(source, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(run, "make_plan", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        prepare(source, tmp_path / "out", SETTINGS)
    assert command(["data", "inspect", str(tmp_path / "out")]) == 2
    assert "not finished, 6 of 7 files are done; run the same" in capsys.readouterr().err


def test_the_report_names_every_reason_and_escapes_what_it_quotes(tmp_path, once):
    page = (once / "report" / "index.html").read_text()
    for row in rows(once, "dropped.jsonl"):
        assert f'id="{row["reason"]}"' in page
    assert page.count("<img") >= 10
    assert "http" not in page.replace("http-equiv", "")
    write(tmp_path / "in/<b>.mp4", shot(1, 9))
    (tmp_path / "in/<b>.txt").write_text("<script>alert(1)</script>")
    prepare(tmp_path / "in", tmp_path / "out", SETTINGS)
    page = (tmp_path / "out/report/index.html").read_text()
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
