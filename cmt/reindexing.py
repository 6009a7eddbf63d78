"""A new compressor for a bank: every text compressed anew while old answers are served.

The new memories gather in a file beside the bank, `NAME.reindex`, which survives an interruption:
the next run goes on where it stopped. Documents that come, change or go meanwhile are caught up
with. At the end one transaction takes the new memories over and the new weights' fingerprint: a
reader sees the old bank until then and the new one after, never anything between. Whoever has the
bank open with the old compressor is told to open it again.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from itertools import islice

from cmt.bank import Bank
from cmt.bank.staging import Staging, staging_path
from cmt.compressor import Compressor
from cmt.encoding import encode_documents
from cmt.errors import InputError
from cmt.learning import MOST_DOCUMENTS, as_encoded, split_for
from cmt.opening import fingerprint
from cmt.records import StoredDocument
from cmt.splitting import Piece

BATCH_TOKENS = 4096

Progress = Callable[[int, int], object]
_Window = list[tuple[int, StoredDocument, list[Piece]]]


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
) -> Iterator[tuple[int, _Window]]:
    """Versions whose pieces fill a batch, and how many numbers are done with them."""
    more = compressor.config.memory_tokens + 1
    window: _Window = []
    tokens = 0
    for done, number in enumerate(numbers):
        document = bank.version(number)
        if document is None:  # forgotten meanwhile
            continue
        pieces = split_for(compressor, document.text)
        size = sum(len(piece.token_ids) + more for piece in pieces)
        if window and (tokens + size > batch_tokens or len(window) == MOST_DOCUMENTS):
            yield done, window
            window, tokens = [], 0
        window.append((number, document, pieces))
        tokens += size
    if window:
        yield len(numbers), window


def _stage(staging: Staging, compressor: Compressor, window: _Window, batch_tokens: int) -> None:
    pieces = [piece for _, _, own in window for piece in own]
    passes = encode_documents(compressor, [piece.token_ids for piece in pieces], batch_tokens)
    encoded = as_encoded(passes, pieces)
    staging.put(
        [(number, document, list(islice(encoded, len(own)))) for number, document, own in window]
    )
