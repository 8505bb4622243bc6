"""What an image-to-video model reads of every clip that it is trained on: its own first frame, or its first and last.

It is told in training what generation tells it (`systems/wan_image.py`), by the same function, once for each clip, and
kept beside the clip's latents. The image is never left out, as it never is when a clip is made.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from carrara.data.clip_latents import Beside
from carrara.data.latents import LatentBatch, LatentCache
from carrara.data.prepared import Prepared
from carrara.systems.denoising import ImageContext
from carrara.systems.latent import LatentVideo
from carrara.systems.parts import ModelFolder
from carrara.systems.wan_image import clip_context
from carrara.training.parallel import place

CHANNELS, STATES = "image_channels", "image_states"


def image_reader(found: ModelFolder, system: LatentVideo) -> Beside | None:
    """What has to be kept of clips for this model, which `found` holds; None where it reads no image."""
    config, tower = system.denoiser.config, system.image_tower
    if not config.given_channels:
        return None

    def read(video: Tensor) -> dict[str, Tensor]:
        made = clip_context(config, system.autoencoder, video, tower)
        tensors = {CHANNELS: made.channels, STATES: made.states}
        return {name: value.cpu() for name, value in tensors.items() if value is not None}

    about = {"image": "first and last frame" if config.image_positions is not None else "first frame"}
    if tower is None or config.image_dim is None:
        return Beside(read, about, config.given_channels)
    patches = (tower.config.image_size // tower.config.patch_size) ** 2 + 1
    count = patches * (1 if config.image_positions is None else 2)
    about["image_encoder"] = found.fingerprint_of("image_encoder")
    return Beside(read, about, config.given_channels, count * config.image_dim)


def image_of(clips: LatentBatch) -> ImageContext:
    """What was kept of them."""
    return ImageContext(clips.more.get(CHANNELS), clips.more.get(STATES))


def check_images_kept(caches: Sequence[LatentCache], beside: Beside | None) -> None:
    """Refuse latents without the images that a model reads, or with those of another one."""
    for cache in caches:
        if beside is not None and any(cache.about.get(name) != value for name, value in beside.about.items()):
            raise ValueError(
                f"{cache.folder}: these latents hold nothing of the {beside.about['image']} as this model reads it "
                "beside them; give the prepared folder of these clips (carrara data prepare) instead, which is encoded"
            )


def moving_clips(prepared: Prepared) -> Prepared:
    """The folder without its images, which would show such a model no more than it is given; that is said."""
    moving = prepared.moving()
    if len(moving) < len(prepared) and not place()[0]:
        left = len(prepared) - len(moving)
        print(f"{prepared.folder}: without its images ({left}), for this model makes clips of an image", flush=True)
    return moving
