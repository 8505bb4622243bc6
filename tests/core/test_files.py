"""Places that cannot be written to are known before the work, and files by what is in them."""

from __future__ import annotations

import hashlib
import os

import pytest

from carrara.core.files import check_file, check_folder, sha256
from carrara.core.weights import fingerprint


def test_folders_there_and_not_yet_are_accepted_and_left_alone(tmp_path):
    check_folder(tmp_path)
    check_folder(tmp_path / "new/and/deeper")
    assert os.listdir(tmp_path) == []


def test_what_cannot_hold_files_is_refused_by_name(tmp_path):
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file/deeper"):
        with pytest.raises(ValueError, match="is a file, not a folder; choose another path"):
            check_folder(folder)
    with pytest.raises(ValueError, match=r"^x: .*cannot be written|^x\.mp4: cannot be written"):
        check_folder("/proc/nowhere", "x.mp4")
    with pytest.raises(ValueError, match="too long"):
        check_folder(tmp_path / ("n" * 300))


def test_the_digest_of_a_file_is_that_of_its_bytes(tmp_path):
    for size in (0, 1, 3 << 20):
        content = bytes(range(251)) * (size // 251 + 1)
        (tmp_path / "file").write_bytes(content[:size])
        assert sha256(tmp_path / "file") == hashlib.sha256(content[:size]).hexdigest()
        assert sha256(tmp_path / "file") == fingerprint([tmp_path / "file"])  # in which folders were recorded before


def test_a_file_is_there_or_one_line_says_what_is(tmp_path):
    (tmp_path / "a.mp4").touch()
    assert check_file(str(tmp_path / "a.mp4")) == tmp_path / "a.mp4"
    with pytest.raises(ValueError, match="is a folder, not a file"):
        check_file(tmp_path)
    for name in ("b.mp4", "a.mp4/b.mp4", "n" * 300, "a\0.mp4"):
        with pytest.raises(ValueError, match="no such file"):
            check_file(tmp_path / name)
