"""A crossing drawn on its frames: the wall that was read, the places of the actor, and the path that they foretell."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from carrara.core.pictures import arrange
from carrara.evaluation.permanence.verdicts import Permanence

SIDE = 160  # pixels of a frame's shorter side
FRAMES = 6
BEFORE, AFTER, PATH, WALL, WRONG = (20, 120, 60), (30, 80, 220), (255, 255, 255), (255, 210, 0), (220, 30, 30)


def draw_tracks(frames: NDArray[np.uint8], found: Permanence) -> NDArray[np.uint8]:
    """Some frames of `t h w 3` side by side, as one picture `H W 3`.

    A yellow box: the wall; a white line: the extrapolated path; dots: where the actor has been seen so far, green
    before the wall and blue after it; red crosses: where something appeared or vanished in the open.
    """
    from PIL import Image, ImageDraw

    height, width = frames.shape[1:3]
    scale = SIDE / min(height, width)
    size = (round(width * scale), round(height * scale))

    def at(x: float, y: float) -> tuple[float, float]:
        return x * SIDE + size[0] / 2, y * SIDE + size[1] / 2

    sheets = []
    crossing = found.crossing
    strangers = (*found.lives.appeared, *found.lives.vanished)
    for index in np.linspace(0, len(frames) - 1, min(FRAMES, len(frames))).round().astype(int).tolist():
        picture = Image.fromarray(np.ascontiguousarray(frames[index])).resize(size, Image.Resampling.BICUBIC)
        draw = ImageDraw.Draw(picture)
        if crossing is not None:
            wall, path = crossing.wall, crossing.path
            draw.rectangle((*at(wall.left, wall.top), *at(wall.right, wall.bottom)), outline=WALL, width=2)
            draw.line((*at(*path.at(0)), *at(*path.at(len(frames) - 1))), fill=PATH, width=1)
            for bodies, colour in zip(crossing.bodies, (BEFORE, AFTER)):
                for body in bodies:
                    if body.frame <= index:
                        x, y = at(*body.place)
                        draw.ellipse((x - 3, y - 3, x + 3, y + 3), fill=colour, outline=PATH)
        for body in strangers:
            if body.frame <= index:
                x, y = at(*body.place)
                draw.line((x - 5, y - 5, x + 5, y + 5), fill=WRONG, width=3)
                draw.line((x - 5, y + 5, x + 5, y - 5), fill=WRONG, width=3)
        sheets.append(np.asarray(picture))
    return arrange(np.stack(sheets), len(sheets))
