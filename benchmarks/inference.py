"""Inference beside diffusers: the same weights, type and threads in one process, medians of alternating runs.

    python benchmarks/inference.py [--threads 2] [--dtype bfloat16] [--cases transformer-384 decode ...] [--repeats 7]
    python benchmarks/inference.py --device cuda --cases wan-1.3b

Prints, with the machine's matrix and convolution rates of the same run: seconds of both, their ratio (above 1: faster
than diffusers), how far the results are apart, and the memory that each needs above the imported interpreter, in
processes of their own. The clip of the bundled model also with what is approximate: its error and its gain.
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from measuring import alternate, convolution_rate, held_bytes, in_process, matrix_rate, peak_bytes
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from carrara.autoencoders.video import VideoAutoencoder
from carrara.autoencoders.video_config import WAN_2_1
from carrara.autoencoders.video_weights import diffusers_names
from carrara.core.types import TextStates, VideoShape
from carrara.core.weights import NameTable
from carrara.denoisers.dit import WAN_1_3B, DiT, DiTConfig
from carrara.denoisers.dit_weights import DIFFUSERS, is_island
from carrara.generation.run import find_model

Run = Callable[[], Tensor]
PADDED = 512  # tokens to which diffusers pads every prompt
PROMPT = "a red ball bounces on the grass"


@dataclass(frozen=True)
class Case:
    """One network on both sides: how each is built from nothing, what is asked of it, and the names of its weights."""

    ours: Callable[[], nn.Module]
    theirs: Callable[[], nn.Module]
    ask_ours: Callable[[Any, torch.dtype, torch.device], Run]
    ask_theirs: Callable[[Any, torch.dtype, torch.device], Run]
    names: NameTable
    work: float | None = None  # operations of diffusers' way; None: all of them are of kinds that torch counts
    bound: str = "matrix"  # which rate limits it


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def transformer(config: DiTConfig, latent: tuple[int, int, int], words: int) -> Case:
    """One forward pass; text is read by us once per prompt, as by our sampler, and by diffusers in every pass."""
    x, t, states = draw(1, config.in_channels, *latent), torch.tensor([500]), draw(1, words, config.text_dim, seed=1)

    def ask_ours(network: DiT, dtype: torch.dtype, device: torch.device) -> Run:
        if device.type != "cpu":
            network.pack()
        text = TextStates(states.to(device, dtype), torch.tensor([words], device=device), PADDED)
        keys, noised, level = network.read_text(text), x.to(device), t.double().to(device) / 1000
        return lambda: network(noised, level, keys)

    def ask_theirs(network: Any, dtype: torch.dtype, device: torch.device) -> Run:
        text = torch.cat((states, states.new_zeros(1, PADDED - words, config.text_dim)), dim=1).to(device, dtype)
        noised, level = x.to(device, dtype), t.to(device)
        return lambda: network(noised, level, text, return_dict=False)[0]

    def theirs() -> nn.Module:
        from diffusers import WanTransformer3DModel

        return WanTransformer3DModel.from_config(config.to_diffusers())

    tokens = latent[0] * latent[1] * latent[2] // 4
    return Case(lambda: DiT(config), theirs, ask_ours, ask_theirs, DIFFUSERS, transformer_work(config, tokens))


def transformer_work(config: DiTConfig, tokens: int) -> float:
    """Operations of one pass that reads 512 tokens of text; a multiplication and an addition count two."""
    d = config.dim
    block = tokens * (6 * d * d + 2 * d * config.ffn_dim) + PADDED * 2 * d * d + 2 * d * tokens * (tokens + PADDED)
    ends = tokens * d * 4 * (config.in_channels + config.out_channels) + PADDED * d * (config.text_dim + d)
    return 2 * (config.layers * block + ends)


def autoencoder(task: str) -> Case:
    """Wan 2.1's, 17 frames of 128 x 128."""
    video, latents = draw(1, 3, 17, 128, 128).clamp(-1, 1), draw(1, 16, 5, 16, 16)

    def ask_ours(network: VideoAutoencoder, dtype: torch.dtype, device: torch.device) -> Run:
        if dtype != torch.float32:  # as models are loaded
            network.pack()
        if task == "decode":
            given = latents.to(device, dtype)
            return lambda: torch.cat(list(network.decode_chunks(given)), dim=2)
        given = video.to(device, dtype)
        return lambda: network.encode(given)

    def ask_theirs(network: Any, dtype: torch.dtype, device: torch.device) -> Run:
        mean, std = (
            torch.tensor(values, device=device).view(1, -1, 1, 1, 1)
            for values in (WAN_2_1.latents_mean, WAN_2_1.latents_std)
        )
        if task == "decode":
            given = (latents.to(device) * std + mean).to(dtype)
            return lambda: network.decode(given, return_dict=False)[0]
        given = video.to(device, dtype)
        return lambda: (network.encode(given, return_dict=False)[0].mode() - mean) / std

    def theirs() -> nn.Module:
        from diffusers import AutoencoderKLWan

        return AutoencoderKLWan.from_config(WAN_2_1.to_diffusers())

    names = diffusers_names(WAN_2_1)
    return Case(lambda: VideoAutoencoder(WAN_2_1), theirs, ask_ours, ask_theirs, names, bound="convolution")


