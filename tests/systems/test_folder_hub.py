"""Models by name: fetched whole from a hub (a server of this test's own, speaking its protocol), found again without
one, and refused in one line where there is none or no room."""

from __future__ import annotations

import hashlib
import json
import re
import resource
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from tests.systems.foreign import write_diffusers

from carrara.systems.folder import recognise
from carrara.systems.hub import check_disk, fetch, is_hub_name

NAME, COMMIT = "Wan-AI/tiny", "0123456789abcdef0123456789abcdef01234567"
NOWHERE = "http://127.0.0.1:9"  # nothing listens there


class Hub(BaseHTTPRequestHandler):
    """As much of a hub as a download asks of it."""

    root: Path
    asked: list[tuple[str, str, int]]  # method, path, from which byte on
    breaks: list[str]  # paths whose first answer breaks off in the middle
    gone: list[str]  # paths whose every answer ends in the middle: beyond it nobody answers
    refused: tuple[str, int, dict[str, str]]  # what a path has in it, and the status and headers of the answer then
    more: dict[str, str]  # headers of every answer

    def _send(self, content: bytes, status: int = 200, half: bool = False, **headers: str) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(content)), **self.more, **headers}.items():
            self.send_header(key.replace("_", "-"), value)
        self.end_headers()
        if self.command == "GET":
            whole = not half and not any(self.path.endswith(path) for path in self.breaks)
            self.wfile.write(content if whole else content[: len(content) // 2])
            if not whole:
                self.breaks.clear()
                self.close_connection = True

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        start = int(found[1]) if (found := re.match(r"bytes=(\d+)-", self.headers.get("Range", ""))) else 0
        self.asked.append((self.command, path, start))
        inside, status, headers = self.refused
        if inside in path:
            self._send(b"<html>", status, **headers)
            return
        files = sorted(file for file in self.root.rglob("*") if file.is_file())
        if path == f"/api/models/{NAME}/revision/main":
            siblings = [{"rfilename": str(file.relative_to(self.root))} for file in files]
            self._send(json.dumps({"id": NAME, "sha": COMMIT, "siblings": siblings}).encode())
        elif path.startswith(f"/api/models/{NAME}/tree/"):
            tree = [
                {
                    "type": "file",
                    "path": str(file.relative_to(self.root)),
                    "size": file.stat().st_size,
                    "oid": hashlib.sha1(file.read_bytes()).hexdigest(),
                }
                for file in files
            ]
            self._send(json.dumps(tree).encode(), Content_Type="application/json")
        elif path.startswith(f"/{NAME}/resolve/{COMMIT}/"):
            content = (self.root / path.split(COMMIT + "/")[1]).read_bytes()
            if self.command == "GET" and any(path.endswith(gone) for gone in self.gone):
                if not start:
                    self._send(content, half=True)
                self.close_connection = True
                return
            tag = hashlib.sha256(content).hexdigest()
            self._send(content[start:], 206 if start else 200, ETag=f'"{tag}"', X_Repo_Commit=COMMIT)
        else:
            missing = json.dumps({"error": "Repository not found"}).encode()
            self._send(missing, 404, X_Error_Code="RepoNotFound", X_Error_Message="Repository not found")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub with one model on it: its address, its handler, and a cache."""
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    write_diffusers(tmp_path / "published", "t2v", shards="1GB")
    (tmp_path / "published/picture.png").write_bytes(b"not of the model")
    state = {"root": tmp_path / "published", "asked": [], "breaks": [], "gone": [], "more": {}}
    handler = type("Handler", (Hub,), {**state, "refused": ("nothing", 0, {})})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", handler, tmp_path / "cache"
    server.shutdown()
    thread.join()
    server.server_close()


def read(handler) -> list[tuple[str, int]]:
    """The files that were fetched, and from which byte on."""
    found = [(path, at) for method, path, at in handler.asked if method == "GET" and "/resolve/" in path]
    return [(path.partition(f"{COMMIT}/")[2], at) for path, at in found]


def test_a_model_is_fetched_once_and_found_again_without_the_hub(hub):
    address, handler, cache = hub
    folder = fetch(NAME, cache, address)
    recognise(folder).check()
    assert ("vae/diffusion_pytorch_model.safetensors", 0) in read(handler)
    assert not list(folder.rglob("*.png"))  # what is not of the model stays there
    handler.asked.clear()
    assert fetch(NAME, cache, address) == folder
    assert fetch(NAME, cache, NOWHERE) == folder
    assert not handler.asked


def test_a_fetch_that_was_interrupted_is_gone_on_with(hub):
    address, handler, cache = hub
    folder = fetch(NAME, cache, address)
    weights = folder / "transformer/diffusion_pytorch_model.safetensors"
    content = weights.read_bytes()
    weights.resolve().unlink()
    weights.unlink()
    with pytest.raises(ValueError, match="the hub cannot be reached"):
        fetch(NAME, cache, NOWHERE)
    handler.asked.clear()
    assert fetch(NAME, cache, address) == folder
    assert weights.read_bytes() == content
    assert read(handler) == [(str(weights.relative_to(folder)), 0)]  # and nothing that had come whole


def test_a_file_whose_connection_breaks_is_gone_on_with(hub):
    address, handler, cache = hub
    name = "transformer/diffusion_pytorch_model.safetensors"
    handler.breaks.append(name)
    folder = fetch(NAME, cache, address)
    assert len([path for path, _ in read(handler) if path == name]) == 2
    recognise(folder).check()


def test_a_large_file_goes_on_where_an_earlier_fetch_ended(hub, monkeypatch):
    """The process ended in the middle: what had come is kept, and only the rest is asked for."""
    address, handler, cache = hub
    name = "transformer/diffusion_pytorch_model.safetensors"
    content = (handler.root / name).read_bytes()
    handler.gone.append(name)
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1024)  # what is kept at least
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # between the attempts of one fetch
    with pytest.raises(ValueError, match="the hub cannot be reached"):
        fetch(NAME, cache, address, large=len(content))
    (partial,) = cache.rglob("*.carrara-partial")
    came = partial.read_bytes()
    assert len(came) > len(content) // 2 - 1024
    assert content.startswith(came)
    handler.gone.clear()
    handler.asked.clear()
    folder = fetch(NAME, cache, address, large=len(content))
    assert (folder / name).read_bytes() == content
    assert [at for path, at in read(handler) if path == name] == [len(came)]
    recognise(folder).check()
    assert not list(cache.rglob("*partial"))


def test_a_large_file_whose_pieces_do_not_fit_together_is_told_and_begins_anew(hub):
    address, handler, cache = hub
    name = "transformer/diffusion_pytorch_model.safetensors"
    content = (handler.root / name).read_bytes()
    blobs = cache / "models--Wan-AI--tiny" / "blobs"
    blobs.mkdir(parents=True)
    tag = hashlib.sha256(content).hexdigest()
    (blobs / f"{tag}.carrara-partial").write_bytes(b"other bytes")
    with pytest.raises(ValueError, match=f"{name} came damaged; what came is deleted: run it again"):
        fetch(NAME, cache, address, large=len(content))
    assert (fetch(NAME, cache, address, large=len(content)) / name).read_bytes() == content


def test_a_name_that_nobody_has_is_told_from_a_hub_that_is_away(hub, tmp_path):
    address, _, cache = hub
    with pytest.raises(ValueError, match=r"no such model on the hub; did you mean Wan-AI/Wan2\.1-T2V-1\.3B") as caught:
        fetch("Wan-AI/Wan2.1-T2V-1.3", cache, address)
    assert "\n" not in str(caught.value)
    with pytest.raises(
        ValueError, match=r"the hub cannot be reached \(.*hf download Wan-AI/Wan2\.2-TI2V-5B "
    ) as caught:
        fetch("Wan-AI/Wan2.2-TI2V-5B", tmp_path / "nothing", NOWHERE)
    assert "at least 24 GB" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "nothing").exists()  # nothing half-written


@pytest.mark.parametrize("path", ["/api/models/", "/resolve/"])  # of the whole model, and of its files only
def test_a_gated_model_says_whom_to_ask(hub, path):
    address, handler, cache = hub
    handler.refused = (path, 403, {"X_Error_Code": "GatedRepo"})
    with pytest.raises(ValueError, match=r"Wan-AI/tiny: its owner lets nobody in .* set HF_TOKEN$"):
        fetch(NAME, cache, address)


@pytest.mark.parametrize(
    ("path", "status", "told"),
    [
        ("/api/models/", 403, "the hub answers 403 Forbidden"),
        ("/resolve/", 404, "the hub answers 404 Not Found"),
        ("/api/models/", 200, "what answers in the hub's place is none"),  # the page of a network that wants a login
    ],
)
def test_a_hub_that_answers_otherwise_is_told_by_its_answer(hub, path, status, told):
    address, handler, cache = hub
    handler.refused = (path, status, {})
    with pytest.raises(ValueError, match=f"no such folder, and {told}; .* hf download Wan-AI/tiny --local-dir FOLDER"):
        fetch(NAME, cache, address)


def test_what_hf_xet_says_of_the_network_is_told(hub):
    """Files of its store come by another library, which raises nothing but RuntimeError."""
    pytest.importorskip("hf_xet")
    address, handler, cache = hub
    handler.more = {
        "X_Xet_Hash": "a" * 64,
        "X_Xet_Refresh_Route": f"{address}/api/models/{NAME}/revision/main",
        "X_Xet_Cas_Url": address,  # which has no such store
        "X_Xet_Access_Token": "any",
        "X_Xet_Token_Expiration": "4000000000",
    }
    with pytest.raises(ValueError, match=r"cannot be reached \(.*404.*\); where it can be reached") as caught:
        fetch(NAME, cache, address)
    assert "\n" not in str(caught.value)


def test_a_disk_that_takes_no_more_is_told_from_the_hub(hub, tmp_path):
    address, _, cache = hub
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"cannot be written to .*file/cache \(.*\); make room there, or set HF_HOME"):
        fetch(NAME, tmp_path / "file/cache", address)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))  # as a full disk: no file takes more
    try:
        with pytest.raises(ValueError, match=r"cannot be written to .*File too large"):
            fetch(NAME, cache, address, large=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    recognise(fetch(NAME, cache, address, large=1)).check()


def test_a_mistake_in_a_program_is_not_taken_for_the_network(hub):
    address, _, cache = hub
    with pytest.raises(TypeError):
        fetch(NAME, cache, address, large="64 MB")


def test_what_does_not_fit_on_the_disk_is_not_begun(tmp_path):
    with pytest.raises(ValueError, match=r"10000000\.0 GB are to be fetched, .* free for .*HF_HOME"):
        check_disk(NAME, 10**16, tmp_path / "not there yet")
    check_disk(NAME, 10, tmp_path)


@pytest.mark.parametrize("model", ["Wan-AI/Wan2.1-T2V-1.3B", "a/b", "Wan-AI/Wan2.1-I2V-14B-480P-Diffusers"])
def test_names_of_the_hub_are_known(model):
    assert is_hub_name(model)


@pytest.mark.parametrize("model", ["/a/b", "./a/b", "a", "a/b/c", "../b", "a/..", "a/b/", "~/models", "", "a\\b/c"])
def test_paths_are_not_taken_for_names(model):
    assert not is_hub_name(model)
