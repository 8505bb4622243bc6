"""From latents to the frames of a timeline: decoded, put together with what is given, watched, window after window.

Decoding is one stream: a window's new latents continue where the one before stopped, with the decoder's state, so that
there is no seam in it. A system with a refiner draws again what a window made, behind the frames that it was told, so
that these go on. Of what was made only the frames that a later window needs are remembered, so memory does not
grow with the clip. Of a clip that is made backwards the frames wait for the first on disk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryFile

import torch
from einops import rearrange
from torch import Tensor, nn

from carrara.core.progress import progress_bar
from carrara.generation.memory import give_back
from carrara.generation.passes import Frame
from carrara.generation.timeline import Timeline, Window, context_of
from carrara.systems.latent import LatentVideo, State
from carrara.systems.phases import to_unit

LatentsOf = Callable[[int, Window, Frame], Tensor]
"""A window's latents `1 c f h w`, from its number, itself and the frames known by then."""
PromptOf = Callable[[Window], str]
"""What is asked for in a window."""

_FLAT = 2  # a clip whose values all lie within so many levels of 255 shows nothing
_GIVEN = 64  # given frames are passed on so many at a time


class GenerationError(RuntimeError):
    """The model ran and gave nothing that could be shown. The message names the cause and the remedy."""


class Remembered:
    """The frames of a timeline that are known so far: all that were given, and the last ones that were made.

    step: frames of a latent frame.
    """

    def __init__(self, timeline: Timeline, step: int) -> None:
        self.timeline, self.step = timeline, step
        self.made: dict[int, Tensor] = {}

    def frame(self, index: int) -> Tensor | None:
        """Frame `index`, uint8 `h w 3`, or None."""
        timeline = self.timeline
        if timeline.loop and index >= timeline.frames:
            index -= timeline.frames
        return timeline.known.get(index, self.made.get(index))

    def add(self, index: int, frames: Tensor) -> None:
        """What was made, from frame `index` on."""
        self.made |= {index + offset: frame for offset, frame in enumerate(frames)}

    def forget(self, window: Window) -> None:
        """Drop what no window after this one looks at."""
        timeline = self.timeline
        if timeline.backward:
            low, high = window.start, window.start + timeline.longest
        else:
            low, high = window.stop - timeline.longest, window.stop
        first = context_of(timeline.longest, self.step) if timeline.loop else 0
        self.made = {i: frame.clone() for i, frame in self.made.items() if low <= i < high or 0 <= i < first}


def frames_of(
    system: LatentVideo,
    timeline: Timeline,
    latents_of: LatentsOf,
    prompt_of: PromptOf,
    progress: bool | None = None,
    folder: Path | None = None,
) -> Iterator[Tensor]:
    """The clip in chunks uint8 `t h w 3`, in order. The first window is drawn before the first chunk is given.

    folder: where frames that are made backwards wait, None for the system's own place, which may be memory. Raises
    GenerationError for values that are not finite and for a clip without any contrast.
    """
    making = _Making(system, timeline, latents_of, prompt_of, progress, folder)
    chunks = making.backward() if timeline.backward else making.forward()
    first = next(chunks)
    yield from _given(timeline, 0, timeline.begin)
    yield first
    yield from chunks
    making.watch.finish()
    yield from _given(timeline, timeline.end, timeline.frames)


