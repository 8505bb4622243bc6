"""What a clip is estimated to need beside what it takes: random models at five sizes, each in a process of its own.

    python benchmarks/memory.py [--threads 2]

The estimate is made before the first step; taken is the process's highest mark above what it held when all modules were
imported (`getrusage` would begin at its parent's mark), from loading the folder to the finished MP4. Weights in float32
stay the mapped file, and count among what is taken as pages; weights in bfloat16 are converted, and are allocated.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

import torch
from measuring import held_bytes, in_process, peak_bytes

from carrara.autoencoders.video import VideoAutoencoder
from carrara.autoencoders.video_config import VideoAutoencoderConfig
from carrara.core.types import VideoShape
from carrara.denoisers.dit import DiT, DiTConfig
from carrara.generation.memory import plan_memory
from carrara.generation.request import Request
from carrara.generation.run import Model
from carrara.systems.latent import Defaults, LatentVideo, Sampling
from carrara.text.encoder import TextEncoder, TextEncoderConfig
from carrara.text.tokenizer import train_tokenizer

CHANNELS = 8
PROMPT = "a red ball bounces on the grass"
# By name: base width of the autoencoder, width and depth of the transformer, the clip, and the type that it runs in.
CASES = {
    "small": (16, 256, 4, VideoShape(9, 128, 128), torch.float32),
    "long": (16, 256, 4, VideoShape(33, 128, 128), torch.float32),
    "wide": (16, 512, 6, VideoShape(9, 256, 256), torch.float32),
    "heavy": (16, 768, 6, VideoShape(9, 192, 192), torch.bfloat16),
    "large": (24, 512, 4, VideoShape(9, 320, 384), torch.float32),
}


def write_model(folder: Path, base: int, dim: int, layers: int, shape: VideoShape) -> None:
    """A random model, every part real."""
    tokenizer = train_tokenizer([PROMPT, "a green frog jumps over the pond"])
    torch.manual_seed(0)
    autoencoder = VideoAutoencoder(VideoAutoencoderConfig(base, latent_channels=CHANNELS))
    denoiser = DiT(DiTConfig(dim // 64, 64, layers, 4 * dim, CHANNELS, CHANNELS, text_dim=64))
    text = TextEncoder(TextEncoderConfig(tokenizer.vocab_size, 64, 16, 128, 1, 4))
    sampling = Sampling(steps=2, guidance=3.0)
    defaults = Defaults(shape.frames, shape.height, shape.width, 8.0, sampling, max_prompt_tokens=32)
    LatentVideo(autoencoder, denoiser, text, tokenizer, defaults).save(folder, torch.float32)


def measure(folder: Path, dtype: torch.dtype) -> dict[str, float]:
    """Make one clip; bytes by kind."""
    import av  # noqa: F401  the interpreter with everything that a clip needs imported
    from transformers.models.umt5 import modeling_umt5  # noqa: F401

    before = held_bytes()
    model = Model("random", LatentVideo.load(folder, dtype))
    plan = model.plan(Request(PROMPT, seed=1))
    said = plan_memory(model.system, plan.shape)
    model.write(plan, folder / "clip.mp4", progress=False)
    taken = peak_bytes() - before
    parts = {name: getattr(said, name) for name in ("allocated", "mapped", "text", "denoising", "decoding")}
    return {"taken": taken, "estimated": said.peak, **parts}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cases", nargs="*", default=list(CASES), choices=list(CASES))
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.measure:
        folder, case = options.measure
        print(json.dumps(measure(Path(folder), CASES[case][4])))
        return
    for name in options.cases:
        base, dim, layers, shape, _ = CASES[name]
        with tempfile.TemporaryDirectory() as place:
            write_model(Path(place) / "model", base, dim, layers, shape)
            arguments = ["--threads", str(options.threads), "--measure", str(Path(place) / "model"), name]
            found = {key: value / 2**20 for key, value in in_process(__file__, arguments).items()}
        taken, estimated = found.pop("taken"), found.pop("estimated")
        rest = ", ".join(f"{key} {value:.0f}" for key, value in found.items())
        size = f"{shape.frames} x {shape.width} x {shape.height}"
        print(
            f"{name:<6} {size:<16} taken {taken:6.0f} MiB  estimated {estimated:6.0f}  {estimated / taken:4.2f} "
            f"({rest})"
        )
        sys.stdout.flush()


if __name__ == "__main__":
    main()
