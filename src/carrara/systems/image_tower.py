"""The image tower through which Wan 2.1's image-to-video models see the first frame: CLIP ViT-H/14 of `transformers`.

Tensor names are those of a `CLIPVisionModel` folder. Not standard: the states before the last block are what is read
(257 of 1280 for a frame), so the last block and the norm after it are held only because such folders hold them.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

# CLIP's statistics of its training images (Radford et al. 2021), of RGB in [0, 1].
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class ImageTowerConfig:
    """Sizes of a CLIP vision transformer, named as in its config.json. The defaults are ViT-H/14's."""

    hidden_size: int = 1280
    intermediate_size: int = 5120
    num_hidden_layers: int = 32
    num_attention_heads: int = 16
    image_size: int = 224
    patch_size: int = 14
    projection_dim: int = 1024
    layer_norm_eps: float = 1e-5
    hidden_act: str = "gelu"

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not isinstance(value, str) and value <= 0:
                raise ValueError(f"{field.name}={value}: expected more than 0")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size={self.hidden_size}: must be a multiple of num_attention_heads={self.num_attention_heads}"
            )
        if self.image_size % self.patch_size:
            raise ValueError(f"image_size={self.image_size}: must be a multiple of patch_size={self.patch_size}")

    @classmethod
    def from_json(cls, content: dict[str, Any], where: str = "config.json") -> ImageTowerConfig:
        """Read a CLIP vision model's config.json; bookkeeping is passed over. Raises ValueError for another model."""
        kind = content.get("model_type", "clip_vision_model")
        if kind != "clip_vision_model":
            raise ValueError(f"{where}: model_type={kind!r}; the image tower of Wan 2.1 is a 'clip_vision_model'")
        known = {field.name for field in fields(cls)}
        return cls(**{key: value for key, value in content.items() if key in known})


class ImageTower(nn.Module):
    """CLIP's vision transformer, read before its last block."""

    def __init__(self, config: ImageTowerConfig) -> None:
        super().__init__()
        # Imported here: it takes about two seconds, and most models have no image tower.
        from transformers.models.clip.configuration_clip import CLIPVisionConfig
        from transformers.models.clip.modeling_clip import CLIPVisionModel

        self.config = config
        model = CLIPVisionModel(CLIPVisionConfig(**asdict(config)))
        # Folders name the network `vision_model`; which attribute holds it differs between versions of the library.
        self.vision_model = getattr(model, "vision_model", model)
        # Positions are counted, not stored: a module that is filled from a file must not wait for them.
        embeddings = self.vision_model.embeddings
        count = (config.image_size // config.patch_size) ** 2 + 1
        embeddings.register_buffer("position_ids", torch.arange(count, device="cpu")[None], persistent=False)

    def forward(self, frames: Tensor) -> Tensor:
        """States before the last block, `b n d` with n one more than the patches.

        frames: `b 3 h w` RGB in [-1, 1], of any size: squeezed to the tower's square (bicubic), as Wan does.
        """
        side = self.config.image_size
        frames = frames.float()
        if frames.shape[-2:] != (side, side):
            frames = nn.functional.interpolate(frames, (side, side), mode="bicubic", align_corners=False)
        mean, std = (torch.tensor(values, device=frames.device)[:, None, None] for values in (MEAN, STD))
        return self.read((frames / 2 + 0.5 - mean) / std)

    def read(self, pixels: Tensor) -> Tensor:
        """States before the last block of pixels that are prepared already: `b 3 s s`, normalised by MEAN and STD."""
        weight = self.vision_model.embeddings.patch_embedding.weight
        return self.vision_model(pixels.to(weight.dtype), output_hidden_states=True).hidden_states[-2]
