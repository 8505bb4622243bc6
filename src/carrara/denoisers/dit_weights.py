"""Names of the transformer's tensors elsewhere: in diffusers' `WanTransformer3DModel`, and as Wan published them."""

from __future__ import annotations

import re

from carrara.core.weights import NameTable

_NEVER_USED = re.compile(r"blocks\.\d+\.attn2\.norm_added_q\.weight")


def is_never_used(name: str) -> bool:
    """Whether a tensor of diffusers' files is read by no layer: early image-to-video files hold one per block."""
    return _NEVER_USED.fullmatch(name) is not None


def is_island(name: str) -> bool:
    """Whether a tensor (by our name) is computed with in float32, and so is worth keeping as precise as it is stored:
    norms, noise levels and their modulation. They are few beside the matrices."""
    return name.startswith("level.") or "norm" in name or name.endswith("modulation")


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
        ("image.positions", "condition_embedder.image_embedder.pos_embed"),
        ("image.norm_in", "condition_embedder.image_embedder.norm1"),
        ("image.rise", "condition_embedder.image_embedder.ff.net.0.proj"),
        ("image.fall", "condition_embedder.image_embedder.ff.net.2"),
        ("image.norm_out", "condition_embedder.image_embedder.norm2"),
        ("blocks.{}.modulation", "blocks.{}.scale_shift_table"),
        *_attention("self_attention", "attn1", "to_out.0"),
        *_attention("cross_attention", "attn2", "to_out.0"),
        ("blocks.{}.cross_attention.k_image", "blocks.{}.attn2.add_k_proj"),
        ("blocks.{}.cross_attention.v_image", "blocks.{}.attn2.add_v_proj"),
        ("blocks.{}.cross_attention.norm_k_image", "blocks.{}.attn2.norm_added_k"),
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
        ("image.positions", "img_emb.emb_pos"),
        ("image.norm_in", "img_emb.proj.0"),
        ("image.rise", "img_emb.proj.1"),
        ("image.fall", "img_emb.proj.3"),
        ("image.norm_out", "img_emb.proj.4"),
        ("blocks.{}.modulation", "blocks.{}.modulation"),
        *_attention("self_attention", "self_attn", "o"),
        *_attention("cross_attention", "cross_attn", "o"),
        ("blocks.{}.cross_attention.k_image", "blocks.{}.cross_attn.k_img"),
        ("blocks.{}.cross_attention.v_image", "blocks.{}.cross_attn.v_img"),
        ("blocks.{}.cross_attention.norm_k_image", "blocks.{}.cross_attn.norm_k_img"),
        ("blocks.{}.cross_norm", "blocks.{}.norm3"),
        ("blocks.{}.mlp.rise", "blocks.{}.ffn.0"),
        ("blocks.{}.mlp.fall", "blocks.{}.ffn.2"),
        ("head_modulation", "head.modulation"),
        ("head", "head.head"),
    )
)
