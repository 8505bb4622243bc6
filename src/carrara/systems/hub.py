"""Models by their name on the hub: found in its cache, or fetched, with the resume and the progress of its own library.

Nothing is fetched that does not fit on the disk, and where the hub cannot be reached the error says what to fetch
elsewhere and where to put it.
"""

from __future__ import annotations

import re
import shutil
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
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    cache = Path(cache or constants.HF_HUB_CACHE)
    asked: dict[str, Any] = {"allow_patterns": list(WANTED), "cache_dir": cache, "endpoint": endpoint}
    try:
        return Path(snapshot_download(name, local_files_only=True, **asked))
    except OSError:  # not in the cache, or not whole
        pass
    try:
        files = snapshot_download(name, dry_run=True, **asked)
        missing = [file for file in files if file.will_download]
        check_disk(name, sum(file.file_size for file in missing), cache)
        fetch_large(name, [(file.filename, file.commit_hash) for file in missing], cache, endpoint, large)
        return Path(snapshot_download(name, **asked))
    except Exception as error:  # broken connections are errors of the hub's HTTP library, which are no OSError
        if isinstance(error, ValueError) and not isinstance(error, OSError):
            raise
        cause = error.__cause__ or error
        if isinstance(cause, GatedRepoError):
            raise ValueError(
                f"{name}: its owner lets nobody in without asking; ask on the hub, then set HF_TOKEN"
            ) from None
        if isinstance(cause, RepositoryNotFoundError):
            raise ValueError(f"{name}: no such folder here and no such model on the hub; {_nearest(name)}") from None
        raise ValueError(
            f"{name}: no such folder, and the hub cannot be reached ({_reason(cause)}); where it can, run: hf download "
            f"{name} --local-dir FOLDER; bring that folder here and give its path as the model{_size(name)}"
        ) from None


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
