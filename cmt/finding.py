"""Self-matching: from a question's tokens to the memories that are read for it.

The question's key Θ(q) finds candidates among the bank's keys, of what is selected; these are
re-ranked by how likely the frozen model finds the question after each; the best are kept.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence

import torch

from cmt import freshness
from cmt.answering import Found, best, candidates
from cmt.bank import Bank
from cmt.compressor import Compressor
from cmt.encoding import encode_questions
from cmt.errors import BankError, CorruptRecordError, InputError, UnknownIdError
from cmt.matching import Hit, KeyIndex
from cmt.reranking import question_log_likelihoods
from cmt.selection import Selection

_ATTEMPTS = 8  # searches, while documents found are being deleted

_logger = logging.getLogger(__name__)


class Finder:
    """Finds memories for questions; threads may share one, and take turns at the model."""

    def __init__(
        self, bank: Bank, compressor: Compressor, start: int, model: threading.Lock
    ) -> None:
        """Put the parts together; `start` is the position of a question's first token."""
        self._bank = bank
        self._compressor = compressor
        self._start = start
        self._model = model
        self._index = KeyIndex(bank)

    def find(
        self,
        questions: Sequence[Sequence[int]],
        top_k: int,
        rerank: int,
        selection: Selection,
        *,
        with_tensors: bool = True,
        prefer_later: bool = True,
    ) -> list[Found]:
        """The memories to be read for each question, best first; none where none is selected.

        With `prefer_later`, a candidate gives way to a later one on its subject (freshness.py).

        Raises:
            EmptyBankError: The bank holds no memory.
            InputError: top_k < 1.
        """
        if top_k < 1:
            raise InputError(f"expected top_k >= 1, got {top_k}")
        again = rerank > top_k
        with self._model:
            keys_QC = encode_questions(self._compressor, questions)
        most = max(top_k, rerank)
        hits, found = self._candidates(keys_QC, most, selection, with_tensors or again)
        scale = self._compressor.scale().item()
        likelihoods: Sequence[torch.Tensor | None] = [None] * len(found)
        if again and any(own.matches for own in found):
            likelihoods = list(self._likelihoods(questions, found))
        return [
            best(own, top_k, scale, likelihoods_C, self._later(own_hits) if prefer_later else None)
            for own, own_hits, likelihoods_C in zip(found, hits, likelihoods, strict=True)
        ]

    def _later(
        self, hits: Sequence[Hit]
    ) -> Callable[[Sequence[float]], tuple[list[int], dict[int, int]]]:
        """`prefer_later` for these candidates, their logits still to come."""
        alike_CC = self._index.alike([hit.memory_id for hit in hits])
        starts = [hit.starts for hit in hits]
        return lambda logits: freshness.prefer_later(logits, starts, alike_CC)

    def _candidates(
        self, keys_QC: torch.Tensor, how_many: int, selection: Selection, with_tensors: bool
    ) -> tuple[list[list[Hit]], list[Found]]:
        attempts = 0
        while attempts < _ATTEMPTS:
            hits = self._index.search(keys_QC, how_many, selection)
            ids = [hit.memory_id for own in hits for hit in own]
            try:
                sources = iter(self._bank.sources(ids))
                stored = iter(self._bank.memories(ids) if with_tensors else [])
            except UnknownIdError:  # deleted since the search
                attempts += 1
                continue
            except CorruptRecordError as error:  # the others still serve
                if error.memory_id is None:
                    raise
                _logger.warning("memory %d is left out of matching: %s", error.memory_id, error)
                self._index.leave_out(error.memory_id)
                continue
            return hits, [candidates(own, sources, stored) for own in hits]
        raise BankError(
            f"expected to read the memories found in {self._bank.path}, but they were deleted "
            f"meanwhile, {_ATTEMPTS} times in a row: ask again"
        )

    def _likelihoods(
        self, questions: Sequence[Sequence[int]], found: Sequence[Found]
    ) -> torch.Tensor:
        """Re-rank: log P(q | Mⁱ) by the frozen model, (questions, candidates)."""
        memories = torch.stack([memory for own in found for memory in own.memories])
        places = torch.arange(len(memories)).view(len(questions), -1)
        with self._model:
            return question_log_likelihoods(
                self._compressor.base,
                questions,
                memories,
                places,
                self._start,
                bfloat16_products=self._compressor.bfloat16_products,
            )