class _Making:
    """One clip while it is made: what is remembered, and where the decoder stopped."""

    def __init__(
        self,
        system: LatentVideo,
        timeline: Timeline,
        latents_of: LatentsOf,
        prompt_of: PromptOf,
        progress: bool | None = None,
        folder: Path | None = None,
    ) -> None:
        self.system, self.timeline, self.progress, self.folder = system, timeline, progress, folder
        self.latents_of, self.prompt_of = latents_of, prompt_of
        self.remembered = Remembered(timeline, system.stride.time)
        self.watch = _Watch(system, timeline)
        self.state: State | None = None
        self.refines = getattr(system, "refiner", None) is not None

    def forward(self) -> Iterator[Tensor]:
        timeline, step = self.timeline, self.system.stride.time
        for number, window in enumerate(timeline.windows):
            latents, at = self.latents_of(number, window, self.remembered.frame), window.start
            if number:  # what the prefix encodes has been decoded already
                latents, at = latents[:, :, (window.prefix - 1) // step + 1 :], window.fresh
            for frames in self.decoded(latents, at, window):
                self.remembered.add(at, frames)
                shown = frames[max(0, timeline.begin - at) : max(0, timeline.end - at)]
                at += len(frames)
                if len(shown):
                    yield shown
            self.remembered.forget(window)

    def backward(self) -> Iterator[Tensor]:
        """Every window is a clip of its own, whose end is what was made before it."""
        end = self.timeline.end
        with _Pile(self.folder) as pile:
            for number, window in enumerate(self.timeline.windows):
                latents = self.latents_of(number, window, self.remembered.frame)
                self.state = None
                whole = torch.cat(list(self.decoded(latents, window.start, window)))
                made = whole[max(0, -window.start) : end - window.start]
                pile.put(made)
                end = max(0, window.start)
                self.remembered.add(end, made)
                self.remembered.forget(window)
            yield from pile

    def decoded(self, latents: Tensor, at: int, window: Window) -> Iterator[Tensor]:
        """Latents as finished frames of the timeline, from frame `at` on."""
        give_back()  # what denoising left
        with progress_bar("decoding", self.progress) as show:
            for video in self.finished(latents, at, window):
                frames = _with_what_stays(self.watch(video), self.timeline, at)
                at += len(frames)
                show(min(at, self.timeline.frames), self.timeline.frames)
                yield frames

    def finished(self, latents: Tensor, at: int, window: Window) -> Iterator[Tensor]:
        """Latents as video `1 3 t h w`: chunk by chunk as they are decoded, or all at once where it is drawn again."""
        chunks = []
        for video, after in self.system.decode_more(latents, self.state):
            self.state = after
            if not self.refines:
                yield video
            else:
                chunks.append(video)
        if not chunks:
            return
        made = torch.cat(chunks, dim=2)
        before = [self.remembered.frame(index) for index in range(window.start, at)]
        known = [frame for frame in before if frame is not None]
        first = at
        if known and len(known) == len(before):
            first = window.start
            made = torch.cat((to_unit(torch.stack(known)[None]).to(made), made), dim=2)
        finished = self.system.finish(made, [self.prompt_of(window)], first)
        yield finished[:, :, -sum(chunk.shape[2] for chunk in chunks) :]


class _Pile:
    """Frames uint8 `t h w 3` that wait in a temporary file without a name; the last that was put comes first."""

    def __init__(self, folder: Path | None) -> None:
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
        self.file = TemporaryFile(dir=folder)  # noqa: SIM115 (closed by __exit__)
        self.shapes: list[torch.Size] = []

    def __enter__(self) -> _Pile:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def put(self, frames: Tensor) -> None:
        self.file.write(frames.contiguous().numpy())  # type: ignore[arg-type]
        self.shapes.append(frames.shape)

    def __iter__(self) -> Iterator[Tensor]:
        at = sum(shape.numel() for shape in self.shapes)
        for shape in reversed(self.shapes):
            at -= shape.numel()
            self.file.seek(at)
            yield torch.frombuffer(bytearray(self.file.read(shape.numel())), dtype=torch.uint8).view(shape)


def _with_what_stays(frames: Tensor, timeline: Timeline, at: int) -> Tensor:
    """Frames of the timeline from `at` on, with the given pixels in them that are to stay as they are."""
    if timeline.source is not None and timeline.hole is not None and at < timeline.frames:
        count = min(len(frames), timeline.frames - at)
        hole = timeline.hole[at : at + count, ..., None]
        frames[:count] = torch.where(hole, frames[:count], timeline.source[at : at + count])
    if timeline.keeps:
        for offset in range(len(frames)):
            if at + offset in timeline.known:
                frames[offset] = timeline.known[at + offset]
    return frames


def _given(timeline: Timeline, start: int, stop: int) -> Iterator[Tensor]:
    for first in range(start, stop, _GIVEN):
        yield torch.stack([timeline.known[index] for index in range(first, min(stop, first + _GIVEN))])


class _Watch:
    """Turns decoded video into bytes, and watches it: nothing that is not finite, and not one flat colour."""

    def __init__(self, system: LatentVideo, timeline: Timeline) -> None:
        self.system = system
        self.pictured = timeline.pictured
        self.low, self.high = 255, 0

    def __call__(self, video: Tensor) -> Tensor:
        if not video.isfinite().all():
            raise GenerationError(f"the decoder's output is not finite; {cause(self.system, 'its precision')}")
        frames = ((video[0].float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
        self.low, self.high = min(self.low, int(frames.min())), max(self.high, int(frames.max()))
        return rearrange(frames, "c t h w -> t h w c").cpu().contiguous()

    def finish(self) -> None:
        if self.high - self.low <= _FLAT and not self.pictured:  # what is given may well be black
            raise GenerationError(
                f"every pixel of the clip is the same ({self.low} of 255); {cause(self.system, 'its training')}"
            )


def cause(system: LatentVideo, otherwise: str) -> str:
    """The weights, if they are at fault; else the settings."""
    parts: dict[str, nn.Module] = {
        "transformer": system.denoiser,
        "vae": system.autoencoder,
        "text_encoder": system.text_encoder,
    }
    for part, module in parts.items():
        for name, weight in module.named_parameters():
            if not weight.isfinite().all():
                return f"the model is damaged: its {part} has values that are not finite in {name}; copy it again"
    return f"the weights are finite, so the cause is {otherwise}; try the model's defaults and another seed"
