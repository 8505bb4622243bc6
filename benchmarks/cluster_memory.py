"""How much memory training takes on each GPU, for the sizes of Wan: the tables of docs/cluster.md.

    python benchmarks/cluster_memory.py

Nothing is computed: blocks are made of tensors without memory, and what their backward pass needs is counted from what
autograd keeps. Attention is counted as the streaming kernels of GPUs keep it: its inputs, its output, and one float32
number for each query and head.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode

from carrara.core.types import LatentShape, Stride, TextStates, VideoShape
from carrara.denoisers.dit import WAN_1_3B, WAN_14B, DiT, DiTConfig
from carrara.nn import fused

GB = 1e9
MODELS = {"1.3B": WAN_1_3B, "14B": WAN_14B}
CLIPS = {"81 x 480 x 832": VideoShape(81, 480, 832), "81 x 720 x 1280": VideoShape(81, 720, 1280)}
STATE = 4 + 4 + 8 + 4  # float32: a weight, its gradient, AdamW's two moments, its average


def tokens_of(shape: VideoShape, config: DiTConfig) -> LatentShape:
    return LatentShape(*shape.latent(Stride()).tokens(config.patch))


def kept_by_block(config: DiTConfig, grid: LatentShape) -> int:
    """Bytes that one block keeps of a clip for its backward pass, in bfloat16 beside a float32 stream."""
    tokens = grid.frames * grid.height * grid.width
    fused.by_hand = lambda x: False  # the formulas of GPUs; those of CPUs keep less
    with FakeTensorMode():
        torch.set_default_dtype(torch.bfloat16)
        network = DiT(replace(config, layers=1))
        torch.set_default_dtype(torch.float32)
        latents = torch.empty(1, config.in_channels, grid.frames, 2 * grid.height, 2 * grid.width)
        text = TextStates(torch.empty(1, 512, config.text_dim), torch.empty(1, dtype=torch.int64))
        known = network.enter(latents, torch.empty(1), text)[1]
        x = torch.empty(1, 1, tokens, config.dim, requires_grad=True)
        parameters = {p.untyped_storage()._cdata for p in network.parameters()}
        kept: dict[int, int] = {}
        held: list[Tensor] = []

        def keep(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            scores = tensor.ndim >= 3 and tensor.shape[-2] == tokens and tensor.shape[-1] in (tokens, 513)
            if storage._cdata not in parameters and not scores:
                kept[storage._cdata] = storage.nbytes()
                held.append(tensor)  # so that no other storage takes its place
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            network.through(x, known)
    lengths = 2 * 4 * tokens * config.heads  # of the softmax of both attentions
    return sum(kept.values()) + lengths


def main() -> None:
    counts = {}
    for name, config in MODELS.items():
        with torch.device("meta"):
            network = DiT(config)
        counts[name] = sum(p.numel() for p in network.parameters())
        block = sum(p.numel() for p in network.blocks[0].parameters())
        print(f"{name}: {counts[name] / 1e9:.2f} billion weights, {block / 1e6:.0f} million in a block")
        print(f"  state {counts[name] * STATE / GB:.1f} GB, one block whole in bfloat16 {2 * block / GB:.2f} GB")
    print("\n| model | " + " | ".join(f"{n} GPUs" if n > 1 else "1 GPU" for n in (1, 2, 4, 8, 16, 64)) + " |")
    for name, count in counts.items():
        print(f"| {name} | " + " | ".join(f"{count * STATE / n / GB:.1f}" for n in (1, 2, 4, 8, 16, 64)) + " |")
    print("\n| model, clip | tokens | a block | all blocks | recomputed | on 2 | on 4 | on 8 |")
    for name, config in MODELS.items():
        for clip, shape in CLIPS.items():
            grid = tokens_of(shape, config)
            tokens, kept = grid.frames * grid.height * grid.width, kept_by_block(config, grid)
            stream = 4 * config.dim * tokens * config.layers
            rows = [kept, kept * config.layers, *((stream + kept) / degree for degree in (1, 2, 4, 8))]
            print(f"| {name}, {clip} | {tokens} | " + " | ".join(f"{row / GB:.1f}" for row in rows) + " |")


if __name__ == "__main__":
    main()
