"""How the models of the Wan family are given an image: three ways, all facts of the released models.

    channels   image to video (Wan 2.1 and 2.2): the clip as far as it is known, grey elsewhere, is encoded; its latents
               enter beside the noise at every step, after a mask with a channel for each frame of a latent frame
    states     Wan 2.1 besides: what CLIP's image tower sees, for the blocks to read beside the text
    a field    Wan 2.2 TI2V, and the models trained here: the first latent frame is known and held at level 0

A first image, or a first and a last one where the model was trained so. Images are uint8 `h w 3` of any size: what the
autoencoder sees is stretched to the clip's size (Lanczos), what the tower sees is its middle square. That is how
diffusers prepares them; the original code squeezes the image to the tower's square instead.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from einops import rearrange, repeat
from torch import Tensor

from carrara.autoencoders.video import VideoAutoencoder
from carrara.core.types import Stride, VideoShape
from carrara.denoisers.dit_config import DiTConfig
from carrara.systems.denoising import ImageContext
from carrara.systems.image_tower import MEAN, STD, ImageTower
from carrara.systems.latent import Known, LatentVideo

ENCODED_AT_ONCE = 16  # pixel frames, to bound the memory of long clips


def given_image(
    system: LatentVideo, shape: VideoShape, first: Tensor, last: Tensor | None = None
) -> tuple[Known | None, ImageContext | None]:
    """How a system is given its first image, and a last one: what `LatentVideo.sample` takes as `known` and `image`.

    Raises ValueError where it was not trained for that.
    """
    config = system.denoiser.config
    if config.given_channels:
        return None, image_context(config, system.autoencoder, shape, first, last, system.image_tower)
    if last is not None:
        raise ValueError("this model takes a first image only: leave the last one out, or give it as a keyframe")
    return Known(*first_latents(system.autoencoder, shape, first)), None


@torch.no_grad()
def image_context(
    config: DiTConfig,
    autoencoder: VideoAutoencoder,
    shape: VideoShape,
    first: Tensor,
    last: Tensor | None = None,
    tower: ImageTower | None = None,
) -> ImageContext:
    """What a transformer of this configuration reads of the images, for one clip.

    Raises ValueError where it reads no image, lacks its tower, or was not trained for a last one.
    """
    check_images(config, autoencoder, first, last, tower)
    given = {0: first} if last is None else {0: first, shape.frames - 1: last}
    latents = encode_known(autoencoder, shape, given)
    mask = mask_channels(shape, autoencoder.stride, given).to(latents)
    states = None
    if tower is not None and config.image_dim is not None:
        pixels = tower_pixels([*given.values()], tower.config.image_size)
        states = rearrange(tower.read(pixels.to(latents.device)), "k m i -> 1 (k m) i")
    return ImageContext(torch.cat((mask, latents), dim=1), states)


def clip_context(
    config: DiTConfig, autoencoder: VideoAutoencoder, video: Tensor, tower: ImageTower | None = None
) -> ImageContext:
    """What the transformer reads to make this clip, uint8 `t h w 3`: of its first frame, and of its last one where it
    was trained on both. For training, which tells it what generation does."""
    last = video[-1] if config.image_positions is not None else None
    return image_context(config, autoencoder, VideoShape(*video.shape[:3]), video[0], last, tower)


def check_images(
    config: DiTConfig,
    autoencoder: VideoAutoencoder,
    first: Tensor,
    last: Tensor | None = None,
    tower: ImageTower | None = None,
) -> None:
    """What `image_context` would refuse, without computing anything."""
    for image in (first, last):
        if image is not None and (image.dtype != torch.uint8 or image.ndim != 3 or image.shape[-1] != 3):
            raise ValueError(
                f"an image is {image.dtype} of shape {tuple(image.shape)}: expected uint8 (rows, columns, 3)"
            )
    if not config.given_channels:
        raise ValueError(
            "this model takes no channels of an image: hold the first latent frame instead, or use another"
        )
    wanted = autoencoder.stride.time + autoencoder.latent_channels
    if config.given_channels != wanted:
        raise ValueError(
            f"the transformer takes {config.given_channels} channels of an image; a mask and latents have {wanted}"
        )
    if config.image_dim is None:
        return
    if tower is None:
        raise ValueError("this model reads an image through its tower: load the folder's image_encoder")
    if config.image_positions is None and last is not None:
        raise ValueError("this model was trained on a first image alone: leave the last one out, or use a FLF2V model")
    if config.image_positions is not None and last is None:
        raise ValueError("this model was trained on a first and a last image: give both, or use an I2V model")


@torch.no_grad()
def first_latents(autoencoder: VideoAutoencoder, shape: VideoShape, first: Tensor) -> tuple[Tensor, Tensor]:
    """Latents `1 c f h w` of which the first frame is the image's, zero elsewhere, and the mask `1 f h w` of it.

    To be held at level 0 (`systems.latent.Known`).
    """
    image = encode_known(autoencoder, VideoShape(1, shape.height, shape.width), {0: first})
    sides = shape.latent(autoencoder.stride)
    latents = image.new_zeros(1, image.shape[1], sides.frames, *image.shape[3:])
    latents[:, :, :1] = image
    mask = torch.zeros(1, sides.frames, *image.shape[3:], dtype=torch.bool, device=image.device)
    mask[:, 0] = True
    return latents, mask


def encode_known(autoencoder: VideoAutoencoder, shape: VideoShape, given: dict[int, Tensor]) -> Tensor:
    """Normalised latents `1 c f h w` of a clip that is grey (0) but for the given images, by pixel frame."""
    device = next(autoencoder.parameters()).device

    def piece(start: int, stop: int) -> Tensor:
        frames = torch.zeros(1, 3, stop - start, shape.height, shape.width, device=device)
        for frame, image in given.items():
            if start <= frame < stop:
                frames[0, :, frame - start] = fitted(image, shape.height, shape.width).to(device)
        return frames

    return autoencoder.encode_pieces(shape.frames, ENCODED_AT_ONCE, piece)


def mask_channels(shape: VideoShape, stride: Stride, given: Sequence[int] | dict[int, Tensor]) -> Tensor:
    """`1 s f h w`: 1 where pixel frame j of a latent frame's s is given. The first frame stands for s by itself."""
    sides = shape.latent(stride)
    known = torch.zeros(shape.frames)
    known[list(given)] = 1
    each = torch.cat((known[:1].expand(stride.time - 1), known))
    return repeat(each, "(f s) -> 1 s f h w", s=stride.time, h=sides.height, w=sides.width)


