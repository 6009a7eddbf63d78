"""A folder followed: files that come are learned, edited ones replaced, deleted ones forgotten.

The bank is all the state there is: a watch that was interrupted begins with every file, and what
is known already costs only its reading. A document belongs to a file by its source, the file's
full path; lines and rows that name a source of their own are learned but never forgotten here.

What can't be read may be readable later without a new time stamp, after an I/O error, say: a file
that failed is tried again in the next round, then after two more, four more and so on.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cmt.bank.tensor_bytes import text_hash
from cmt.errors import BankError, FingerprintMismatchError, InputError
from cmt.learning import AddOptions
from cmt.memory import Memory
from cmt.readers import list_files, read_path
from cmt.readers.files import MANY
from cmt.records import DEFAULT_NAMESPACE, Document, Failure

LONGEST_WAIT = 512  # rounds until a file that failed is tried again
_UNSETTLED = 2.0  # seconds; a file changed so lately may change again within its time stamp

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """What one look at the folder changed; ids are the bank's."""

    added: tuple[str, ...]
    updated: tuple[str, ...]
    forgotten: tuple[str, ...]
    failed: tuple[Failure, ...]

    def __bool__(self) -> bool:
        return bool(self.added or self.updated or self.forgotten or self.failed)


@dataclass(frozen=True, slots=True)
class _Failed:
    """A file that couldn't be read in full: the round to try it again in, and how many that is."""

    due: int
    wait: int


