"""The parts of a model's evaluation, each a function of a run that gives a section, or says why it cannot."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import islice

from carrara.core.progress import progress_bar
from carrara.core.types import VideoShape
from carrara.evaluation.adherence import section as adherence_section
from carrara.evaluation.consistency import section as consistency_section
from carrara.evaluation.consistency.measures import Consistency, measure
from carrara.evaluation.distribution import judged
from carrara.evaluation.distribution.distances import LEAST_CLIPS, distances
from carrara.evaluation.distribution.distances import section as distribution_section
from carrara.evaluation.distribution.motion_net import LEAST_FRAMES, load_motion_net, motion_features
from carrara.evaluation.permanence import section as permanence_section
from carrara.evaluation.permanence.scenes import LENGTHS, longest_occlusion
from carrara.evaluation.physics import section as physics_section
from carrara.evaluation.physics.barriers import least_frames, measure_walls
from carrara.evaluation.physics.continuation import measure_physics
from carrara.evaluation.physics.preference import measure_preference
from carrara.evaluation.physics.twins import LEAST_FRAMES as LEAST_TWIN
from carrara.evaluation.report.sections import Section
from carrara.evaluation.sources import TRUTH, Source
from carrara.evaluation.subject import Gap, Run

DRAWN = 3  # clips of the first source whose tracks and flow are drawn
MOST_BALL_FRAMES = 33  # of a clip of balls


def adherence(run: Run) -> Section:
    """What was asked for against what is shown."""
    results = {}
    for source in run.sources:
        with progress_bar(f"adherence: {source.name}", run.progress) as show:
            results[source.name] = adherence_section.judge(run.prompts, source, show)
    return adherence_section.section(results)


def consistency(run: Run) -> Section:
    """How what moves and what stands stay themselves."""
    found: dict[str, list[Consistency]] = {}
    for source in run.sources:
        found[source.name] = []
        with progress_bar(f"consistency: {source.name}", run.progress) as show:
            for frames, fps in source:
                found[source.name].append(measure(frames, fps))
                show(len(found[source.name]), len(source))
    truth = [frames for frames, _ in truths(run)]
    if len(truth) > 1:
        found["mixed"] = [measure(frames, run.subject.fps) for frames in consistency_section.mixed(truth)]
    first = run.sources[0]
    drawn = {f"{first.name}: “{p.text}”": clip for p, clip in islice(zip(run.prompts, first), DRAWN)}
    return consistency_section.section(found, drawn)


def permanence(run: Run) -> Section:
    """What goes behind a wall, and what comes out."""
    shape, fps = run.subject.shape, run.subject.fps
    if longest_occlusion(shape.frames) < max(LENGTHS):
        raise Gap(f"clips of {shape.frames} frames are too short for a wall to hide an actor; 17 are enough")
    prompts = permanence_section.crossing_prompts(run.suite.crossings, run.seed, shape.frames, fps)
    results = {}
    for source in run.clips_of(prompts, run.folder / "permanence", baselines=False):
        with progress_bar(f"permanence: {source.name}", run.progress) as show:
            results[source.name] = permanence_section.judge(prompts, source, show)
    return permanence_section.section(results)


def physics(run: Run) -> Section:
    """Whether motion goes on as mechanics has it, and stops where a wall stops it."""
    subject, size = run.subject, run.suite
    if subject.continues is None:
        raise Gap("this model cannot continue a clip from its first frames")
    if not size.balls:
        raise Gap("it takes minutes; the full suite measures it")
    frames, known = subject.shape.frames, subject.known
    if frames < (least := least_frames(known)):
        raise Gap(
            f"clips of {frames} frames: {known} are given, and to reach a wall and stand there takes {least} in all"
        )
    shape = VideoShape(min(frames, MOST_BALL_FRAMES), subject.shape.height, subject.shape.width)
    with progress_bar("physics: balls", run.progress) as show:
        balls = measure_physics(
            subject.continues,
            shape,
            clips=size.balls,
            seed=run.seed,
            codec=subject.codec,
            known=known,
            progress=show,
        )
    with progress_bar("physics: walls", run.progress) as show:
        walls = measure_walls(
            subject.continues,
            subject.shape,
            subject.fps,
            clips=size.balls,
            seed=run.seed,
            codec=subject.codec,
            known=known,
            progress=show,
        )
    return physics_section.section(balls, walls)


def preference(run: Run) -> Section:
    """Which of two twins, one of them impossible, the model finds likelier."""
    subject = run.subject
    if subject.scores_noise is None:
        raise Gap("this model cannot say how well it undoes noise on a clip")
    if subject.shape.frames < LEAST_TWIN:
        raise Gap(f"clips of {subject.shape.frames} frames are too short to break a law in; {LEAST_TWIN} are enough")
    with progress_bar("preference", run.progress) as show:
        found = measure_preference(
            subject.scores_noise,
            "pond",
            subject.shape,
            subject.fps,
            pairs=run.suite.pairs,
            seed=run.seed,
            progress=show,
        )
    return physics_section.preference_section([found])


def distribution(run: Run) -> Section:
    """How far the clips are, as a population, from other renders of the same kind of scenes."""
    subject, size = run.subject, run.suite
    if min(size.prompts, size.references) < LEAST_CLIPS:
        raise Gap(f"{size.prompts} prompts: a distribution needs at least {LEAST_CLIPS}")
    frames = int((subject.shape.frames - 1) / subject.fps * 8 + 1e-6) + 1
    if frames < LEAST_FRAMES:
        raise Gap(f"clips of {subject.shape.frames} frames at {subject.fps:g} per second are too short")
    net = load_motion_net()
    reference = motion_features(net, run.reference, frames)
    found = {}
    with progress_bar("distribution", run.progress) as show:
        for number, source in enumerate(run.sources):
            found[source.name] = distances(motion_features(net, source, frames), reference, run.seed)
            show(number + 1, len(run.sources))
    return distribution_section(found, population(run))


def fvd(run: Run) -> Section:
    """The same on features of a network that the user brings."""
    extractor, size = run.extractor, run.suite
    if extractor is None:
        raise Gap(judged.NO_NETWORK)
    if min(size.prompts, size.references) < judged.LEAST_CLIPS:
        raise Gap(f"{size.prompts} prompts: it needs at least {judged.LEAST_CLIPS}")
    if run.subject.shape.frames < extractor.frames:
        raise Gap(f"clips of {run.subject.shape.frames} frames: {extractor.name} looks at {extractor.frames}")
    reference = extractor(frames for frames, _ in run.reference)
    found = {}
    with progress_bar(extractor.name, run.progress) as show:
        for number, source in enumerate(run.sources):
            found[source.name] = judged.judged((frames for frames, _ in source), reference, extractor, run.seed)
            show(number + 1, len(run.sources))
    return judged.section(found, extractor, population(run))


def population(run: Run) -> dict[str, int]:
    """How many clips are held against how many, of which prompts."""
    size = run.suite
    return {
        "clips": size.prompts,
        "reference clips": size.references,
        "reference prompts' seed": run.reference_seed,
    }


def truths(run: Run) -> Source:
    """The truth's own clips."""
    return next(source for source in run.sources if source.name == TRUTH)


PARTS: Mapping[str, Callable[[Run], Section]] = {
    "adherence": adherence,
    "consistency": consistency,
    "permanence": permanence,
    "physics": physics,
    "preference": preference,
    "distribution": distribution,
    "fvd": fvd,
}
