"""Formulas that `torch.compile` makes one loop of each, for training on a CPU: opt-in, since compiling takes seconds.

torch's own passes turn bfloat16 into float32 and back at about a cycle a number, in cache or out of it, and a chain of
ten passes does so ten times. Matrix products stay as they are: compiled as a whole, a block trains no faster on one
thread, for its products then lose what its passes gain.

Every loop is made once for all sizes of its free axes, and from an example that never changes. So what it gives depends
on its input alone and not on what it was given before: a resumed run repeats an uninterrupted one bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from carrara.nn.compiling import allow_many_graphs, check_compiler

_EXAMPLE = {"r": 96, "s": 40}
"""The sizes of an example's free axes: not 0 and 1, which torch compiles for alone, and enough for several threads."""

_on = False


@contextmanager
def compiled_loops(on: bool = True) -> Iterator[None]:
    """Within, training on a CPU takes compiled loops. Raises ValueError where there is no C++ compiler."""
    global _on
    if on:
        check_compiler()
    before, _on = _on, on
    try:
        yield
    finally:
        _on = before


def looped(*tensors: Tensor | None) -> bool:
    """Whether compiled loops are to be taken: within `compiled_loops`, for types and places that they are made for."""
    return _on and all(
        each is None or (each.is_cpu and each.dtype in (torch.bfloat16, torch.float32) and each.numel())
        for each in tensors
    )


class Loop:
    """A formula of tensors and constants, compiled when it first meets such types, widths and constants.

    axes: of each tensor a letter an axis: free ones are "r" and "s", and "." is one that a loop is made for, as it is
    for free axes of size 1. Tensors are taken in rows (they are copied where they are not) and are not learned from.
    The constants after them are whole numbers and types.
    """

    def __init__(self, formula: Callable[..., Any], *axes: str) -> None:
        self.formula, self.axes = formula, axes
        self.run: Callable[..., Any] | None = None
        self.threads = 0
        self.made: set[tuple[object, ...]] = set()

    def __call__(self, *given: Any) -> Any:
        # Detached, for what requires a gradient would be compiled for anew, with all of its sizes.
        tensors = [each.detach().contiguous() for each in given[: len(self.axes)]]
        constants = given[len(self.axes) :]
        sizes = [(each.dtype, *_sizes(each, axes)) for each, axes in zip(tensors, self.axes, strict=True)]
        key = (*sizes, *constants)
        with torch.autocast("cpu", enabled=False), torch.no_grad():
            if self.run is None or self.threads != torch.get_num_threads():
                self.run = self._begun()
            if key not in self.made:
                self.run(*(_example(each, axes) for each, axes in zip(tensors, self.axes, strict=True)), *constants)
                self.made.add(key)
            return self.run(*tensors, *constants)

    def _begun(self) -> Callable[..., Any]:
        """Nothing compiled yet: a loop is made for one number of threads."""
        from torch._dynamo.eval_frame import remove_from_cache

        allow_many_graphs()
        remove_from_cache(self.formula)
        self.threads = torch.get_num_threads()
        self.made.clear()
        return torch.compile(self.formula, fullgraph=True, dynamic=False)


def _sizes(tensor: Tensor, axes: str) -> tuple[int, ...]:
    return tuple(_EXAMPLE.get(axis, size) if size > 1 else size for axis, size in zip(axes, tensor.shape, strict=True))


def _example(tensor: Tensor, axes: str) -> Tensor:
    import torch._dynamo

    made = torch.ones(_sizes(tensor, axes), dtype=tensor.dtype)
    for index, (axis, size) in enumerate(zip(axes, tensor.shape, strict=True)):
        if axis in _EXAMPLE and size > 1:
            torch._dynamo.mark_dynamic(made, index)
    return made
