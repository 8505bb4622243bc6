"""One training step of the bundled model's transformer: clips per second, how much of the machine's bfloat16 matrix
rate it uses, and where the rest goes; then what the optimizers and the loader add to it.

python benchmarks/transformer.py [--batch 48] [--threads 2] [--no-compile] [--profile]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from carrara.core.config import to_dict
from carrara.core.types import TextStates
from carrara.data.latents import LatentBatch, LatentCache, write_latents
from carrara.data.pond.sampling import sample_scene
from carrara.denoisers.dit import DiT, DiTConfig
from carrara.nn.compiling import has_compiler
from carrara.nn.loops import compiled_loops
from carrara.recipes.pond_data import Captioning, latent_source
from carrara.training.config import TrainConfig
from carrara.training.optim import Average, Optimizers, block_matrices, trainable
from carrara.training.process import keep_freed_memory

CONFIG = DiTConfig(heads=4, head_dim=64, layers=8, ffn_dim=1024, in_channels=32, out_channels=32, text_dim=192)
LATENTS, WORDS = (32, 9, 8, 8), 16
KINDS = {
    "matrix products": ("aten::mm", "aten::addmm", "mkldnn::_linear_pointwise"),
    "attention products": ("aten::bmm", "aten::baddbmm"),
    "copies and casts": ("aten::copy_", "aten::cat", "aten::stack"),
}


def seconds(run: Callable[[], object], repeats: int, clock: Callable[[], float] = time.perf_counter) -> float:
    """The median of several runs, after two that warm up."""
    taken = []
    for index in range(repeats + 2):
        start = clock()
        run()
        if index >= 2:
            taken.append(clock() - start)
    return sorted(taken)[len(taken) // 2]


def in_turn(runs: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """The median of each, one after the other in every round, so that what else runs here slows all alike."""
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for round_ in range(repeats + 2):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if round_ >= 2:
                taken[name].append(time.perf_counter() - start)
    return {name: sorted(each)[len(each) // 2] for name, each in taken.items()}


def within(loops: bool, step: Callable[[], object]) -> None:
    with compiled_loops(loops):
        step()


def step_flops(config: DiTConfig, tokens: int, words: int) -> float:
    """Multiply-adds count two; backward costs twice forward; norms and other elementwise work count nothing."""
    d = config.dim
    block = tokens * (6 * d * d + 2 * d * config.ffn_dim) + words * 2 * d * d + 2 * d * tokens * (tokens + words)
    ends = tokens * d * 4 * (config.in_channels + config.out_channels) + words * d * (config.text_dim + d)
    return 3 * 2 * (config.layers * block + ends)


def shares(run: Callable[[], object], table: bool) -> dict[str, float]:
    """Of the time in operators, how much is spent on each of `KINDS`, and on everything else."""
    with torch.profiler.profile() as profile:
        run()
    events = profile.key_averages()
    if table:
        print(events.table(sort_by="self_cpu_time_total", row_limit=40, max_name_column_width=48))
    total = sum(event.self_cpu_time_total for event in events)
    found = {
        kind: sum(event.self_cpu_time_total for event in events if event.key in names) / total
        for kind, names in KINDS.items()
    }
    return {**found, "elementwise and the rest": 1 - sum(found.values())}


def optimizer_seconds(model: nn.Module, kind: str, repeats: int) -> float:
    """Everything between the gradients and the next step: their norm, the clipping, the update, the average."""
    parameters = trainable(model)
    optimizers = Optimizers(parameters, block_matrices(model), TrainConfig(steps=1, optimizer=kind))
    average = Average(parameters)

    def update() -> None:
        gradients = [p.grad for p in parameters.values() if p.grad is not None]
        norm = float(nn.utils.get_total_norm(gradients))
        torch._foreach_mul_(gradients, 1 / (1 + norm))
        optimizers.step(1e-6)
        average.update(0.999)

    return seconds(update, repeats)


def loader_seconds(folder: Path, batch: int, repeats: int, clips: int = 1000) -> float:
    """Seconds of CPU to read a batch of latents and to tell its scenes in words, from a cache in a temporary folder."""

    def produce(start: int, stop: int) -> Iterator[LatentBatch]:
        c, _, h, w = LATENTS
        yield LatentBatch(
            torch.zeros(stop - start, *LATENTS),
            [{"scene": to_dict(sample_scene(number))} for number in range(start, stop)],
            torch.zeros(stop - start, 2, c, h, w),
            torch.tensor([[8, 16]]).expand(stop - start, -1),
        )

    write_latents(folder, produce, clips, "benchmark", about={"frames": 17})
    source = latent_source(LatentCache.open(folder, "benchmark"), batch, Captioning(), seed=0)
    steps = iter(range(1000, 1000 + repeats + 2))
    return seconds(lambda: source(next(steps)), repeats, time.process_time)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=48)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument(
        "--compile",
        action=argparse.BooleanOptionalAction,
        default=has_compiler(),
        help="beside it with compiled loops, which need a C++ compiler",
    )
    parser.add_argument("--profile", action="store_true", help="print the slowest operators")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    keep_freed_memory()
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    model = DiT(CONFIG)
    model.init_weights(generator)
    x, target, t = draw(args.batch, *LATENTS), draw(args.batch, *LATENTS), torch.linspace(0, 1, args.batch)
    text = TextStates(draw(args.batch, WORDS, CONFIG.text_dim), torch.full((args.batch,), WORDS))

    def step() -> None:
        model.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16):
            flow = model(x, t, text)
        (flow.float() - target).square().mean().backward()

    a, w = draw(5120, 256).bfloat16(), draw(1024, 256).bfloat16()
    rate = 2 * 5120 * 256 * 1024 / seconds(lambda: torch.nn.functional.linear(a, w), 30)
    _, frames, height, width = LATENTS
    work = args.batch * step_flops(CONFIG, frames * height * width // 4, WORDS + 1)
    ways = {"step": False, **({"step, compiled loops": True} if args.compile else {})}
    taken = in_turn({name: partial(within, on, step) for name, on in ways.items()}, args.repeats)
    for name, on in ways.items():
        used = work / taken[name]
        print(f"{name}: {args.batch / taken[name]:.1f} clips/s, {taken[name] * 1e3:.0f} ms for {args.batch}; ", end="")
        print(f"{used / 1e9:.0f} of {rate / 1e9:.0f} GFLOP/s = {used / rate:.0%} of the bfloat16 matrix rate")
        found = shares(partial(within, on, step), args.profile)
        print("  of which " + ", ".join(f"{kind} {share:.0%}" for kind, share in found.items()))
    for kind in ("adamw", "muon"):
        update = optimizer_seconds(model, kind, args.repeats)
        print(f"{kind} adds {update * 1e3:.0f} ms, {update / (taken['step'] + update):.0%} of the whole step")
    with tempfile.TemporaryDirectory() as folder:
        loader = loader_seconds(Path(folder) / "cache", args.batch, 5 * args.repeats)
    print(f"the loader adds {loader * 1e3:.1f} ms of one core, {loader / taken['step'] / args.threads:.1%} of the step")


if __name__ == "__main__":
    main()
