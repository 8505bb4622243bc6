"""Decoding that streams into its file: the peak of memory beside the number of frames.

    python benchmarks/stream_decode.py [--latent-frames 49 13] [--rows 90] [--columns 160] [--base 16] [--threads 2]

Random latents of 90 x 160 are decoded chunk by chunk into an MP4 (49 of them: 193 frames of 1280 x 720, of which the
first 192 are written, 8 s at 24 fps), each length in a process of its own. A small configuration of Wan's autoencoder
with random weights, in bfloat16; the peak is the highest mark above what the process held with all modules imported.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from einops import rearrange
from measuring import held_bytes, in_process, peak_bytes

from carrara.autoencoders.video import VideoAutoencoder
from carrara.autoencoders.video_config import VideoAutoencoderConfig
from carrara.core.media import read_video, write_video
from carrara.core.types import VideoShape

FPS = 24
CHANNELS = 8


def decode(frames: int, rows: int, columns: int, base: int) -> dict[str, float]:
    """Decode so many latent frames to a file; seconds, bytes above the imported interpreter, and of the file."""
    import av  # noqa: F401

    before = held_bytes()
    begin = time.perf_counter()
    config = VideoAutoencoderConfig(base, latent_channels=CHANNELS, num_res_blocks=1)
    generator = torch.Generator().manual_seed(0)
    autoencoder = VideoAutoencoder(config).initialise(generator).to(torch.bfloat16).eval().requires_grad_(False)
    latents = torch.randn(1, CHANNELS, frames, rows, columns, generator=generator)
    stride = config.stride
    shape = VideoShape(1 + stride.time * (frames - 1), rows * stride.space, columns * stride.space)
    shape = VideoShape(max(1, shape.frames - 1), shape.height, shape.width)

    def pictures() -> Iterator[torch.Tensor]:
        left = shape.frames
        for video in autoencoder.decode_chunks(latents):
            whole = ((video[0].float() + 1) * 127.5).round().to(torch.uint8)
            chunk = rearrange(whole, "c t h w -> t h w c").contiguous()[:left]
            left -= len(chunk)
            if len(chunk):
                yield chunk

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        write_video(path, pictures(), FPS, shape=shape)
        taken = peak_bytes() - before
        size = path.stat().st_size
        first, _, _ = read_video(path, longest=1)
        assert tuple(first.shape[1:]) == (shape.height, shape.width, 3)
    return {"frames": shape.frames, "seconds": time.perf_counter() - begin, "peak": taken, "file": size}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--latent-frames", type=int, nargs="+", default=[49, 13])
    parser.add_argument("--rows", type=int, default=90)
    parser.add_argument("--columns", type=int, default=160)
    parser.add_argument("--base", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.alone:
        print(json.dumps(decode(options.latent_frames[0], options.rows, options.columns, options.base)))
        return
    for frames in options.latent_frames:
        sizes = [f"--{name}={getattr(options, name)}" for name in ("rows", "columns", "base", "threads")]
        made = in_process(__file__, [*sizes, "--latent-frames", str(frames), "--alone"])
        print(
            f"{made['frames']:.0f} frames of {8 * options.columns} x {8 * options.rows}: "
            f"peak {made['peak'] / 2**20:.0f} MiB, {made['seconds']:.0f} s, file {made['file'] / 1e6:.1f} MB"
        )
        sys.stdout.flush()


if __name__ == "__main__":
    main()
