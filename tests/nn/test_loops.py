"""Compiled loops: what they give is what the written-out steps give, to rounding, whatever they were given before."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

from carrara.nn import chains, fused, products
from carrara.nn.compiling import has_compiler
from carrara.nn.loops import Loop, compiled_loops, looped
from carrara.nn.positions import grid_positions, rotations
from carrara.training.process import thread_count

needs_compiler = pytest.mark.skipif(not has_compiler(), reason="no C++ compiler")
LOW = torch.bfloat16


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def turns(clips: int, n: int, width: int) -> Tensor:
    return rotations(grid_positions(torch.arange(float(n)).expand(clips, n), 1, 1), width)


def norm(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return fused.modulated_norm(x, shift, scale, 1e-6, LOW)


def heads(clips: int | None) -> Callable[..., Tensor]:
    return lambda x, weight: fused.normed_heads(
        x, weight, None if clips is None else turns(clips, 5, 8), 2, 1e-6, x.dtype
    )


# name: (the step, its inputs)
STEPS: dict[str, tuple[Callable[..., Tensor], list[Tensor]]] = {
    "norm, a level per clip": (norm, [draw(3, 1, 5, 16), draw(3, 1, 1, 16, seed=1), draw(3, 1, 1, 16, seed=2)]),
    "norm, a level per frame": (norm, [draw(3, 2, 4, 16), draw(3, 2, 1, 16, seed=1), draw(3, 2, 1, 16, seed=2)]),
    "norm, a level per token": (norm, [draw(3, 5, 1, 16), draw(3, 5, 1, 16, seed=1), draw(3, 5, 1, 16, seed=2)]),
    "norm, one level for all": (norm, [draw(1, 1, 5, 16), draw(1, 1, 1, 16, seed=1), draw(1, 1, 1, 16, seed=2)]),
    "gated sum": (
        fused.gated_sum,
        [draw(3, 2, 4, 16), draw(3, 2, 4, 16, seed=1, dtype=LOW), draw(3, 2, 1, 16, seed=2)],
    ),
    "gelu": (products.gelu, [3 * draw(3, 5, 40, dtype=LOW)]),
    "heads": (heads(None), [draw(3, 5, 16, dtype=LOW), 1 + 0.1 * draw(16, seed=1)]),
    "turned heads": (heads(1), [draw(3, 5, 16, dtype=LOW), 1 + 0.1 * draw(16, seed=1)]),
    "heads turned clip by clip": (heads(3), [draw(3, 5, 16, dtype=LOW), 1 + 0.1 * draw(16, seed=1)]),
}


def made(step: Callable[..., Tensor], inputs: list[Tensor]) -> list[Tensor]:
    """What the step gives, and what each input learns of it."""
    learned = [each.clone().requires_grad_(True) for each in inputs]
    out = step(*learned)
    out.backward(draw(*out.shape, seed=9, dtype=out.dtype))
    return [out.detach(), *(each.grad for each in learned)]  # type: ignore[misc]


@needs_compiler
@pytest.mark.parametrize("name", STEPS)
def test_a_loop_gives_what_the_written_out_step_gives(name):
    step, inputs = STEPS[name]
    wanted = made(step, inputs)
    with compiled_loops():
        found = made(step, inputs)
    for mine, theirs in zip(found, wanted, strict=True):
        assert mine.dtype == theirs.dtype
        assert mine.shape == theirs.shape
        scale = float(theirs.abs().max())
        assert float((mine.double() - theirs.double()).abs().max()) <= scale * (2**-7 if theirs.dtype == LOW else 2e-6)
        assert mine.is_contiguous()


@needs_compiler
@pytest.mark.parametrize("name", ["norm, a level per frame", "gated sum", "gelu", "turned heads"])
def test_another_number_of_clips_compiles_nothing_anew(name):
    step, inputs = STEPS[name]

    def clips(count: int) -> list[Tensor]:
        return [x if x.ndim == 1 else x.repeat(count, *[1] * (x.ndim - 1)) for x in inputs]

    with compiled_loops():
        made(step, clips(2))
        before = counters["stats"]["unique_graphs"]
        for count in (3, 5, 70):
            made(step, clips(count))
        assert counters["stats"]["unique_graphs"] == before


@needs_compiler
def test_bits_do_not_depend_on_what_came_before():
    """The same formula, compiled twice, meets two sizes in either order; widths and constants are its own."""
    small, large = (draw(rows, 7, 16, seed=rows) for rows in (2, 33))
    given: dict[bool, dict[int, Tensor]] = {}
    for first in (True, False):
        torch.compiler.reset()
        loop = Loop(chains._norm_formula, "rs.", "r..", "r..", "")
        for x in (small, large) if first else (large, small):
            rows = draw(len(x), 1, 16, seed=5)
            given.setdefault(first, {})[len(x)] = loop(x, rows, rows, torch.tensor(1e-6), LOW)[0]
        assert len(loop.made) == 1  # one loop for both sizes
    assert all(torch.equal(given[True][rows], given[False][rows]) for rows in (2, 33))


@needs_compiler
def test_a_loop_is_made_for_one_number_of_threads():
    loop, x = Loop(chains._gelu_formula, "r."), draw(9, 16)
    with thread_count(1):
        first = loop(x)[0]
        assert loop.threads == 1
    with thread_count(2):
        assert torch.equal(loop(x)[0], first)
        assert loop.threads == 2
    assert torch.allclose(first, torch.nn.functional.gelu(x, approximate="tanh"), atol=1e-6)


@needs_compiler
def test_rounding_is_to_the_nearest_and_keeps_what_is_not_finite():
    odd = torch.tensor(
        [1 + 2**-9, 1 + 3 * 2**-9, -1 - 2**-8, 3e38, 3.4e38, torch.inf, -torch.inf, torch.nan, 0.0, -0.0]
    )
    joined = chains._joined(odd, odd.flip(0)).view(LOW).view(-1, 2)
    assert torch.equal(joined[:, 0].isnan(), odd.isnan())
    expected = torch.stack((odd, odd.flip(0)), dim=-1).to(LOW)
    assert torch.equal(joined.nan_to_num(7), expected.nan_to_num(7))
    first, second = chains._halves(expected)
    assert torch.equal(first.nan_to_num(7), expected[:, :1].float().nan_to_num(7))
    assert torch.equal(second.nan_to_num(7), expected[:, 1:].float().nan_to_num(7))


def test_loops_are_taken_only_where_they_were_asked_for(monkeypatch):
    x = draw(2, 3)
    assert not looped(x)
    with compiled_loops(False):
        assert not looped(x)
    if has_compiler():
        with compiled_loops():
            assert looped(x, None)
            assert not looped(x.double())
            assert not looped(x[:0])
            with compiled_loops(False):
                assert not looped(x)
            assert looped(x)
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ValueError, match="no C\\+\\+ compiler 'no-such-compiler' here"), compiled_loops():
        pass
    assert not looped(x)
