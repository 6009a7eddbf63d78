"""A new compressor for a bank: every text compressed anew while old answers are served.

The new memories gather in a file beside the bank, `NAME.reindex`, which survives an interruption:
the next run goes on where it stopped. Documents that come, change or go meanwhile are caught up
with. At the end one transaction takes the new memories over and the new weights' fingerprint: a
reader sees the old bank until then and the new one after, never anything between. Whoever has the
bank open with the old compressor is told to open it again. Memories keep their number of tokens K
where the new compressor is trained for it; the others get its largest.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass

from cmt.bank import Bank
from cmt.bank.staging import Staging, staging_path
from cmt.compressor import Compressor
from cmt.encoding import encode_documents
from cmt.errors import InputError
from cmt.learning import MOST_DOCUMENTS, as_encoded, shared_out, split_for
from cmt.opening import fingerprint
from cmt.records import StoredDocument
from cmt.splitting import Piece

BATCH_TOKENS = 4096

Progress = Callable[[int, int], object]


@dataclass(frozen=True, slots=True)
class _Task:
    """A version to be compressed anew, and into how many memory tokens."""

    number: int
    document: StoredDocument
    pieces: list[Piece]
    memory_tokens: int


def reindex(
    path: str | os.PathLike[str],
    compressor: Compressor,
    *,
    batch_tokens: int = BATCH_TOKENS,
    on_progress: Progress = lambda done, total: None,
) -> int:
    """Replace every memory of a bank by the compressor's; gives the number of versions compressed.

    Args:
        path: The bank.
        compressor: The new one, over the base model that will answer.
        batch_tokens: Most tokens compressed in one pass, a longer piece aside.
        on_progress: Told after each batch how many versions are compressed, of how many missing
            when this pass over the bank began.

    Raises:
        InputError: The bank's memories are the compressor's already, or batch_tokens < 1.
        FingerprintMismatchError: An interrupted run had begun with another compressor.
        CorruptRecordError: A text is damaged: forget it, then go on.
        BankError: The bank, or the file beside it, can't be read or written.
    """
    if batch_tokens < 1:
        raise InputError(f"expected batch_tokens of at least 1, got {batch_tokens}")
    new = fingerprint(compressor)
    compressed = 0
    with Bank.open(path, None) as bank:
        taken = bank.fingerprint == new  # by a run that was interrupted before it cleared up
        if taken and not staging_path(bank).exists():
            raise InputError(f"expected a new compressor for {path}, got its own: {new}")
        with closing(Staging(bank, new)) as staging:
            while not taken:
                missing = staging.missing()
                for done, window in _windows(bank, compressor, missing, batch_tokens):
                    _stage(staging, compressor, window, batch_tokens)
                    compressed += len(window)
                    on_progress(done, len(missing))
                taken = staging.take_over()
        staging.remove()
        bank.wipe_log()
    return compressed


def _windows(
    bank: Bank, compressor: Compressor, numbers: Sequence[int], batch_tokens: int
) -> Iterator[tuple[int, list[_Task]]]:
    """Versions whose pieces fill a batch, and how many numbers are done with them."""
    config = compressor.config
    window: list[_Task] = []
    tokens = 0
    for done, number in enumerate(numbers):
        document = bank.version(number)
        if document is None:  # forgotten meanwhile
            continue
        pieces = split_for(compressor, document.text)
        old = bank.memory_tokens(number)
        K = old if old in config.sizes else config.memory_tokens
        size = sum(len(piece.token_ids) + K + 1 for piece in pieces)
        if window and (tokens + size > batch_tokens or len(window) == MOST_DOCUMENTS):
            yield done, window
            window, tokens = [], 0
        window.append(_Task(number, document, pieces, K))
        tokens += size
    if window:
        yield len(numbers), window


def _stage(
    staging: Staging, compressor: Compressor, window: list[_Task], batch_tokens: int
) -> None:
    """Compress and stage a window, sizes apart."""
    for K in sorted({task.memory_tokens for task in window}):
        tasks = [task for task in window if task.memory_tokens == K]
        pieces = [piece for task in tasks for piece in task.pieces]
        tokens = [piece.token_ids for piece in pieces]
        encoded = as_encoded(encode_documents(compressor, tokens, batch_tokens, K), pieces)
        shares = shared_out(encoded, [len(task.pieces) for task in tasks])
        staging.put(
            [(task.number, task.document, own) for task, own in zip(tasks, shares, strict=True)]
        )
