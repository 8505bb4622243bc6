"""One training step of VDM's U-Net beside that of `video-diffusion-pytorch` 0.7 at the same sizes, and beside the
machine's convolution rate: dim 32, multipliers 1-2-4, 4 clips of 16 x 32 x 32, text of width 64.

    python benchmarks/unet.py [--threads 2] [--repeats 5] [--processor-time]

The reference, without the packages that it only imports for reading files and text:

    pip install --no-deps -c constraints.txt video-diffusion-pytorch==0.7 einops-exts rotary-embedding-torch
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from types import ModuleType

import torch
from torch import Tensor, nn

from carrara.core.types import TextStates
from carrara.denoisers.unet3d import Conditions, UNet3D, UNetConfig
from carrara.nn.flops import count_flops
from carrara.training.process import keep_freed_memory

BATCH, FRAMES, SIDE, WORDS = 4, 16, 32, 16
CONFIG = UNetConfig(dim=32, multipliers=(1, 2, 4), text_dim=64)
INSTALL = "pip install --no-deps -c constraints.txt video-diffusion-pytorch==0.7 einops-exts rotary-embedding-torch"
TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def reference() -> nn.Module | None:
    """The reference's network at `CONFIG`'s sizes, or None where it is not installed.

    It imports torchvision, for pictures that nobody reads here; that package's build on PyPI breaks beside a torch
    without CUDA. Modules of its name, with the one class that a default argument asks for, stand in meanwhile.
    """
    parts = {name: ModuleType(f"torchvision.{name}") for name in ("transforms", "utils")}
    parts["transforms"].__dict__["ToTensor"] = object
    whole = ModuleType("torchvision")
    whole.__dict__.update(parts)
    stand_ins = {"torchvision": whole, **{module.__name__: module for module in parts.values()}}
    before = {name: sys.modules.pop(name, None) for name in stand_ins}
    sys.modules.update(stand_ins)
    try:
        from video_diffusion_pytorch import Unet3D
    except ImportError as missing:
        print(f"without the reference ({missing}); it comes with: {INSTALL}")
        return None
    finally:
        for name, module in before.items():
            del sys.modules[name]
            if module is not None:
                sys.modules[name] = module
    return Unet3D(CONFIG.dim, cond_dim=CONFIG.text_dim, dim_mults=CONFIG.multipliers)


def steps(generator: torch.Generator) -> dict[str, tuple[nn.Module, Callable[[], Tensor]]]:
    """Each network with its loss on the same clips. Both predict; the loss is the mean square, as in training."""

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    x, noise, t = draw(BATCH, 3, FRAMES, SIDE, SIDE), draw(BATCH, 3, FRAMES, SIDE, SIDE), torch.linspace(0, 1, BATCH)
    ours = UNet3D(CONFIG)
    ours.init_weights(generator)
    text = TextStates(draw(BATCH, WORDS, CONFIG.text_dim), torch.full((BATCH,), WORDS))
    found = {"carrara": (ours, lambda: (ours(x, t, Conditions(text)).float() - noise).square().mean())}
    theirs = reference()
    if theirs is not None:
        pooled = text.states.mean(1)  # it takes one vector a prompt
        found["video-diffusion-pytorch"] = (
            theirs,
            lambda: (theirs(x, 1000 * t, cond=pooled).float() - noise).square().mean(),
        )
    return found


def convolution() -> tuple[Callable[[], object], float]:
    """What shows how fast the machine can convolve, and its operations: 3 x 3, 192 channels to 192, channels last."""
    x = torch.randn(4, 192, 64, 64).bfloat16().to(memory_format=torch.channels_last)
    weight = torch.randn(192, 192, 3, 3).bfloat16().to(memory_format=torch.channels_last)
    return lambda: torch.nn.functional.conv2d(x, weight, padding=1), 2 * 9 * 192**2 * 4 * 64**2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--processor-time", action="store_true", help="for a machine that others use; with one thread")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    keep_freed_memory()
    clock = time.process_time if args.processor_time else time.perf_counter
    networks = steps(torch.Generator().manual_seed(0))
    convolve, operations = convolution()

    def step(name: str, dtype: torch.dtype) -> None:
        network, loss = networks[name]
        network.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            made = loss()
        made.backward()

    runs: dict[tuple[str, str], Callable[[], object]] = {
        (name, kind): lambda name=name, dtype=dtype: step(name, dtype)  # type: ignore[misc]
        for name in networks
        for kind, dtype in TYPES.items()
    }
    runs["convolution", "bfloat16"] = lambda: [convolve() for _ in range(5)]
    taken: dict[tuple[str, str], list[float]] = {key: [] for key in runs}
    for round_ in range(args.repeats + 1):  # the first warms up
        for key, run in runs.items():
            begin = clock()
            run()
            if round_:
                taken[key].append(clock() - begin)
    median = {key: statistics.median(values) for key, values in taken.items()}
    rate = 5 * operations / median["convolution", "bfloat16"]
    print(
        f"{rate / 1e9:.0f} GFLOP/s of bfloat16 convolutions; {args.threads} threads, medians of {args.repeats} in turn"
    )
    for name, (network, loss) in networks.items():
        work, size = count_flops(loss, network.parameters()), sum(each.numel() for each in network.parameters())
        print(f"{name}: {size / 1e6:.1f} M parameters, {work / 1e9:.0f} GFLOP a step")
        for kind in TYPES:
            seconds = median[name, kind]
            line = f"  {kind:<9} {seconds:6.3f} s a step, {work / seconds / 1e9:5.0f} GFLOP/s"
            print(f"{line}, {work / seconds / rate:.0%} of the convolution rate")
    for kind in TYPES if len(networks) > 1 else ():
        pairs = zip(taken["video-diffusion-pytorch", kind], taken["carrara", kind], strict=True)
        print(
            f"{kind}: {statistics.median(theirs / ours for theirs, ours in pairs):.1f} times as fast as the reference"
        )


if __name__ == "__main__":
    main()