SMALL = DiTConfig(heads=6, head_dim=64, layers=12, ffn_dim=1536)
WIDE = replace(WAN_1_3B, layers=4)
CASES: dict[str, Callable[[], Case]] = {
    "transformer-384": lambda: transformer(SMALL, (9, 16, 16), 40),  # 576 tokens
    "transformer-384-full": lambda: transformer(SMALL, (9, 16, 16), PADDED),  # a prompt of 512 real tokens
    "transformer-1536": lambda: transformer(WIDE, (5, 32, 32), 40),  # 1280 tokens
    "transformer-1536-full": lambda: transformer(WIDE, (5, 32, 32), PADDED),
    "decode": lambda: autoencoder("decode"),
    "encode": lambda: autoencoder("encode"),
    "wan-1.3b": lambda: transformer(WAN_1_3B, (21, 60, 104), 40),  # 480p, 81 frames; for a GPU
}
ON_CPU = [name for name in CASES if name != "wan-1.3b"]


@torch.no_grad()
def compare(name: str, dtype: torch.dtype, device: torch.device, repeats: int, rates: Mapping[str, float]) -> None:
    case = CASES[name]()
    torch.manual_seed(0)
    theirs = case.theirs().eval()
    with torch.device("meta"):
        ours = case.ours().eval()
    ours.load_state_dict({case.names.to_ours(key): value for key, value in theirs.state_dict().items()}, assign=True)
    cast(theirs, device, dtype)
    cast(ours, device, dtype)
    runs = [case.ask_ours(ours, dtype, device), case.ask_theirs(theirs, dtype, device)]
    mine = runs[0]()
    with FlopCounterMode(display=False) as counter:
        yours = runs[1]()
    apart, work = distance(mine, yours), case.work or counter.get_total_flops()
    ours_taken, theirs_taken = alternate(runs, repeats, device)
    shares = [work / taken / rates[case.bound] for taken in (ours_taken, theirs_taken)]  # what we save counts as done
    print(
        f"{name:<22} {ours_taken * 1e3:8.1f} ms, diffusers {theirs_taken * 1e3:8.1f} ms: "
        f"{theirs_taken / ours_taken:4.2f}x; {work / 1e9:.0f} GFLOP, {shares[0]:.0%} and {shares[1]:.0%} of the "
        f"{case.bound} rate; apart {apart:.1e}",
        flush=True,
    )


