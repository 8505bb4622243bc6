"""Every layout is read with its captions; what cannot be right is said before anything is decoded; nothing escapes."""

from __future__ import annotations

import io
import json
import os
import tarfile
from pathlib import Path

import pytest

from carrara.data.prepare.settings import Settings
from carrara.data.prepare.sources import list_items, open_item


def folder(tmp_path: Path, **files: bytes | str) -> Path:
    root = tmp_path / "in"
    root.mkdir(exist_ok=True)
    for name, data in files.items():
        path = root / name.replace("__", "/").replace("_mp4", ".mp4").replace("_txt", ".txt").replace("_png", ".png")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data.encode() if isinstance(data, str) else data)
    return root


def lines(*rows: dict) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def listed(root: Path, **settings: object) -> tuple[dict, dict]:
    items, dropped = list_items(root, Settings(**settings))  # type: ignore[arg-type]
    assert [item.number for item in items] == list(range(len(items)))
    assert [item.source for item in items] == sorted(item.source for item in items)
    return {item.source: item.caption for item in items}, {row.source: row.reason for row in dropped}


def tar(path: Path, *members: tuple[str, bytes], links: tuple[tuple[str, str], ...] = ()) -> Path:
    with tarfile.open(path, "w") as file:
        for name, data in members:
            about = tarfile.TarInfo(name)
            about.size = len(data)
            file.addfile(about, io.BytesIO(data))
        for name, target in links:
            about = tarfile.TarInfo(name)
            about.type, about.linkname = tarfile.SYMTYPE, target
            file.addfile(about)
    return path


def test_videofolder_sidecars_and_bare_clips_together(tmp_path):
    root = folder(tmp_path, a_mp4="", b_mp4="", b_txt="from the  text\nfile\n", c_mp4="", train__d_mp4="", e_png="")
    (root / "metadata.jsonl").write_text(lines({"file_name": "a.mp4", "caption": "from the row"}))
    (root / "train/metadata.csv").write_text('file_name,text,license\nd.mp4,"a, b",CC0-1.0\n')
    captions, dropped = listed(root)
    assert captions == {
        "a.mp4": "from the row",
        "b.mp4": "from the text file",
        "c.mp4": None,
        "e.png": None,
        "train/d.mp4": "a, b",
    }
    assert dropped == {}
    items, _ = list_items(root, Settings(licence="mine"))
    assert [item.licence for item in items] == ["mine"] * 4 + ["CC0-1.0"]
    assert "e.png" not in listed(root, images=False)[0]


def test_another_column_holds_the_captions(tmp_path):
    root = folder(tmp_path, a_mp4="")
    (root / "metadata.jsonl").write_text(lines({"file_name": "a.mp4", "caption": "short", "long": "a long one"}))
    assert listed(root, caption_column="long")[0] == {"a.mp4": "a long one"}
    with pytest.raises(ValueError, match="caption column 'lang': no metadata file has it; did you mean long"):
        listed(root, caption_column="lang")


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b'{"file_name": "a.mp4"}\n\xff\xfe', "line 2: not UTF-8"),
        (b'{"file_name": "a.mp4"}\n{"file_name": ', "line 2: not valid JSON"),
        (b"[1]\n", "line 1: expected an object"),
        (b'{"name": "a.mp4"}\n', "line 1: no file_name"),
        (b'{"file_name": 3}\n', "line 1: no file_name"),
        (b'{"file_name": "a\\u0000.mp4"}\n', "line 1: no file_name"),
        (b'{"file_name": "a.mp4"}\n{"file_name": "./a.mp4"}\n', "line 2: './a.mp4' has a row already, line 1"),
        (b'{"file_name": "a.mp4", "caption": 3}\n', "line 1: caption is int, expected text"),
        (b'{"file_name": "a.mp4", "caption": "\\ud800"}\n', "holds bytes that are no text"),
        (b'{"file_name": "a.mp4", "caption": "%s"}\n' % (b"x" * 30_000), "a caption of 30000 characters"),
        (b"[" * 100_000, "line 1: not valid JSON"),
    ],
)
def test_metadata_that_cannot_be_right_is_an_error_with_its_line(tmp_path, data, said):
    root = folder(tmp_path, a_mp4="")
    (root / "metadata.jsonl").write_bytes(data)
    with pytest.raises(ValueError, match=said.replace("(", r"\(")) as error:
        listed(root)
    assert "metadata.jsonl" in str(error.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name,caption\na.mp4,x\n", "line 1: no column file_name; its columns: name, caption"),
        ("", "no column file_name"),
        ("file_name,caption\na.mp4\n", "line 2: not as many columns"),
        ("file_name,caption\na.mp4,x,y\n", "line 2: not as many columns"),
    ],
)
def test_csv_that_cannot_be_right(tmp_path, text, said):
    root = folder(tmp_path, a_mp4="")
    (root / "metadata.csv").write_text(text)
    with pytest.raises(ValueError, match=said):
        listed(root)


