"""A lexical partner of self-matching: BM25 over the texts that memories were made from.

Self-matching compares what a question and a document are about; a rare name that both hold is one
of many things in their vectors. BM25 (bm25.py) counts just such words. As a named setting, off by
default, w · BM25 is added to the matching logit of a question's shortlist. Not part of the method:
what is measured of matching elsewhere is measured without it.

Shape legend: Q questions, N texts.
"""

from __future__ import annotations

import importlib
import logging
import threading
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from cmt.bank import Bank, MemorySource
from cmt.bm25 import Texts, spare_the_device
from cmt.errors import CorruptRecordError, InputError, UnknownIdError, how_to_install

PATIENCE = 0.3
"""Seconds that a question waits for a new index."""
_TEXTS_AT_ONCE = 8192

_logger = logging.getLogger(__name__)


def library() -> Any:
    """The module bm25s.

    Raises:
        InputError: It isn't installed.
    """
    spare_the_device()
    try:
        return importlib.import_module("bm25s")
    except ImportError as error:
        raise InputError(
            f"expected bm25s for a lexical weight, found none: {how_to_install('train')}"
        ) from error


def checked_weight(lexical: float) -> float:
    """The weight of BM25 beside the logit of matching.

    Raises:
        InputError: It is below 0 or not finite.
    """
    if not 0 <= lexical < float("inf"):
        raise InputError(f"expected lexical of at least 0, got {lexical}")
    return lexical


class _Made(NamedTuple):
    """An index with each memory's row in it, and the seconds that making it took."""

    texts: Texts | None
    rows: dict[int, int]
    seconds: float


class LexicalIndex:
    """BM25 over the texts of a bank's memories, following the bank as it changes.

    The index is made anew when memories came or went, in a thread of its own where there is one
    before: a question waits for it as long as `PATIENCE`, then asks the one before, in which new
    memories score 0. Threads may share one.
    """

    def __init__(self, bank: Bank) -> None:
        """Of this bank; bm25s must be installed, else `InputError`."""
        self._library = library()
        self._bank = bank
        self._lock = threading.Lock()  # of cursor and texts: one renewal at a time
        self._cursor = 0
        self._texts: dict[int, str] = {}
        self._stale = False  # texts came or went that the index doesn't know of yet
        self._made = _Made(None, {}, 0.0)

    def scores(
        self, questions: Sequence[str], memory_ids: Sequence[Sequence[int]]
    ) -> list[list[float]]:
        """BM25 of each question with the memories named for it; 0 for one that is gone."""
        if self._made.texts is None or self._made.seconds <= PATIENCE / 2:
            made = self._renewed()
        else:
            if not self._lock.locked():
                thread = threading.Thread(target=self._renew, name="lexical index", daemon=True)
                thread.start()
                thread.join(PATIENCE)
            made = self._made
        assert made.texts is not None
        scores_QN = made.texts.scores(questions)
        return [
            [float(own_N[made.rows[i]]) if i in made.rows else 0.0 for i in ids]
            for own_N, ids in zip(scores_QN, memory_ids, strict=True)
        ]

    def _renewed(self) -> _Made:
        """The index of what the bank holds."""
        with self._lock:
            began = time.perf_counter()
            self._refresh()
            if self._stale or self._made.texts is None:
                texts = Texts(self._library, list(self._texts.values()))
                rows = {memory_id: row for row, memory_id in enumerate(self._texts)}
                self._made = _Made(texts, rows, time.perf_counter() - began)
                self._stale = False
            return self._made

    def _renew(self) -> None:
        """The same in a thread, where nobody waits for what goes wrong."""
        try:
            self._renewed()
        except Exception as error:
            _logger.warning("the index of BM25 was not made anew: %s", error)

    def _refresh(self) -> None:
        """Take over what changed in the bank."""
        complete = False
        while not complete:
            changes = self._bank.key_changes(self._cursor, limit=_TEXTS_AT_ONCE)
            for memory_id in changes.removed_ids:
                self._stale |= self._texts.pop(memory_id, None) is not None
            for source in self._sources(list(changes.added_ids)):
                self._texts[source.memory_id] = source.excerpt
                self._stale = True
            self._cursor, complete = changes.cursor, changes.complete

    def _sources(self, memory_ids: list[int]) -> list[MemorySource]:
        """Where memories came from, without those that are gone or damaged."""
        try:
            return self._bank.sources(memory_ids) if memory_ids else []
        except (UnknownIdError, CorruptRecordError) as error:
            if len(memory_ids) > 1:
                halves = memory_ids[::2], memory_ids[1::2]
                return [source for half in halves for source in self._sources(half)]
            _logger.warning("memory %d has no text for BM25: %s", memory_ids[0], error)
            return []
