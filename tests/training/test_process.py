"""Laws of what a training run borrows from its process."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

# In a process of its own: what other tests left in the heap decides where large blocks go.
STEPS = """
import resource
import torch
from carrara.training.process import keep_freed_memory

def faults_of_a_step():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [torch.ones(2**23) for _ in range(4)]  # 32 MiB each: 32768 pages of 4 KiB in all
    del blocks
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

if {keep}:
    keep_freed_memory()
print([faults_of_a_step() for _ in range(10)][-1])  # the heap takes a few steps to settle
"""


def a_late_step(keep: bool) -> int:
    command = [sys.executable, "-c", STEPS.format(keep=keep)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is asked to keep memory")
def test_memory_that_a_step_frees_is_there_for_the_next() -> None:
    assert a_late_step(keep=True) < 2000 < a_late_step(keep=False)
