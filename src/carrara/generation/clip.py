"""A clip in memory: its frames, its rate, and the manifest that is sufficient to make it again."""

from __future__ import annotations

import base64
import tempfile
from dataclasses import dataclass
from html import escape
from pathlib import Path

from torch import Tensor

from carrara.core.media import write_video
from carrara.generation.manifest import Manifest


@dataclass(frozen=True, eq=False)
class Clip:
    """frames: uint8 `t h w 3`, sRGB; fps: frames per second; manifest: what made it."""

    frames: Tensor
    fps: float
    manifest: Manifest

    def save(self, path: str | Path, overwrite: bool = False) -> None:
        """Write .mp4, .gif, .webp or .png (contact sheet), manifest inside. Raises ValueError, see `write_video`."""
        write_video(path, self.frames, self.fps, self.manifest.metadata(), overwrite)

    def _repr_html_(self) -> str:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "clip.mp4"
            self.save(path)
            data = base64.b64encode(path.read_bytes()).decode()
        title = escape(self.manifest.prompt, quote=True)
        return f'<video controls loop autoplay muted title="{title}" src="data:video/mp4;base64,{data}"></video>'
