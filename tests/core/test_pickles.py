"""Pickles of weights: read as tensors, mapped, and refused where they hold or would run anything else."""

from __future__ import annotations

import os
import pickle
import re

import pytest
import torch
from torch import nn

from carrara.core.pickles import read_pickle
from carrara.core.weights import fill


class Runs:
    """What unpickling this does is call a program."""

    def __init__(self, mark) -> None:
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("archive", [True, False])
def test_weights_come_back(tmp_path, archive):
    module = nn.Linear(3, 2)
    torch.save(module.state_dict(), tmp_path / "w.pth", _use_new_zipfile_serialization=archive)
    with torch.device("meta"):
        again = nn.Linear(3, 2)
    fill(again, [tmp_path / "w.pth"], read_pickle)
    assert torch.equal(again.weight, module.weight)
    assert torch.equal(again.bias, module.bias)


@pytest.mark.parametrize("archive", [True, False])
def test_a_pickle_that_runs_something_is_refused_and_runs_nothing(tmp_path, archive):
    mark = tmp_path / "ran"
    torch.save({"w": Runs(mark)}, tmp_path / "w.pth", _use_new_zipfile_serialization=archive)
    with pytest.raises(ValueError, match=r"w\.pth: refused, for it is not plain weights .*mkdir") as caught:
        read_pickle(tmp_path / "w.pth")
    assert not mark.exists()
    assert "\n" not in str(caught.value)
    with (tmp_path / "w.pth").open("rb") as file:
        torch.load(file, weights_only=False)
    assert mark.exists()  # the file does what it is refused for


CONTENTS = {
    "a module": (nn.Linear(2, 2), "refused, for it is not plain weights"),
    "a list": ([torch.zeros(2)], "holds a list"),
    "tensors in a dict": ({"state_dict": {"w": torch.zeros(2)}}, "'state_dict' is a dict, not a tensor"),
    "a number": ({"w": torch.zeros(2), "step": 3}, "'step' is a int"),
}


@pytest.mark.parametrize("what", CONTENTS)
def test_what_is_not_tensors_by_name_is_said(tmp_path, what):
    content, said = CONTENTS[what]
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=re.escape(said)) as caught:
        read_pickle(tmp_path / "w.pth")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("archive", [True, False])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.95])
def test_a_file_cut_short_is_damaged(tmp_path, archive, share):
    path = tmp_path / "w.pth"
    torch.save({"w": torch.zeros(1000)}, path, _use_new_zipfile_serialization=archive)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(ValueError, match=r"w\.pth: damaged or not a file of torch\.save.*copy it again") as caught:
        read_pickle(path)
    assert "\n" not in str(caught.value)


def test_other_files_are_named_for_what_they_are(tmp_path):
    path = tmp_path / "w.pth"
    with pytest.raises(ValueError, match="no such file"):
        read_pickle(path)
    path.write_text("<html>not found</html>")
    with pytest.raises(ValueError, match=r"not a file of torch\.save"):
        read_pickle(path)
    path.write_bytes(pickle.dumps({"w": 1}))
    with pytest.raises(ValueError, match="refused"):
        read_pickle(path)
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n")
    with pytest.raises(ValueError, match="git lfs pull"):
        read_pickle(path)
