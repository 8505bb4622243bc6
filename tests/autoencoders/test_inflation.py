"""An autoencoder of clips made of copies of one of images: the same pictures, frames told apart, all trainable."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from carrara.autoencoders.inflation import image_config, inflate
from carrara.autoencoders.video import VideoAutoencoder
from carrara.autoencoders.video_config import VideoAutoencoderConfig, small_64

CONFIG = VideoAutoencoderConfig(
    base_dim=32,
    latent_channels=16,
    dim_mult=(1, 2, 2),
    num_res_blocks=1,
    temporal_downsample=(True, True),
    residual=False,
    patch=2,
)


@pytest.fixture(scope="module")
def models() -> tuple[VideoAutoencoder, VideoAutoencoder]:
    """An image model in which every layer does something, and the clip model that begins as its copies."""
    generator = torch.Generator().manual_seed(0)
    image = VideoAutoencoder(image_config(CONFIG)).double()
    image.initialise(generator)
    with torch.no_grad():
        for name, parameter in image.named_parameters():
            if "gamma" in name or not parameter.any():
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
        for parameter in image.parameters():  # images teach nothing to the taps on the past
            if parameter.ndim == 5 and parameter.shape[2] == 3:
                parameter[:, :, :2] = 0
    video = VideoAutoencoder(CONFIG).double()
    inflate(image, video, generator)
    return image, video


def frames(count: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(2, 3, count, 32, 32, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2 - 1


@torch.no_grad()
def test_images_and_what_stands_still_are_reconstructed_as_by_the_image_model(models):
    image, video = models
    picture = frames(1)
    wanted = image.decode(image.encode(picture), clamp=False)
    assert wanted.std() > 0.1
    torch.testing.assert_close(video.decode(video.encode(picture), clamp=False), wanted, atol=1e-5, rtol=0)
    still = picture.expand(-1, -1, 9, -1, -1)
    made = video.decode(video.encode(still), clamp=False)
    torch.testing.assert_close(made, wanted.expand_as(made), atol=1e-5, rtol=0)


@torch.no_grad()
def test_every_frame_of_a_moving_clip_has_latents_and_pixels_of_its_own(models):
    image, video = models
    clip = frames(9)
    alone = torch.cat([image.encode(frame) for frame in clip.split(1, dim=2)], dim=2)
    latents = video.encode(clip)
    groups = latents.unflatten(1, (4, -1))
    for latent, group in ((1, 0), (1, 3), (2, 2)):
        found = groups[:, group, :, latent].flatten()
        likeness = [torch.corrcoef(torch.stack([found, alone[:, :, t].flatten()]))[0, 1] for t in range(9)]
        assert int(torch.stack(likeness).argmax()) == 4 * (latent - 1) + 1 + group

    changed = latents.clone()  # what stands for one frame changes that frame most
    changed.unflatten(1, (4, -1))[:, 1, :, 2] += 1
    moved = (video.decode(changed) - video.decode(latents)).abs().mean((0, 1, 3, 4))
    assert int(moved.argmax()) == 6


def test_copies_are_told_apart_by_training(models):
    _, video = models
    clip = frames(5)
    video.zero_grad()
    (video.decode(video.encode(clip), clamp=False) - clip).square().mean().backward()
    gradient = video.decoder.levels[-1].blocks[0].conv1.weight.grad
    copies = gradient.unflatten(0, (4, -1))  # four copies of each channel at the finest level
    assert not torch.allclose(copies[0], copies[1], rtol=1e-3)


def test_what_cannot_be_copies_is_refused():
    with pytest.raises(ValueError, match="residual=True"):
        image_config(replace(CONFIG, residual=True))
    with pytest.raises(ValueError, match="latent_channels=18: must be a multiple of the 4 frames"):
        image_config(replace(CONFIG, latent_channels=18, latents_mean=(), latents_std=()))
    other = VideoAutoencoder(image_config(replace(CONFIG, base_dim=64)))
    with pytest.raises(ValueError, match="expected"):
        inflate(other, VideoAutoencoder(CONFIG), torch.Generator())


def test_the_bundled_configuration_has_an_image_model():
    assert image_config(small_64()).latent_channels * small_64().stride.time == small_64().latent_channels
