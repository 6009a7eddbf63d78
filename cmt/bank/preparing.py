"""Documents made ready to be stored; the memories of a long one wait in a file, not in memory.

Nothing of a document is in the bank before all of it is, and no transaction waits for the
compressor, as it would lock out other writers. So where pieces come pass by pass they become bytes
at once, and from `IN_MEMORY` on these are in a file beside the bank. It has no name: whatever ends
the process, kill -9 too, leaves nothing of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from tempfile import SpooledTemporaryFile

from cmt.bank.entries import DocumentEntry, MemoryEntries, MemoryEntry, document_entry
from cmt.bank.tensor_bytes import Tier
from cmt.errors import BankError
from cmt.records import Document, EncodedPiece

IN_MEMORY = 64 << 20  # bytes


@contextmanager
def prepared(
    entries: Iterable[tuple[Document, Iterable[EncodedPiece]]],
    tier: Tier,
    folder: Path,
) -> Iterator[list[DocumentEntry]]:
    """Documents with their pieces as a bank writes them, for as long as the block runs.

    Args:
        entries: A sequence of pieces stays in memory; from any other iterable they are drawn one
            at a time, and their bytes wait in a file.
        tier: How memories are stored.
        folder: Where the file is, the bank's.

    Raises:
        InputError: As `document_entry`.
        BankError: The file can't be written or read.
    """
    file = SpooledTemporaryFile(max_size=IN_MEMORY, dir=str(folder))

    def in_file(memories: Iterable[MemoryEntry]) -> MemoryEntries:
        return _InFile(file, folder, memories)

    try:
        yield [
            document_entry(
                document,
                pieces,
                tier,
                keep=tuple if isinstance(pieces, Sequence) else in_file,
            )
            for document, pieces in entries
        ]
    finally:
        with suppress(OSError):  # on a full disk, as what was refused before is tried again
            file.close()


class _InFile:
    """Memories whose bytes are in a file, and are read back one memory at a time."""

    def __init__(
        self, file: SpooledTemporaryFile[bytes], folder: Path, memories: Iterable[MemoryEntry]
    ) -> None:
        self._file = file
        self._folder = folder
        self._begin = file.tell()  # the one before ends here
        self._lengths: list[tuple[int, int, int | None]] = []
        self._rest: list[MemoryEntry] = []
        for memory in memories:
            key, data, vectors = memory.key, memory.data, memory.vectors
            with self._explained():
                file.write(key)
                file.write(data)
                file.write(vectors or b"")
            self._lengths.append((len(key), len(data), None if vectors is None else len(vectors)))
            self._rest.append(replace(memory, key=b"", data=b"", vectors=None))

    def __len__(self) -> int:
        return len(self._rest)

    def __iter__(self) -> Iterator[MemoryEntry]:
        place = self._begin
        for (key_bytes, data_bytes, vector_bytes), memory in zip(
            self._lengths, self._rest, strict=True
        ):
            with self._explained():
                self._file.seek(place)
                key, data = self._file.read(key_bytes), self._file.read(data_bytes)
                vectors = None if vector_bytes is None else self._file.read(vector_bytes)
                place = self._file.tell()
            yield replace(memory, key=key, data=data, vectors=vectors)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise BankError(
                f"expected room in {self._folder} for the memories of a long document until they "
                f"are stored, got: {error}; nothing of this change was written"
            ) from error