class Watch:
    """Keeps a memory up to date with a folder, a round at a time."""

    def __init__(
        self,
        memory: Memory,
        folder: str | os.PathLike[str],
        *,
        forget: bool = True,
        **options: Any,
    ) -> None:
        """Begin; nothing is read before the first round.

        Args:
            memory: What learns.
            folder: Hidden files in it are passed over, links to folders not followed.
            forget: False keeps what was learned from files that are gone.
            options: `AddOptions` for every document.

        Raises:
            InputError: There is no such folder.
        """
        self.folder = Path(os.path.abspath(folder))
        if not self.folder.is_dir():
            raise InputError(f"expected a folder to watch, got none at {self.folder}")
        self._memory = memory
        self._forget = forget
        self._options: AddOptions = options  # type: ignore[assignment]
        self._namespace = options.get("namespace", DEFAULT_NAMESPACE)
        self._seen: dict[str, tuple[int, int] | None] = {}
        self._failed: dict[str, _Failed] = {}
        self._rounds = 0

    def round(self) -> Round:
        """Look once; what it reports is on disk.

        Raises:
            BankError: As `Memory.add`; the next round takes the same files up again.
        """
        files, unlisted = self._files()
        changed = [
            file
            for file, stamp in files.items()
            if stamp is None or self._seen.get(file) != stamp or self._is_due(file)
        ]
        hashes: dict[str, set[str]] = {}
        ids: dict[str, set[str]] = {}
        broken: set[str] = set()
        report = self._memory.add(self._documents(changed, hashes, ids, broken), **self._options)
        stale = self._stale(files, unlisted, hashes, ids, broken)
        for document_id in stale:
            self._memory.bank.delete(document_id, namespace=self._namespace)
        if stale:
            self._memory.bank.wipe_log()
        added = (*report.added, *self._learn_again(files, stale))
        self._note_failed(files, changed, broken)
        self._seen = dict(files)
        self._rounds += 1
        return Round(
            added=added,
            updated=report.updated,
            forgotten=tuple(stale),
            failed=(*unlisted, *report.failed),
        )

    def _is_due(self, file: str) -> bool:
        """Whether a file that failed is to be tried again in this round."""
        return file in self._failed and self._failed[file].due <= self._rounds

    def _note_failed(
        self, files: dict[str, tuple[int, int] | None], tried: Sequence[str], broken: set[str]
    ) -> None:
        """Forget failures of files that are gone or were read; those that failed wait longer."""
        for file in (self._failed.keys() - files.keys()) | (set(tried) - broken):
            self._failed.pop(file, None)
        for file in broken:
            wait = 1
            if file in self._failed and self._seen.get(file) == files[file]:
                wait = min(2 * self._failed[file].wait, LONGEST_WAIT)
            self._failed[file] = _Failed(self._rounds + wait, wait)

    def _learn_again(
        self, files: dict[str, tuple[int, int] | None], stale: Sequence[str]
    ) -> tuple[str, ...]:
        """What was forgotten with one file and stands in another too, as a line without id does.

        The bank holds such a text once, as the file's that brought it first.
        """
        if not stale:
            return ()
        many = [file for file in files if Path(file).suffix.removeprefix(".").lower() in MANY]
        records = self._documents(many, {}, {}, set())
        lines = (one for one in records if isinstance(one, Document) and one.id is None)
        return self._memory.add(lines, **self._options).added

    def _files(self) -> tuple[dict[str, tuple[int, int] | None], list[Failure]]:
        """The files and their time stamps and sizes, None where unsettled; what can't be listed."""
        files: dict[str, tuple[int, int] | None] = {}
        unlisted = []
        for file in list_files(self.folder):
            if isinstance(file, Failure):
                unlisted.append(file)
                continue
            try:
                status = file.stat()
            except OSError:  # gone since, or a link to nothing
                continue
            settled = time.time() - status.st_mtime > _UNSETTLED
            files[str(file)] = (status.st_mtime_ns, status.st_size) if settled else None
        return files, unlisted

    def _documents(
        self,
        files: Sequence[str],
        hashes: dict[str, set[str]],
        ids: dict[str, set[str]],
        broken: set[str],
    ) -> Iterator[Document | Failure]:
        """The files' documents; notes whose they are, and files that can't be read in full."""
        for file in files:
            hashes[file], ids[file] = set(), set()
            for record in read_path(file):
                if isinstance(record, Failure):
                    broken.add(file)
                else:
                    hashes[file].add(text_hash(record.text))
                    ids[file] |= {record.id} if record.id is not None else set()
                yield record

    def _stale(
        self,
        files: dict[str, tuple[int, int] | None],
        unlisted: Sequence[Failure],
        hashes: dict[str, set[str]],
        ids: dict[str, set[str]],
        broken: set[str],
    ) -> list[str]:
        """Documents whose file is gone, or whose line is gone from its file."""
        if not self._forget or not self.folder.is_dir():
            return []
        stale = []
        prefix = f"{self.folder}{os.sep}"
        for document_id, source, content in self._memory.bank.by_source(
            prefix, namespace=self._namespace
        ):
            if source in hashes:
                gone = source not in broken and not (
                    document_id in ids[source] or content in hashes[source]
                )
            else:
                gone = source not in files and not any(
                    source.startswith(f"{failure.document}{os.sep}") for failure in unlisted
                )
            if gone:
                stale.append(document_id)
        return stale


def follow(
    watch: Watch, *, seconds: float, on_round: Callable[[Round], object], rounds: int | None = None
) -> None:
    """Rounds so many seconds apart, for ever or a number of times.

    A folder that is missing for a while, a disk taken out, say, is waited for: nothing is
    forgotten because of it. So is a bank that can't be written for a while, locked or out of
    space; what a round didn't do the next one does.

    Raises:
        FingerprintMismatchError: The bank was given another compressor's memories meanwhile.
        BankError: The bank couldn't be written in the last of a number of rounds.
    """
    done = 0
    while rounds is None or done < rounds:
        if done > 0:
            time.sleep(seconds)
        done += 1
        if not watch.folder.is_dir():
            _logger.warning("the folder %s is not there: nothing is changed", watch.folder)
            continue
        try:
            on_round(watch.round())
        except FingerprintMismatchError:
            raise
        except BankError as error:
            if done == rounds:
                raise
            _logger.warning("the next round tries again: %s", error)
