"""The parts of an evaluation of video files, each a function of a run that gives a section, or says why it cannot."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice

from carrara.core.progress import progress_bar
from carrara.evaluation.consistency import section as consistency_section
from carrara.evaluation.consistency.measures import Consistency, measure
from carrara.evaluation.controls import CONTROLS, Control
from carrara.evaluation.distribution import judged
from carrara.evaluation.distribution.distances import LEAST_CLIPS, distances
from carrara.evaluation.distribution.distances import section as distribution_section
from carrara.evaluation.distribution.fvd import Extractor
from carrara.evaluation.distribution.motion_net import LEAST_FRAMES, RATE, load_motion_net, motion_features
from carrara.evaluation.report.sections import Section
from carrara.evaluation.subject import Gap
from carrara.evaluation.video_files import Read, VideoFile, VideoSet

FEWEST = 2  # clips: one has no interval
DRAWN = 3  # clips whose tracks and flow are drawn


@dataclass(frozen=True)
class VideoRun:
    """One evaluation of videos. against: others to hold them against; progress: shown on a terminal only if None;
    extractor: a network that the user brings."""

    clips: VideoSet
    against: VideoSet | None
    progress: bool | None
    extractor: Extractor | None = None

    @property
    def files(self) -> tuple[VideoFile, ...]:
        """Of both sets."""
        return self.clips.files + (self.against.files if self.against else ())


def consistency(run: VideoRun) -> Section:
    """How what moves and what stands stay themselves, beside the same clips frozen and shuffled."""
    clips, against = run.clips, run.against
    if len(clips) < FEWEST:
        raise Gap(f"{len(clips)} clip that can be read: too few for an interval; give at least {FEWEST}")
    sets = (clips, against) if against else (clips,)
    reference = sets[-1]
    found: dict[str, list[Consistency]] = {}
    for each in sets:
        found[each.name] = []
        with progress_bar(f"consistency: {each.name}", run.progress) as show:
            for frames, fps in each:
                found[each.name].append(measure(frames, fps))
                if each is reference:
                    number = len(found[each.name]) - 1
                    for name, control in CONTROLS.items():
                        found.setdefault(name, []).append(measure(control(frames, number), fps))
                show(len(found[each.name]), len(each))
    drawn = {clips.called(file): clip for file, clip in islice(zip(clips.files, clips), DRAWN)}
    return consistency_section.section(found, drawn, reference.name)


def halved(run: VideoRun, least: int) -> tuple[VideoSet, dict[str, Iterable[Read]]]:
    """The reference, which is one half of the others, and what is held against it: the clips, the other half, which
    says what is near, and that half made wrong in time. Raises Gap where there are too few or sizes differ."""
    clips, against = run.clips, run.against
    if against is None:
        raise Gap("there is nothing to hold the clips against; give --against DIR")
    for each, needed in ((clips, least), (against, 2 * least)):
        if len(each) < needed:
            raise Gap(f"{each.name}: {len(each)} clips are too few; {needed} are needed")
    sizes = sorted({(file.width, file.height) for file in (*clips.files, *against.files)})
    if len(sizes) > 1:
        said = ", ".join(f"{width}x{height}" for width, height in sizes[:4]) + (" ..." if len(sizes) > 4 else "")
        raise Gap(f"clips of different sizes ({said}) would be told apart by that alone; scale them to one size")
    reference, other = (replace(against, files=against.files[start::2]) for start in (0, 1))
    sources: dict[str, Iterable[Read]] = {clips.name: clips, "truth": other}
    return reference, sources | {name: Controlled(other, control) for name, control in CONTROLS.items()}


def distribution(run: VideoRun) -> Section:
    """How far the clips are, as a population, from others, on features of motion."""
    reference, sources = halved(run, LEAST_CLIPS)
    lengths = [int((file.frames - 1) / file.fps * RATE + 1e-6) + 1 for file in run.files]
    frames = min(17, *lengths)
    if frames < LEAST_FRAMES:
        raise Gap(f"the shortest clip has {frames} frames at {RATE:g} per second; {LEAST_FRAMES} are needed")
    net = load_motion_net()
    known = motion_features(net, reference, frames)
    found = {}
    with progress_bar("distribution", run.progress) as show:
        for name, source in sources.items():
            found[name] = distances(motion_features(net, source, frames), known)
            show(len(found), len(sources))
    return distribution_section(found, {"frames compared": frames} | counts(run, reference))


def fvd(run: VideoRun) -> Section:
    """The same on features of a network that the user brings."""
    extractor = run.extractor
    if extractor is None:
        raise Gap(judged.NO_NETWORK)
    reference, sources = halved(run, judged.LEAST_CLIPS)
    shortest = min(file.frames for file in run.files)
    if shortest < extractor.frames:
        raise Gap(f"the shortest clip has {shortest} frames; {extractor.name} looks at {extractor.frames}")
    known = extractor(frames for frames, _ in reference)
    found = {}
    with progress_bar(extractor.name, run.progress) as show:
        for name, source in sources.items():
            found[name] = judged.judged((frames for frames, _ in source), known, extractor)
            show(len(found), len(sources))
    return judged.section(found, extractor, {"clips": len(run.clips)} | counts(run, reference))


@dataclass(frozen=True)
class Controlled:
    """A set of videos with a control done to each, seeded by its number."""

    videos: VideoSet
    control: Control

    def __iter__(self) -> Iterator[Read]:
        for number, (frames, fps) in enumerate(self.videos):
            yield self.control(frames, number), fps


def counts(run: VideoRun, reference: VideoSet) -> dict[str, int]:
    """How many of the others are the reference, and how many say what is near."""
    return {"reference": len(reference), "truth": len(run.files) - len(run.clips) - len(reference)}


PARTS: Mapping[str, Callable[[VideoRun], Section]] = {
    "consistency": consistency,
    "distribution": distribution,
    "fvd": fvd,
}
