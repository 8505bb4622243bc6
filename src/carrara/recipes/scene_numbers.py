"""Which scenes of the pond each use draws, in one place, so that no clip that was learned is ever measured on.

A use draws upwards from its first scene. Evaluation draws from 2**40 on. Two uses share a beginning where no model
meets both: an autoencoder's image model, and systems of pixels.
"""

from __future__ import annotations

AUTOENCODER_SCENES = 0
CACHED_SCENES = 2**33
VALIDATION_SCENES = 2**34
DECODER_SCENES = 2**35
REFINER_SCENES = 2**35 + 2**34
OWN_SCENES = REFINER_SCENES + 10**6  # many are also melted by simulation, which harms nothing
MOTION_SCENES, MOTION_VALIDATION_SCENES = 2**36, 2**37
IMAGE_SCENES = 2**38
CLIP_SCENES, CLIP_VALIDATION_SCENES = 2**38, 2**39
SEEDS_APART, MOST_APART = 2**30, 32  # trainings of so many seeds learn other scenes
IMAGES_BEHIND = 2**36  # a pixel system's images are of scenes so far behind those of its clips
IMAGES_APART = 2**36  # captioned images are of other scenes than images and clips without captions


def clips_of_seed(seed: int) -> int:
    """The first scene that a system of pixels learns in a training of this seed."""
    return CLIP_SCENES + seed % MOST_APART * SEEDS_APART