def test_two_metadata_files_of_one_folder_are_one_too_many(tmp_path):
    root = folder(tmp_path, a_mp4="")
    (root / "metadata.csv").write_text("file_name\na.mp4\n")
    (root / "metadata.jsonl").write_text(lines({"file_name": "a.mp4"}))
    with pytest.raises(ValueError, match="keep one"):
        listed(root)


def test_rows_that_name_missing_files_or_lead_out_are_reasons(tmp_path):
    root = folder(tmp_path, a_mp4="", sub__b_mp4="")
    (tmp_path / "secret.mp4").write_text("x")
    names = ("a.mp4", "gone.mp4", "../secret.mp4", str(tmp_path / "secret.mp4"))
    (root / "metadata.jsonl").write_text(lines(*({"file_name": name, "caption": "c"} for name in names)))
    captions, dropped = listed(root)
    assert captions == {"a.mp4": "c", "sub/b.mp4": None}
    assert dropped == {"gone.mp4": "missing", "../secret.mp4": "outside", names[3]: "outside"}


def test_links_that_lead_out_are_not_followed(tmp_path):
    root = folder(tmp_path, a_mp4="data")
    (tmp_path / "secret.mp4").write_text("x")
    (tmp_path / "secrets").mkdir()
    (root / "out.mp4").symlink_to(tmp_path / "secret.mp4")
    (root / "in.mp4").symlink_to(root / "a.mp4")
    (root / "folder").symlink_to(tmp_path / "secrets")
    captions, dropped = listed(root)
    assert captions == {"a.mp4": None, "in.mp4": None}
    assert dropped == {"out.mp4": "outside", "folder": "outside"}
    items, _ = list_items(root, Settings())
    (root / "a.mp4").unlink()
    (root / "a.mp4").symlink_to(tmp_path / "secret.mp4")  # exchanged after the folder was listed
    with pytest.raises(OSError, match="leads out"):
        open_item(root, items[0])


def test_a_text_file_that_is_none_costs_its_clip_alone(tmp_path):
    root = folder(tmp_path, a_mp4="", a_txt=b"\xff\xfe\x00", b_mp4="", b_txt="fine")
    assert listed(root) == ({"b.mp4": "fine"}, {"a.mp4": "caption"})


def test_other_files_are_told_and_hidden_ones_are_not(tmp_path):
    root = folder(tmp_path, a_mp4="")
    for name in ("song.mp3", "README.md", ".hidden.mp4", "._a.mp4", "noext"):
        (root / name).write_text("")
    assert listed(root) == ({"a.mp4": None}, {"song.mp3": "not_media", "noext": "not_media"})


def test_webdataset_members_are_ranges_of_bytes_with_their_captions(tmp_path):
    root = folder(tmp_path)
    tar(
        root / "x.tar",
        ("s/0001.mp4", b"first"),
        ("s/0001.txt", "a  caption é".encode()),
        ("s/0001.json", b'{"caption": "not this", "license": "CC0"}'),
        ("s/0002.seg.mp4", b"second"),
        ("s/0002.json", b'{"text": "of json"}'),
        ("0003.png", b"third"),
        ("0003.webm", b"again"),
        ("0004.mp4", b"4"),
        ("0004.txt", b"\xff"),
        ("0005.cls", b"5"),
    )
    captions, dropped = listed(root)
    assert captions == {
        "x.tar/s/0001.mp4": "a caption é",
        "x.tar/s/0002.seg.mp4": "of json",
        "x.tar/0003.png": None,
    }
    assert dropped == {"x.tar/0003.webm": "duplicate", "x.tar/0004.mp4": "caption"}
    items, _ = list_items(root, Settings())
    found = {}
    for item in items:
        with open_item(root, item) as file:
            found[item.source] = file.read()
            assert file.seek(-3, os.SEEK_END) == item.size - 3
            assert file.read(10) == found[item.source][-3:]
    assert found == {"x.tar/s/0001.mp4": b"first", "x.tar/s/0002.seg.mp4": b"second", "x.tar/0003.png": b"third"}
    assert next(item for item in items if "0001" in item.source).licence == "CC0"


def test_tars_cannot_lead_out(tmp_path):
    root = folder(tmp_path)
    members = (("../up.mp4", b"x"), ("/abs.mp4", b"x"), ("a/../../b.mp4", b"x"), ("fine.mp4", b"x"))
    tar(root / "x.tar", *members, links=(("link.mp4", "/etc/passwd"),))
    captions, dropped = listed(root)
    assert list(captions) == ["x.tar/fine.mp4"]
    assert set(dropped.values()) == {"outside"}
    assert len(dropped) == 4


def test_tars_that_are_cut_packed_or_none(tmp_path):
    root = folder(tmp_path)
    whole = tar(root / "cut.tar", ("a.mp4", b"x" * 600), ("b.mp4", b"y" * 6000)).read_bytes()
    (root / "cut.tar").write_bytes(whole[:4000])
    (root / "none.tar").write_bytes(b"z" * 4000)
    (root / "packed.tar.gz").write_bytes(b"")
    captions, dropped = listed(root)
    assert list(captions) == ["cut.tar/a.mp4"]
    assert dropped["none.tar"] == dropped["packed.tar.gz"] == "unreadable"
    assert "damaged" in dropped.values()
