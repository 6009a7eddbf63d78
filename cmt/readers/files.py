"""From files, folders and standard input to documents.

Nothing here stops a batch: a file that can't be read, or a line of it, becomes a `Failure` with
the path (and the line's number) and the reason, and the rest goes on.
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import BinaryIO

from cmt.errors import DocumentError, InputError
from cmt.readers.records import read_csv, read_json_lines
from cmt.readers.texts import Origin, read_html, read_markdown, read_pdf, read_text
from cmt.records import Document, Failure

Reader = Callable[[BinaryIO, Origin], Iterator[Document | Failure]]


def _one(read: Callable[[BinaryIO, Origin], Document]) -> Reader:
    def reader(stream: BinaryIO, origin: Origin) -> Iterator[Document | Failure]:
        yield read(stream, origin)

    return reader


# The kind of a file is its name's extension; a file of an unknown kind is tried as text.
READERS: dict[str, Reader] = {
    "txt": _one(read_text),
    "md": _one(read_markdown),
    "markdown": _one(read_markdown),
    "html": _one(read_html),
    "htm": _one(read_html),
    "pdf": _one(read_pdf),
    "jsonl": read_json_lines,
    "ndjson": read_json_lines,
    "csv": read_csv,
    "tsv": partial(read_csv, delimiter="\t"),
}


MANY = frozenset({"jsonl", "ndjson", "csv", "tsv"})  # kinds that hold many documents


def read_path(
    path: str | os.PathLike[str], *, kind: str | None = None
) -> Iterator[Document | Failure]:
    """Documents of a file, or of a folder's files in sorted order.

    In a folder, hidden files and folders (their names start with a dot) are passed over; links
    to folders are not followed. A document's source is the path as given, its title the file's
    name without extension and its date the file's last change (UTC; none that lies ahead), where it
    has none itself. That date is marked as `stamped` where the file holds one document.
    The id of a file that holds one document is its absolute path, so that it stays one document
    when it is edited; a line or row without an id has none.

    Args:
        path: A file or folder. What does not exist becomes a `Failure` too.
        kind: One of `READERS`, whatever the files' names say.

    Raises:
        InputError: `kind` is unknown.
    """
    _check_kind(kind)
    return _read_any(Path(path), kind)


def read_stdin(
    stream: BinaryIO | None = None, *, kind: str = "txt"
) -> Iterator[Document | Failure]:
    """Documents of standard input, or of any binary stream; their source is "stdin".

    Raises:
        InputError: `kind` is not one of `READERS`.
    """
    _check_kind(kind)
    return _read_stream(stream or sys.stdin.buffer, Origin(name="stdin"), READERS[kind])


def _check_kind(kind: str | None) -> None:
    if kind is not None and kind not in READERS:
        raise InputError(f"Expected a kind of file out of {', '.join(READERS)}, got {kind!r}.")


def _read_any(path: Path, kind: str | None) -> Iterator[Document | Failure]:
    if not os.path.isdir(path):  # Path.is_dir raises where access is denied
        yield from _read_file(path, kind)
        return
    found = False
    for file in list_files(path):
        found = True
        if isinstance(file, Failure):
            yield file
        else:
            yield from _read_file(file, kind)
    if not found:
        yield _failure(path, "Expected a folder with files to read, got one without any.")


def list_files(folder: Path) -> Iterator[Path | Failure]:
    """The files of a folder that `read_path` reads, in its order; folders that can't be listed."""
    try:
        entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        yield _failure(folder, f"Expected a folder that can be read, got: {error.strerror}.")
        return
    for entry in entries:
        if not os.path.isdir(entry):
            yield entry
        elif not entry.is_symlink():
            yield from list_files(entry)


def count_documents(paths: Iterable[str], kind: str | None = None) -> int | None:
    """About how many documents paths hold, without reading them as such; None with "-".

    A file of lines or rows counts as many as it has lines, every other file as one.
    """
    total = 0
    for path in paths:
        if path == "-":
            return None
        for file in list_files(Path(path)) if os.path.isdir(path) else [Path(path)]:
            total += 1 if isinstance(file, Failure) else _count(file, kind)
    return total


def _count(file: Path, kind: str | None) -> int:
    name = kind or file.suffix.removeprefix(".").lower()
    try:
        if name not in MANY or not stat.S_ISREG(file.stat().st_mode):
            return 1
        with file.open("rb") as stream:
            lines = sum(block.count(b"\n") for block in iter(lambda: stream.read(1 << 20), b""))
    except OSError:  # reading it will say so
        return 1
    return max(1, lines - (name in ("csv", "tsv")))


def _read_file(path: Path, kind: str | None) -> Iterator[Document | Failure]:
    extension = path.suffix.removeprefix(".").lower()
    reader = READERS[kind or (extension if extension in READERS else "txt")]
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # reading a pipe or device might never end
            yield _failure(path, "Expected a regular file, got a pipe, socket or device.")
            return
        changed = datetime.fromtimestamp(status.st_mtime, UTC).date()
        origin = Origin(
            name=_printable(path),
            title=_printable(Path(path.stem)),
            date=changed.isoformat() if changed <= datetime.now(UTC).date() else None,
            id=file_id(path),
        )
        with path.open("rb") as stream:
            yield from _read_stream(stream, origin, reader)
    except FileNotFoundError:
        yield _failure(path, "Expected a file or folder, got nothing at this path.")
    except OSError as error:
        yield _failure(path, f"Expected a file that can be read, got: {error.strerror}.")


def _read_stream(stream: BinaryIO, origin: Origin, reader: Reader) -> Iterator[Document | Failure]:
    try:
        yield from reader(stream, origin)
    except DocumentError as error:
        yield Failure(document=origin.name, reason=str(error))


def _failure(path: Path, reason: str) -> Failure:
    return Failure(document=_printable(path), reason=reason)


def file_id(path: Path) -> str | None:
    """The id of the one document in a file; None where its path is not Unicode."""
    absolute = os.path.abspath(path)
    try:
        absolute.encode()
    except UnicodeEncodeError:
        return None
    return absolute


def _printable(path: Path) -> str:
    """The path as text; bytes of a file name that are not UTF-8 become replacement signs."""
    return os.fsencode(path).decode("utf-8", "replace")
