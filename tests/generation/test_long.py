"""Half a minute with the bundled model: many windows, one stream, memory of one window."""

from __future__ import annotations

import itertools

import pytest
import torch

from carrara.core.media import read_video
from carrara.generation.conditions import Conditions
from carrara.generation.request import Request
from carrara.generation.run import load


def test_thirty_seconds_of_the_bundled_model(tmp_path):
    model = load("pond")
    defaults = model.system.defaults
    size = (min(64, defaults.width), min(64, defaults.height))
    request = Request("a red ball bounces on the grass", seed=1, seconds=30.0, size=size, steps=1, guidance=1.0)
    plan = model.plan(request)
    model.write(plan, tmp_path / "x.mp4", progress=False)
    frames, fps, _ = read_video(tmp_path / "x.mp4")
    assert len(frames) == 30 * fps == 30 * defaults.fps
    assert plan.timeline.longest == defaults.frames
    assert [path.name for path in tmp_path.iterdir()] == ["x.mp4"]
    windows = plan.timeline.windows
    assert len(windows) >= 30 * fps / defaults.frames
    assert all(one.stop == other.fresh for one, other in itertools.pairwise(windows))
    # A seam would show as a change between frames that is larger where windows meet than elsewhere.
    change = frames[1:].float().sub(frames[:-1].float()).abs().mean((1, 2, 3))
    seams = torch.tensor([window.fresh - 1 for window in windows[1:]])
    assert change[seams].median() < 3 * change.median() + 1


def test_a_clip_of_two_latent_frames_is_the_least_that_has_a_motion():
    model = load("pond")
    step = model.system.stride.time
    frames = torch.randint(256, (1 + step, 64, 64, 3), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    said = {"seed": 1, "seconds": 0.5, "steps": 1, "guidance": 1.0, "progress": False}
    clip = model.generate("", Conditions(extend=frames), **said)
    assert torch.equal(clip.frames[: 1 + step], frames)
    with pytest.raises(ValueError, match=f"{step} frames, and extend needs at least {1 + step}"):
        model.generate("", Conditions(extend=frames[:step]), **said)
