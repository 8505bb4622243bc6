"""Names of the transformer's tensors elsewhere: in diffusers' `WanTransformer3DModel`, and as Wan published them."""

from __future__ import annotations

from carrara.core.weights import NameTable


def _attention(ours: str, theirs: str, output: str) -> list[tuple[str, str]]:
    """Rows of one attention; diffusers says to_q where Wan and we say q."""
    prefix = "to_" if output != "o" else ""
    rows = [(f"blocks.{{}}.{ours}.{x}", f"blocks.{{}}.{theirs}.{prefix}{x}") for x in "qkv"]
    rows.append((f"blocks.{{}}.{ours}.o", f"blocks.{{}}.{theirs}.{output}"))
    return [*rows, *((f"blocks.{{}}.{ours}.{x}", f"blocks.{{}}.{theirs}.{x}") for x in ("norm_q", "norm_k"))]


DIFFUSERS = NameTable(
    (
        ("patches", "patch_embedding"),
        ("level.rise", "condition_embedder.time_embedder.linear_1"),
        ("level.out", "condition_embedder.time_embedder.linear_2"),
        ("level.modulation", "condition_embedder.time_proj"),
        ("text.rise", "condition_embedder.text_embedder.linear_1"),
        ("text.fall", "condition_embedder.text_embedder.linear_2"),
        ("blocks.{}.modulation", "blocks.{}.scale_shift_table"),
        *_attention("self_attention", "attn1", "to_out.0"),
        *_attention("cross_attention", "attn2", "to_out.0"),
        ("blocks.{}.cross_norm", "blocks.{}.norm2"),
        ("blocks.{}.mlp.rise", "blocks.{}.ffn.net.0.proj"),
        ("blocks.{}.mlp.fall", "blocks.{}.ffn.net.2"),
        ("head_modulation", "scale_shift_table"),
        ("head", "proj_out"),
    )
)

WAN = NameTable(
    (
        ("patches", "patch_embedding"),
        ("level.rise", "time_embedding.0"),
        ("level.out", "time_embedding.2"),
        ("level.modulation", "time_projection.1"),
        ("text.rise", "text_embedding.0"),
        ("text.fall", "text_embedding.2"),
        ("blocks.{}.modulation", "blocks.{}.modulation"),
        *_attention("self_attention", "self_attn", "o"),
        *_attention("cross_attention", "cross_attn", "o"),
        ("blocks.{}.cross_norm", "blocks.{}.norm3"),
        ("blocks.{}.mlp.rise", "blocks.{}.ffn.0"),
        ("blocks.{}.mlp.fall", "blocks.{}.ffn.2"),
        ("head_modulation", "head.modulation"),
        ("head", "head.head"),
    )
)
