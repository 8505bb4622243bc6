"""Large files of the hub that go on where an earlier fetch ended.

Not standard: `huggingface_hub` goes on within a fetch, where a connection breaks; but a file that was not whole when
the process ended it throws away, ten gigabytes of it too. So large files are fetched here, by its own functions, into
the place in its cache where it looks for them; everything else it does itself.
"""

from __future__ import annotations

import fcntl
import re
from collections.abc import Iterable
from pathlib import Path

from carrara.core.files import sha256

LARGE = 64 << 20  # bytes; a smaller file may begin anew
_SHA256 = re.compile(r"[0-9a-f]{64}")


def fetch_large(name: str, files: Iterable[tuple[str, str]], cache: Path, endpoint: str | None, large: int) -> None:
    """Bring the files (path, commit) of at least `large` bytes into the hub's cache, from where earlier fetches ended.

    What was put together from pieces is checked against its SHA-256, where the hub gives one. A file that another
    process is fetching is left to the caller. Raises ValueError, one line, for a file that came damaged.
    """
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url
    from huggingface_hub.file_download import http_get, repo_folder_name
    from huggingface_hub.utils import build_hf_headers

    blobs = cache / repo_folder_name(repo_id=name, repo_type="model") / "blobs"
    for path, commit in files:
        url = hf_hub_url(name, path, revision=commit, endpoint=endpoint)
        about = get_hf_file_metadata(url, endpoint=endpoint)
        if about.etag is None or about.size is None or not large <= about.size <= constants.MAX_HTTP_DOWNLOAD_SIZE:
            continue
        blobs.mkdir(parents=True, exist_ok=True)
        whole, partial = blobs / about.etag, blobs / f"{about.etag}.carrara-partial"
        if whole.exists():
            continue
        with partial.open("ab") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                continue
            begun = file.tell()
            headers = build_hf_headers()
            http_get(
                about.location,
                file,
                resume_size=begun,
                headers=headers,
                expected_size=about.size,
                displayed_filename=path,
            )
        if begun and not _is_whole(partial, about.size, about.etag):
            partial.unlink()
            raise ValueError(f"{name}: {path} came damaged; what came is deleted: run it again")
        partial.replace(whole)


def _is_whole(path: Path, size: int, etag: str) -> bool:
    if path.stat().st_size != size:
        return False
    if not _SHA256.fullmatch(etag):
        return True
    return sha256(path) == etag
