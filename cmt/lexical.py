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
from collections.abc import Sequence
from typing import Any

from cmt.bank import Bank, MemorySource
from cmt.bm25 import Texts, spare_the_device
from cmt.errors import CorruptRecordError, InputError, UnknownIdError, how_to_install

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


class LexicalIndex:
    """BM25 over the texts of a bank's memories, following the bank as it changes.

    The index is made anew when memories came or went. Threads may share one.
    """

    def __init__(self, bank: Bank) -> None:
        """Of this bank; bm25s must be installed, else `InputError`."""
        self._library = library()
        self._bank = bank
        self._lock = threading.Lock()
        self._cursor = 0
        self._texts: dict[int, str] = {}
        self._index: Texts | None = None
        self._rows: dict[int, int] = {}

    def scores(
        self, questions: Sequence[str], memory_ids: Sequence[Sequence[int]]
    ) -> list[list[float]]:
        """BM25 of each question with the memories named for it; 0 for one that is gone."""
        with self._lock:
            if self._refresh() or self._index is None:
                self._index = Texts(self._library, list(self._texts.values()))
                self._rows = {memory_id: row for row, memory_id in enumerate(self._texts)}
            index, rows = self._index, self._rows
        scores_QN = index.scores(questions)
        return [
            [float(own_N[rows[i]]) if i in rows else 0.0 for i in ids]
            for own_N, ids in zip(scores_QN, memory_ids, strict=True)
        ]

    def _refresh(self) -> bool:
        """Take over what changed in the bank; whether anything did."""
        changed, complete = False, False
        while not complete:
            changes = self._bank.key_changes(self._cursor, limit=_TEXTS_AT_ONCE)
            for memory_id in changes.removed_ids:
                changed |= self._texts.pop(memory_id, None) is not None
            for source in self._sources(list(changes.added_ids)):
                self._texts[source.memory_id] = source.excerpt
                changed = True
            self._cursor, complete = changes.cursor, changes.complete
        return changed

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
