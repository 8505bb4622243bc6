"""An explanation as pictures: sheets to look at as a whole, films to watch."""

from __future__ import annotations

import torch
from torch import Tensor

from carrara.generation.drawing import above, beside, boxed, captioned, enlarge, even, overlay, strip
from carrara.generation.explain import Attention, Emerging, Explanation

_SHEET, _FILM = 128, 256  # how wide a frame is drawn, or a little less
_ROWS, _FRAMES = 6, 3  # of the sheet of a clip emerging: steps, and frames on either side
_BLOCKS = 8  # most rows of one block or head each
_SECONDS = 6.0  # about how long the way out of the noise is shown


def emerging_sheet(emerging: Emerging) -> Tensor:
    """A row for each of a few steps: at the left frames of the noisy state, at the right of the estimate. `h w 3`."""
    rows = []
    times = _spread(emerging.states.shape[1], _FRAMES)
    for index in _spread(len(emerging.steps), _ROWS):
        sides = [strip(enlarge(clip[index][times], _SHEET)) for clip in (emerging.states, emerging.estimates)]
        rows.append(captioned(beside(sides, gap=12), _step(emerging, index)))
    return above(rows)


def emerging_film(explanation: Explanation) -> Tensor:
    """The clip plays on and on while it emerges: the noisy state beside the estimate, then the clip once, finished.

    `t h w 3` with even sides, at the clip's rate.
    """
    emerging, length = explanation.emerging, len(explanation.clip.frames)
    count = len(emerging.steps)
    each = max(1, round(_SECONDS * explanation.clip.fps / count))
    parts, clock = [], 0
    for index in range(count):
        times = [(clock + i) % length for i in range(each)]
        clock += each
        sides = [enlarge(clip[index][times], _FILM) for clip in (emerging.states, emerging.estimates)]
        parts.append(captioned(beside(sides), _step(emerging, index)))
    times = [(clock + i) % length for i in range(length)]
    finished = enlarge(explanation.clip.frames[times], _FILM)
    parts.append(captioned(beside([finished, finished]), "finished"))
    return even(torch.cat(parts))


def attention_sheet(explanation: Explanation, block: int | None = None) -> Tensor:
    """The clip's frames with the patch in a box, then maps over them: the mean of all blocks, and each block's own;
    with a block given, the mean over its heads, and each head's own. `h w 3`."""
    attention = explanation.attention
    blocks, heads = attention.weights.shape[:2]
    pairs: list[tuple[str, Tensor]] = [("mean of all blocks", attention.map())]
    if block is None:
        pairs += [(f"block {i + 1}", attention.map(i + 1)) for i in _spread(blocks, _BLOCKS)]
    else:
        pairs += [(f"block {block}, mean of its heads", attention.map(block))]
        pairs += [(f"block {block}, head {i + 1}", attention.map(block, i + 1)) for i in _spread(heads, _BLOCKS)]
    middles = _middles(attention)
    frames = explanation.clip.frames[middles]
    marked = _mark(enlarge(frames, _SHEET), attention, middles)
    rows = [captioned(strip(marked), _when(attention))]
    for name, values in pairs:
        shown = _mark(enlarge(overlay(frames, _scaled(attention, values)), _SHEET), attention, middles)
        rows.append(captioned(strip(shown), _how_much(attention, name, values)))
    return above(rows)


def attention_film(explanation: Explanation, block: int | None = None) -> Tensor:
    """The clip plays beside the maps over it: of all blocks, and of one block, if none is given of the one that finds
    most of what stands out in the other frames. `t h w 3` with even sides."""
    attention, frames = explanation.attention, explanation.clip.frames
    block = block or attention.keenest
    pairs = [("mean of all blocks", attention.map()), (f"block {block}", attention.map(block))]
    which, all_frames = torch.tensor(attention.which), list(range(len(frames)))
    parts = [enlarge(frames, _FILM)]
    parts += [enlarge(overlay(frames, _scaled(attention, values)[which]), _FILM) for _, values in pairs]
    names = "; ".join(f"{name}, {attention.elsewhere(values):.0%} to other frames" for name, values in pairs)
    shown = beside([_mark(part, attention, all_frames) for part in parts])
    return even(captioned(shown, f"{_when(attention)}: the clip; {names}"))


def _step(emerging: Emerging, index: int) -> str:
    level = emerging.levels[index]
    return f"step {emerging.steps[index]} of {emerging.total}, noise {level:.2f}: what is there; what the model expects"


def _when(attention: Attention) -> str:
    place = ",".join(map(str, attention.patch))
    return f"patch {place} at step {attention.step} of {attention.total} (noise {attention.level:.2f})"


def _how_much(attention: Attention, name: str, values: Tensor) -> str:
    found = f"{attention.found(values):.0%} of that to what stands out there (chance {attention.chance:.0%})"
    return f"{name}: {attention.elsewhere(values):.0%} to other frames, {found}"


def _scaled(attention: Attention, values: Tensor) -> Tensor:
    """The map over its greatest value in other frames; the patch's own frame, often brighter, is cut off there."""
    frame, row, column = (place - 1 for place in attention.brightest(values))
    return (values / values[frame, row, column].clamp_min(1e-12)).clamp_max(1)


def _mark(frames: Tensor, attention: Attention, times: list[int]) -> Tensor:
    """Draw the box around the patch where a frame, the clip's `times[i]`, belongs to it."""
    frame, row, column = (place - 1 for place in attention.patch)
    height, width = frames.shape[1] // attention.weights.shape[3], frames.shape[2] // attention.weights.shape[4]
    return torch.stack(
        [
            boxed(picture, row * height, column * width, height, width) if attention.which[time] == frame else picture
            for picture, time in zip(frames, times)
        ]
    )


def _middles(attention: Attention) -> list[int]:
    """For every frame of tokens the pixel frame in its middle."""
    frames: dict[int, list[int]] = {}
    for time, frame in enumerate(attention.which):
        frames.setdefault(frame, []).append(time)
    return [times[len(times) // 2] for times in frames.values()]


def _spread(count: int, most: int) -> list[int]:
    """Up to `most` of `count` indices, evenly, the first and the last included."""
    return torch.linspace(0, count - 1, min(count, most)).round().long().tolist()
