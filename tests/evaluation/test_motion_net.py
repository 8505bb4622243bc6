"""Pond-motion features: the same for every size and rate of one clip, and the bundled network sees what it must."""

import numpy as np
import pytest
import torch

from carrara.core.types import VideoShape
from carrara.data.pond.render import render
from carrara.data.pond.sampling import sample_scene
from carrara.evaluation.distribution import corruptions
from carrara.evaluation.distribution.distances import KERNEL, distances, separates
from carrara.evaluation.distribution.motion_net import (
    BUNDLED,
    SIDE,
    MotionNet,
    MotionNetConfig,
    load_motion_net,
    motion_features,
    prepare,
    save_motion_net,
)

FRESH = 2**38  # scenes that neither the network's training nor its scores have seen


SQUARE = VideoShape(17, SIDE, SIDE)


def clips(count: int, first: int = FRESH, shape: VideoShape = SQUARE, fps: float = 8.0):
    return [(video, fps) for video in render([sample_scene(first + i) for i in range(count)], shape, fps).video]


@pytest.fixture(scope="module")
def net() -> MotionNet:
    return load_motion_net()


def test_clips_of_every_rate_are_seen_at_eight_frames_per_second():
    slow, fast = clips(1)[0][0], clips(1, shape=VideoShape(49, SIDE, SIDE), fps=24.0)[0][0]
    assert prepare(fast, 24.0).equal(prepare(slow, 8.0))
    assert prepare(slow[::2], 4.0)[::2].equal(slow[::2])
    assert len(prepare(slow, 30.0)) == 5
    assert len(prepare(slow[:5], 8.0)) == 5


@pytest.mark.parametrize(("height", "width"), [(128, 128), (64, 96), (40, 30), (200, 120)])
def test_clips_of_every_size_become_squares_of_64(height, width):
    clip = torch.randint(256, (6, height, width, 3), dtype=torch.uint8)
    assert prepare(clip.numpy(), 8.0).shape == (6, SIDE, SIDE, 3)


def test_what_is_no_clip_or_too_short_is_refused():
    clip = torch.zeros(17, 8, 8, 3, dtype=torch.uint8)
    for bad, fps, said in (
        (clip.float(), 8.0, "expected uint8"),
        (clip[..., :1], 8.0, "expected uint8"),
        (clip, 0.0, "fps=0"),
        (clip[:4], 8.0, "4 frames at 8 per second"),
        (clip[:5], 24.0, "half a second"),
        (clip[:0], 8.0, "0 frames"),
    ):
        with pytest.raises(ValueError, match=said):
            prepare(bad, fps)


def test_saved_and_loaded_is_the_same_network(tmp_path):
    made = MotionNet(MotionNetConfig((4, 6), (1, 1), 5))
    made.initialise(torch.Generator().manual_seed(0))
    made.standardise_by(torch.randn(20, 5))
    made = made.half().float().eval()
    save_motion_net(made, tmp_path)
    assert motion_features(load_motion_net(tmp_path), clips(2)) == pytest.approx(motion_features(made, clips(2)))
    with pytest.raises(ValueError, match=r"no config\.json"):
        load_motion_net(tmp_path / "nothing")
    with pytest.raises(ValueError, match="one for each resolution"):
        MotionNetConfig((4, 6), (1,))


def test_compared_clips_must_show_equally_much(net):
    short = [(video[:9], fps) for video, fps in clips(2)]
    with pytest.raises(ValueError, match="frames=9"):
        motion_features(net, short)
    assert motion_features(net, short, frames=9) == pytest.approx(motion_features(net, clips(2), frames=9), abs=1e-4)
    with pytest.raises(ValueError, match="at least 5"):
        motion_features(net, short, frames=4)
    assert motion_features(net, []).shape == (0, net.config.features)


def test_features_do_not_depend_on_what_else_is_in_the_batch(net):
    some = clips(3)
    assert motion_features(net, some, batch=1) == pytest.approx(motion_features(net, some, batch=3), abs=1e-3)


def test_the_bundled_network_is_small(net):
    assert sum(parameter.numel() for parameter in net.parameters()) < 300_000
    assert (BUNDLED / "model.safetensors").stat().st_size < 1_000_000


def test_sizes_look_alike_to_the_bundled_network(net):
    scenes = [sample_scene(FRESH + 500 + i) for i in range(12)]
    small, large = (
        motion_features(net, [(v, 8.0) for v in render(scenes, VideoShape(17, side, side)).video]) for side in (64, 128)
    )
    apart = np.linalg.norm(small - large, axis=1).mean()
    others = np.linalg.norm(small - np.roll(small, 1, axis=0), axis=1).mean()
    assert apart < 0.35 * others


def test_frozen_shuffled_and_recoloured_clips_are_told_from_truth(net):
    reference, truth = (motion_features(net, clips(48, FRESH + start)) for start in (1000, 2000))
    results = {"truth": distances(truth, reference)}
    generator = torch.Generator().manual_seed(0)
    for name, damage in (
        ("frozen", corruptions.frozen),
        ("shuffled", corruptions.shuffled),
        ("recoloured", corruptions.recoloured),
    ):
        damaged = [(damage(video, generator), fps) for video, fps in clips(48, FRESH + 2000)]
        results[name] = distances(motion_features(net, damaged), reference)
    assert separates(results, KERNEL, ("frozen", "shuffled", "recoloured"))