def cast(network: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
    """As both load them: what diffusers says must stay float32 stays so, there and here."""
    islands = getattr(network, "_keep_in_fp32_modules", None) or ()
    for name, parameter in network.named_parameters():
        kept = is_island(name) if isinstance(network, DiT) else any(island in name.split(".") for island in islands)
        parameter.data = parameter.data.to(device, torch.float32 if kept else dtype)
    for buffer in network.buffers():
        buffer.data = buffer.data.to(device)


def distance(a: Tensor, b: Tensor) -> float:
    """Relative, in norm."""
    return ((a.float() - b.float()).norm() / b.float().norm()).item()


@torch.inference_mode()
def clip(dtype: torch.dtype, repeats: int) -> None:
    """The bundled model: 20 steps with guidance, decoded; then what is approximate."""
    from carrara.systems.latent import LatentVideo

    system = LatentVideo.load(find_model("pond"), dtype)
    defaults = system.defaults
    shape = VideoShape(defaults.frames, defaults.height, defaults.width)
    sampling = replace(defaults.sampling, steps=20)
    pipeline = _pipeline(dtype)

    def ours(**changes: Any) -> Tensor:
        latents = system.sample([PROMPT], [7], shape, replace(sampling, **changes))
        return torch.cat([frames.float() for frames in system.decode_chunks(latents)], dim=2) / 2 + 0.5

    def theirs() -> Tensor:
        return _their_clip(pipeline, system, shape, sampling)

    apart = (ours() - theirs()).abs().max().item() * 255
    mine, yours = alternate([ours, theirs], repeats, torch.device("cpu"))
    kind = str(dtype).removeprefix("torch.")
    print(
        f"clip, 20 steps, {kind:<9} {mine:5.2f} s, diffusers {yours:5.2f} s: {yours / mine:4.2f}x; "
        f"apart {apart:.1f}/255",
        flush=True,
    )
    exact = ours()
    options: list[dict[str, Any]] = [{"reuse": share} for share in (0.05, 0.1, 0.2)]
    options += [{"interval": (0.0, 0.8)}, {"interval": (0.2, 0.8)}, {"reuse": 0.1, "interval": (0.2, 0.8)}]
    for changes in options:
        error = (ours(**changes) - exact).square().mean().item()
        fast, whole = alternate(
            [lambda changes=changes: ours(**changes), ours], max(3, repeats // 2), torch.device("cpu")
        )
        psnr = -10 * torch.tensor(max(error, 1e-12)).log10().item()
        said = ", ".join(f"{key} {value}" for key, value in changes.items())
        print(f"    approximate, {said}: {whole / fast:4.2f}x, {psnr:.1f} dB from the exact clip", flush=True)


def _pipeline(dtype: torch.dtype) -> Any:
    import diffusers
    import transformers

    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipeline = diffusers.WanPipeline.from_pretrained(find_model("pond"), local_files_only=True, torch_dtype=dtype)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _their_clip(pipeline: Any, system: Any, shape: VideoShape, sampling: Any) -> Tensor:
    latent = shape.latent(system.stride)
    noise = draw(1, system.latent_channels, latent.frames, latent.height, latent.width, seed=7)
    made = pipeline(
        PROMPT,
        height=shape.height,
        width=shape.width,
        num_frames=shape.frames,
        num_inference_steps=sampling.steps,
        guidance_scale=sampling.guidance,
        latents=noise,
        output_type="pt",
    )
    return made.frames.transpose(1, 2)


@torch.inference_mode()
def child(name: str, side: str, dtype: torch.dtype, threads: int) -> None:
    """In a process of its own: build one side from nothing, run it once, and say what that took above the imports."""
    torch.set_num_threads(threads)
    case = CASES[name]()
    if side == "theirs":
        import diffusers  # noqa: F401
        from diffusers.models import AutoencoderKLWan, WanTransformer3DModel  # noqa: F401
    before = held_bytes()
    torch.set_default_dtype(dtype)  # or the peak would be that of weights in float32
    network = (case.ours() if side == "ours" else case.theirs()).eval()
    torch.set_default_dtype(torch.float32)
    weights = sum(value.nbytes for value in network.state_dict().values())
    ask = case.ask_ours if side == "ours" else case.ask_theirs
    ask(network, dtype, torch.device("cpu"))()
    print(json.dumps({"bytes": peak_bytes() - before, "weights": weights}))


def memory(name: str, kind: str, threads: int) -> None:
    found = {
        side: in_process(__file__, ["--child", name, side, "--dtype", kind, "--threads", str(threads)])
        for side in ("ours", "theirs")
    }
    mine, yours = (found[side]["bytes"] / 2**20 for side in ("ours", "theirs"))
    print(
        f"{name:<22} peak {mine:6.0f} MiB, diffusers {yours:6.0f} MiB: {mine / yours:4.2f} of it "
        f"(weights {found['ours']['weights'] / 2**20:.0f})",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--cases", nargs="*", choices=(*CASES, "clip", "memory"), default=[*ON_CPU, "clip", "memory"])
    parser.add_argument("--child", nargs=2, metavar=("CASE", "SIDE"), help="for measuring memory")
    args = parser.parse_args()
    dtype, device = getattr(torch, args.dtype), torch.device(args.device)
    if args.child:
        child(*args.child, dtype, args.threads)
        return
    torch.set_num_threads(args.threads)
    rates = {"matrix": matrix_rate(dtype, device), "convolution": convolution_rate(dtype, device)}
    print(
        f"{args.dtype} on {device}, {args.threads} threads: matrices {rates['matrix'] / 1e12:.2f} TFLOP/s, "
        f"convolutions {rates['convolution'] / 1e12:.2f} TFLOP/s; above 1x: faster than diffusers",
        flush=True,
    )
    for name in args.cases:
        if name == "clip":
            for kind in (torch.float32, torch.bfloat16):
                clip(kind, args.repeats)
        elif name == "memory":
            for measured in [other for other in args.cases if other in CASES and "full" not in other] or ON_CPU:
                memory(measured, args.dtype, args.threads)
        else:
            compare(name, dtype, device, args.repeats, rates)


if __name__ == "__main__":
    main()