def fitted(image: Tensor, height: int, width: int) -> Tensor:
    """An image uint8 `h w 3` stretched to a size (Lanczos), as `3 h w` in [-1, 1]."""
    from PIL import Image

    if tuple(image.shape[:2]) != (height, width):
        picture = Image.fromarray(image.cpu().numpy()).resize((width, height), Image.Resampling.LANCZOS)
        image = torch.from_numpy(np.array(picture))
    return rearrange(image, "h w c -> c h w").float().div(127.5).sub(1)


def tower_pixels(images: Sequence[Tensor], side: int) -> Tensor:
    """Images as CLIP was shown its own, `k 3 s s`: the shorter side to s (bicubic), the middle square, normalised."""
    from PIL import Image

    cut = []
    for image in images:
        height, width = image.shape[:2]
        short = min(height, width)
        size = (int(side * width / short), int(side * height / short))
        picture = Image.fromarray(image.cpu().numpy()).resize(size, Image.Resampling.BICUBIC)
        left, top = (size[0] - side) // 2, (size[1] - side) // 2
        cut.append(torch.from_numpy(np.array(picture.crop((left, top, left + side, top + side)))))
    pixels = rearrange(torch.stack(cut), "k h w c -> k c h w").float() / 255
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    return (pixels - mean) / std
