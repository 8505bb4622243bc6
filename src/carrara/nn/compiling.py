"""`torch.compile` of the blocks that a network repeats: opt-in, since it costs seconds before it gains.

Blocks are compiled and not the whole network: they are all alike, so one of them is compiled and the others share what
was made. Every shape has a graph of its own and none is made for all shapes, so that what a block gives depends on its
input alone, and not on what it was given before: a resumed run repeats an uninterrupted one bit for bit.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable

from torch import nn

_GRAPHS = 64  # of one block or formula: for shapes, types, with and without gradients; beyond it torch makes no more


def check_compiler() -> None:
    """Raise ValueError where this machine has no C++ compiler, which `torch.compile` needs."""
    if not has_compiler():
        raise ValueError(
            f"compile: no C++ compiler {_compiler()!r} here, which torch.compile needs; install one (Debian: "
            "apt-get install g++), name one in CXX, or leave compile out"
        )


def has_compiler() -> bool:
    return shutil.which(_compiler()) is not None


def _compiler() -> str:
    return os.environ.get("CXX") or "g++"


def allow_many_graphs() -> None:
    """Let torch make more graphs of one function than the eight at which it gives up."""
    import torch._dynamo

    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, _GRAPHS)


def compile_each(blocks: Iterable[nn.Module]) -> None:
    """From now on these modules run compiled; names and weights stay. Raises ValueError where there is no compiler."""
    check_compiler()
    allow_many_graphs()
    for block in blocks:
        block.compile(dynamic=False)


def is_compiled(blocks: Iterable[nn.Module]) -> bool:
    """Whether modules run compiled."""
    return any(block._compiled_call_impl is not None for block in blocks)
