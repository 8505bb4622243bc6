"""One training step of the transformer: clips per second, and how much of the machine's bfloat16 matrix rate it uses.

python benchmarks/transformer.py [--batch 64] [--compile] [--profile]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor

from carrara.core.types import TextStates
from carrara.denoisers.dit import DiT, DiTConfig

CONFIG = DiTConfig(heads=4, head_dim=64, layers=8, ffn_dim=1024, in_channels=32, out_channels=32, text_dim=192)
LATENTS, WORDS = (5, 8, 8), 16


def seconds(run: Callable[[], object], repeats: int) -> float:
    """The median of several runs, after two that warm up."""
    taken = []
    for index in range(repeats + 2):
        start = time.perf_counter()
        run()
        if index >= 2:
            taken.append(time.perf_counter() - start)
    return sorted(taken)[len(taken) // 2]


def step_flops(config: DiTConfig, tokens: int, words: int) -> float:
    """Multiply-adds count two; backward costs twice forward; norms and other elementwise work count nothing."""
    d = config.dim
    block = tokens * (6 * d * d + 2 * d * config.ffn_dim) + words * 2 * d * d + 2 * d * tokens * (tokens + words)
    ends = tokens * d * 4 * (config.in_channels + config.out_channels) + words * d * (config.text_dim + d)
    return 3 * 2 * (config.layers * block + ends)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--compile", action="store_true", help="needs a C++ compiler")
    parser.add_argument("--profile", action="store_true", help="print the slowest operators")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    model = DiT(CONFIG)
    model.init_weights(generator)
    network = torch.compile(model) if args.compile else model
    x, target, t = draw(args.batch, 32, *LATENTS), draw(args.batch, 32, *LATENTS), torch.linspace(0, 1, args.batch)
    text = TextStates(draw(args.batch, WORDS, CONFIG.text_dim), torch.full((args.batch,), WORDS))

    def step() -> None:
        model.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16):
            flow = network(x, t, text)
        (flow.float() - target).square().mean().backward()

    a, w = draw(5120, 256).bfloat16(), draw(1024, 256).bfloat16()
    rate = 2 * 5120 * 256 * 1024 / seconds(lambda: torch.nn.functional.linear(a, w), 30)
    taken = seconds(step, args.repeats)
    tokens = LATENTS[0] * LATENTS[1] * LATENTS[2] // 4
    used = args.batch * step_flops(CONFIG, tokens, WORDS + 1) / taken
    print(f"{args.batch / taken:.1f} clips/s, {taken * 1e3:.0f} ms a step of {args.batch}; ", end="")
    print(f"{used / 1e9:.0f} of {rate / 1e9:.0f} GFLOP/s = {used / rate:.0%} of the bfloat16 matrix rate")
    if args.profile:
        with torch.profiler.profile() as profile:
            step()
        print(profile.key_averages().table(sort_by="self_cpu_time_total", row_limit=40, max_name_column_width=48))


if __name__ == "__main__":
    main()
