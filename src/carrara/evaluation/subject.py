"""What an evaluation works on: a model by what it can do, how much is measured, and the clips that parts share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from carrara.core.progress import progress_bar
from carrara.core.types import Decoder, Encoder, VideoShape
from carrara.evaluation.distribution.fvd import Extractor
from carrara.evaluation.kept import answering, identity
from carrara.evaluation.physics.continuation import Continues, known_frames
from carrara.evaluation.physics.preference import ScoresNoise
from carrara.evaluation.prompts import MOST_SEED, Prompt, draw_prompts
from carrara.evaluation.sources import BATCH, MODEL, Generates, Source, make_sources, write_truth


class Gap(Exception):
    """Why a part cannot be measured here: what the model cannot do, or too little to say anything."""


@dataclass(frozen=True)
class Subject:
    """What is measured, by what it can do; None where it cannot.

    shape, fps: of its clips, and so of the renders beside them; generates: prompts to files; baselines: other ways to
    generate, by the name of their column; codec: its encoder and decoder; continues: makes clips from their beginning;
    scores_noise: says how well it undoes noise; about: what the report should say of it (name, weights, settings).
    """

    shape: VideoShape
    fps: float
    generates: Generates | None = None
    baselines: Mapping[str, Generates] = field(default_factory=dict)
    codec: tuple[Encoder, Decoder] | None = None
    continues: Continues | None = None
    scores_noise: ScoresNoise | None = None
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def makers(self) -> dict[str, Generates]:
        """What generates, by the name of its column; the model comes first."""
        return ({MODEL: self.generates} if self.generates else {}) | dict(self.baselines)

    @property
    def identity(self) -> str | None:
        """What makes its clips, by which they are known again; None where `about` does not name the weights."""
        return identity(self.about, vars(self.shape), self.fps)

    def keeping(self, folder: Path) -> Subject:
        """The same, with what it answers kept in a folder: asked again, it is not computed again."""
        by, continues, scores = self.identity, self.continues, self.scores_noise
        return replace(
            self,
            continues=answering(continues, folder, by and f"{by} continues") if continues else None,
            scores_noise=answering(scores, folder, by and f"{by} scores") if scores else None,
        )

    @property
    def known(self) -> int:
        """How many frames `continues` is given: as published, or as few more as the codec's stride in time allows."""
        return known_frames(self.codec[0].stride.time if self.codec else 1)


@dataclass(frozen=True)
class Suite:
    """How much is measured. prompts: clips of each source; crossings: clips that show a wall; pairs: twins per law;
    balls: scenes of each kind
    and split, and of walls that stop (0: left out); references: renders that stand for the world."""

    prompts: int
    crossings: int
    pairs: int
    balls: int
    references: int


SUITES: Mapping[str, Suite] = {
    "quick": Suite(prompts=20, crossings=10, pairs=4, balls=0, references=60),
    "full": Suite(prompts=240, crossings=100, pairs=50, balls=50, references=500),
}


@dataclass(frozen=True)
class Run:
    """One evaluation. folder: for clips; progress: shown on a terminal only if None; extractor: a network that the user
    brings."""

    subject: Subject
    suite: Suite
    seed: int
    folder: Path
    progress: bool | None
    extractor: Extractor | None = None

    @cached_property
    def prompts(self) -> list[Prompt]:
        return draw_prompts(self.suite.prompts, self.seed)

    @cached_property
    def sources(self) -> list[Source]:
        """The clips of the prompts, written when a part first asks for them."""
        return self.clips_of(self.prompts, self.folder)

    def clips_of(self, prompts: list[Prompt], folder: Path, baselines: bool = True) -> list[Source]:
        """The clips of these prompts by every source."""
        subject = self.subject
        makers = {name: make for name, make in subject.makers.items() if baselines or name == MODEL}
        return make_sources(
            prompts, folder, makers, subject.shape, subject.fps, subject.codec, self.progress, subject.identity
        )

    @property
    def reference_seed(self) -> int:
        """Of the prompts whose renders stand for the world."""
        return self.seed + 1 if self.seed < MOST_SEED else self.seed - 1

    @cached_property
    def reference(self) -> Source:
        """Renders of other prompts, which stand for the world; written when a part first asks for them."""
        prompts = draw_prompts(self.suite.references, self.reference_seed)
        home = self.folder / "reference"
        home.mkdir(parents=True, exist_ok=True)
        paths = tuple(home / f"{index:04d}.mp4" for index in range(len(prompts)))
        with progress_bar("reference: clips", self.progress) as show:
            for start in range(0, len(prompts), BATCH):
                end = min(start + BATCH, len(prompts))
                write_truth(prompts[start:end], paths[start:end], self.subject.shape, self.subject.fps)
                show(end, len(prompts))
        return Source("reference", paths)
