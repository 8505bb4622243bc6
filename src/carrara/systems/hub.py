"""Models by their name on the hub: found in its cache, or fetched, with the resume and the progress of its own library.

Nothing is fetched that does not fit on the disk, and where the hub cannot be reached the error says what to fetch
elsewhere and where to put it.
"""

from __future__ import annotations

import re
import shutil
from json import JSONDecodeError
from pathlib import Path
from typing import Any

from carrara.core.config import nearest
from carrara.systems.hub_resume import LARGE, fetch_large
from carrara.systems.releases import RELEASES

WANTED = ("*.json", "*.safetensors", "*.pth", "*.model")
"""What models of either layout are made of; pictures, papers and other precisions stay where they are."""
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_SPARE = 1 << 28  # bytes of the disk that are left alone


def is_hub_name(model: str) -> bool:
    """Whether this could be a name on the hub: an owner and a model."""
    return _NAME.fullmatch(model) is not None and ".." not in model


def fetch(name: str, cache: Path | None = None, endpoint: str | None = None, large: int = LARGE) -> Path:
    """The folder of a model of the hub, fetched where it is not in the cache yet.

    What was interrupted is gone on with: files that came whole are kept, and files of at least `large` bytes go on
    where they ended, in a later call too.
    cache: the library's own by default (HF_HOME). Raises ValueError, one line, where it cannot be had.
    """
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import HTTPError, LocalEntryNotFoundError

    cache = Path(cache or constants.HF_HUB_CACHE)
    asked: dict[str, Any] = {"allow_patterns": list(WANTED), "cache_dir": cache, "endpoint": endpoint}
    try:
        try:
            return Path(snapshot_download(name, local_files_only=True, **asked))
        except LocalEntryNotFoundError:  # not in the cache, or not whole
            pass
        files = snapshot_download(name, dry_run=True, **asked)
        missing = [file for file in files if file.will_download]
        check_disk(name, sum(file.file_size for file in missing), cache)
        fetch_large(name, [(file.filename, file.commit_hash) for file in missing], cache, endpoint, large)
        try:
            return Path(snapshot_download(name, **asked))
        except RuntimeError as error:
            if type(error) is not RuntimeError:
                raise
            raise ConnectionError(str(error)) from None  # how hf_xet, which knows no other error, says it
    except (OSError, HTTPError, JSONDecodeError) as error:  # HTTPError: of the hub's HTTP library, no OSError
        raise ValueError(f"{name}: {_told(name, cache, error)}") from None


def _told(name: str, cache: Path, error: BaseException) -> str:
    """What kept a model from being fetched, and what to do."""
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

    causes = [error]  # what the hub's library raises may be the consequence of what tells more
    while (cause := causes[-1].__cause__) is not None:
        causes.append(cause)
    if any(isinstance(cause, GatedRepoError) for cause in causes):
        return "its owner lets nobody in without asking; ask on the hub, then set HF_TOKEN"
    if any(isinstance(cause, RepositoryNotFoundError) for cause in causes):
        return f"no such folder here and no such model on the hub; {_nearest(name)}"
    if isinstance(error, OSError) and error.errno is not None and not isinstance(error, ConnectionError | TimeoutError):
        return (
            f"cannot be written to {cache} ({_reason(error)}); make room there, or set HF_HOME to another place; what "
            "came whole is kept"
        )
    answered = next((cause for cause in causes if isinstance(cause, HfHubHTTPError)), None)
    if answered is not None:
        what = f"the hub answers {answered.response.status_code} {answered.response.reason_phrase}"
    elif isinstance(error, JSONDecodeError):
        what = "what answers in the hub's place is none"
    else:
        what = f"the hub cannot be reached ({_reason(causes[-1])})"
    return (
        f"no such folder, and {what}; where it can be reached, run: hf download {name} --local-dir FOLDER; bring that "
        f"folder here and give its path as the model{_size(name)}"
    )


def check_disk(name: str, size: int, cache: Path) -> None:
    """Refuse what the disk of the cache cannot take."""
    place = cache
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if size + _SPARE > free:
        raise ValueError(
            f"{name}: {size / 1e9:.1f} GB are to be fetched, {free / 1e9:.1f} GB are free for {cache}; make room, or "
            "set HF_HOME to a place on another disk"
        )


def _nearest(name: str) -> str:
    return nearest(name, [known for release in RELEASES for known in release.names])


def _size(name: str) -> str:
    """What a released model takes on disk at least, where the name is one's."""
    for release in RELEASES:
        if name in release.names:
            return f" (at least {release.bytes() / 1e9:.0f} GB)"
    return f"; {_nearest(name)}"


def _reason(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
