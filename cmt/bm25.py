"""BM25 over texts (bm25s, English stop words): the index of lexical matching and of retrieval.

Shape legend: Q questions, N texts.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np


def spare_the_device() -> None:
    """Before bm25s is imported: it imports JAX where there is one, which takes most of a GPU."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")


class Texts:
    """BM25 over texts that stay as they are."""

    def __init__(self, library: Any, texts: Sequence[str]) -> None:
        """Index them.

        Args:
            library: The module bm25s, optional: its absence is told by who needs it.
            texts: Any number of them, even none.
        """
        self._library = library
        self._size = len(texts)
        words = self._tokenized(texts)
        self._index = library.BM25() if any(words.ids) else None  # none has a word
        if self._index is not None:
            self._index.index(words, show_progress=False)

    def scores(self, questions: Sequence[str]) -> np.ndarray:
        """Scores of every question with every text, (Q, N) float32, at least 0."""
        scores = np.zeros((len(questions), self._size), np.float32)
        if self._index is None:
            return scores
        asked = self._tokenized(questions, return_ids=False)
        for row, words in zip(scores, asked, strict=True):
            if words:
                row[:] = self._index.get_scores(words)
        return scores

    def best(self, questions: Sequence[str], k: int) -> list[tuple[int, ...]]:
        """For each question the places of the `k` best texts, of fewer all, best first."""
        k = min(k, self._size)
        if self._index is None:
            return [tuple(range(k))] * len(questions)  # all score 0
        found, _ = self._index.retrieve(
            self._tokenized(questions), k=k, show_progress=False, backend_selection="numpy"
        )
        return [tuple(int(number) for number in row) for row in found]

    def stored_bytes(self) -> int:
        """Bytes of the sparse score matrix; the vocabulary's strings are not counted."""
        if self._index is None:
            return 0
        parts = self._index.scores.values()
        return sum(int(part.nbytes) for part in parts if isinstance(part, np.ndarray))

    def _tokenized(self, texts: Sequence[str], **options: bool) -> Any:
        return self._library.tokenize(list(texts), stopwords="en", show_progress=False, **options)
