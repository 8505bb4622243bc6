"""Scenes as a reader meets them: rendered, written as video files and read back."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from carrara.core.media import read_video, write_video
from carrara.core.types import VideoShape
from carrara.data.pond.render import render
from carrara.data.pond.world import Scene


def written(scenes: list[Scene], folder: Path, side: int = 128) -> list[np.ndarray]:
    """Renders as they come back from MP4 files."""
    frames = []
    for index, video in enumerate(render(scenes, VideoShape(17, side, side)).video):
        write_video(folder / f"{index}.mp4", video, 8, overwrite=True)
        frames.append(read_video(folder / f"{index}.mp4")[0].numpy())
    return frames
