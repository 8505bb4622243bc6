"""Laws of giving an image: its mask, its latents, its states, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from PIL import Image
from tests.systems.wan_fixtures import IMAGE, SMALL, TOWER, VAE, carrara_system, picture, random_pipeline, randomised

from carrara.autoencoders.video import VideoAutoencoder
from carrara.core.types import Stride, VideoShape
from carrara.systems.image_tower import ImageTower
from carrara.systems.phases import to_unit
from carrara.systems.wan_image import (
    check_images,
    encode_known,
    first_latents,
    fitted,
    given_image,
    image_context,
    mask_channels,
    tower_pixels,
)

SHAPE = VideoShape(25, 32, 32)


@pytest.fixture(scope="module")
def autoencoder() -> VideoAutoencoder:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return randomised(VideoAutoencoder(VAE))


@pytest.fixture(scope="module")
def tower() -> ImageTower:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return randomised(ImageTower(TOWER))


def test_the_mask_has_a_channel_for_every_frame_of_a_latent_frame():
    mask = mask_channels(VideoShape(9, 16, 24), Stride(4, 8), [0, 8])
    assert mask.shape == (1, 4, 3, 2, 3)
    assert mask[0, :, :, 0, 0].tolist() == [[1, 0, 0], [1, 0, 0], [1, 0, 0], [1, 0, 1]]
    assert (mask == mask[..., :1, :1]).all()


def test_a_known_clip_is_encoded_in_pieces_as_in_one(autoencoder):
    first, last = picture(1, 32, 32), picture(2, 32, 32)
    clip = torch.full((1, 25, 32, 32, 3), 127.5)
    clip[0, 0], clip[0, 24] = first, last
    whole = autoencoder.encode(clip.permute(0, 4, 1, 2, 3) / 127.5 - 1)
    made = encode_known(autoencoder, SHAPE, {0: first, 24: last})
    torch.testing.assert_close(made, whole, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(made, encode_known(autoencoder, SHAPE, {0: first}))


def test_the_first_latent_frame_is_the_image_encoded_alone(autoencoder):
    image = picture(1, 32, 32)
    latents, mask = first_latents(autoencoder, SHAPE, image)
    assert latents.shape == (1, 4, 7, 4, 4)
    assert mask.dtype == torch.bool
    assert mask.sum(dim=(2, 3)).tolist() == [[16, 0, 0, 0, 0, 0, 0]]
    torch.testing.assert_close(latents[:, :, :1], autoencoder.encode(to_unit(image[None, None])))
    assert not latents[:, :, 1:].any()


def test_images_are_prepared_as_clip_was_shown_its_own():
    """Equal to the processor of `transformers`, for wide, high and small images."""
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    processor = CLIPImageProcessorPil()
    for height, width in ((300, 451), (333, 260), (20, 31), (224, 224)):
        image = picture(height, height, width)
        wanted = processor(images=Image.fromarray(image.numpy()), return_tensors="pt")["pixel_values"]
        assert torch.allclose(tower_pixels([image], 224), wanted, atol=1e-6), (height, width)


def test_an_image_of_the_clips_size_is_not_touched():
    image = picture(1, 32, 48)
    assert torch.equal(((fitted(image, 32, 48) + 1) * 127.5).round().byte(), image.permute(2, 0, 1))
    assert fitted(image, 16, 16).shape == (3, 16, 16)


def test_the_context_has_channels_and_states_of_both_images(autoencoder, tower):
    config = replace(IMAGE, image_dim=16, image_positions=10)
    first, last = picture(1), picture(2)
    made = image_context(config, autoencoder, SHAPE, first, last, tower)
    assert made.channels.shape == (1, 8, 7, 4, 4)
    assert made.states.shape == (1, 10, 16)
    torch.testing.assert_close(made.states[0, 5:], tower.read(tower_pixels([last], 28))[0])
    assert image_context(IMAGE, autoencoder, SHAPE, first).states is None


def test_what_a_model_cannot_read_is_refused_by_name(autoencoder, tower):
    image = picture(1)
    one, two = replace(IMAGE, image_dim=16), replace(IMAGE, image_dim=16, image_positions=10)
    for config, last, eye, says in (
        (SMALL, None, None, "takes no channels of an image"),
        (replace(IMAGE, in_channels=9), None, None, "takes 5 channels of an image; a mask and latents have 8"),
        (one, None, None, "load the folder's image_encoder"),
        (one, image, tower, "trained on a first image alone"),
        (two, None, tower, "give both"),
    ):
        with pytest.raises(ValueError, match=says):
            check_images(config, autoencoder, image, last, eye)
    with pytest.raises(ValueError, match="takes a first image only"):
        given_image(carrara_system(random_pipeline("ti2v-text")), SHAPE, image, image)
    with pytest.raises(ValueError, match=r"expected uint8 \(rows, columns, 3\)"):
        check_images(IMAGE, autoencoder, image.float())
