"""Why something is not kept: a short fixed name, and what it means for the reader of a report."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

REASONS = {
    "unreadable": "No frame can be decoded: damaged, encrypted, without a video, or coded in an unknown way.",
    "damaged": "A damaged stretch of a file whose other parts were read.",
    "crashed": "The file brought its process down, or held it without any progress.",
    "too_slow": "Reading took longer than the time for one file.",
    "too_large": "Its frames have more pixels than are decoded.",
    "too_small": "It would have to be enlarged too much for every bucket.",
    "shape": "Too much of the picture would have to be cut away for every bucket.",
    "too_short": "A shot with fewer frames than the shortest bucket.",
    "remainder": "What was left of a shot behind its last whole piece.",
    "low_rate": "It has too few frames per second of its own.",
    "black": "Nothing but black.",
    "frozen": "Nothing moves.",
    "duplicate": "It shows the same as a piece that was kept.",
    "hdr": "High dynamic range, which needs a choice of tones: convert it to SDR first.",
    "missing": "A metadata file names it, and it is not there.",
    "outside": "Its path or link leads out of the folder.",
    "caption": "Its caption file is no text.",
    "not_media": "Neither a video, a picture nor a tar.",
}
"""In the order in which reports show them."""


@dataclass(frozen=True)
class Dropped:
    """Something that is not kept. start, end: seconds from the file's first frame, None for the whole file."""

    source: str
    reason: str
    sentence: str
    start: float | None = None
    end: float | None = None

    def plain(self) -> dict[str, Any]:
        """As a row of JSON."""
        return asdict(self)


class Unfit(Exception):
    """A file, or the rest of one, cannot be used."""

    def __init__(self, reason: str, sentence: str) -> None:
        super().__init__(sentence)
        self.reason, self.sentence = reason, sentence
