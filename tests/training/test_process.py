"""Laws of what a training run borrows from its process."""

from __future__ import annotations

import platform

import pytest
import torch

from carrara.training.process import keep_freed_memory


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is asked to keep memory")
def test_memory_that_a_step_frees_is_there_for_the_next():
    import resource

    def faults_of_a_step() -> int:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        blocks = [torch.ones(2**23) for _ in range(4)]  # 32 MiB each: 32768 pages of 4 KiB in all
        del blocks
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    keep_freed_memory()
    faults_of_a_step()
    assert faults_of_a_step() < 2000
