"""Self-matching: from a question's tokens to the memories that are read for it.

The question's key Θ(q) finds a shortlist among the bank's keys, of what is selected; late
interaction compares it token by token; the best of it are re-ranked by how likely the frozen
model finds the question after each; the best of these are kept.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from cmt import freshness
from cmt.answering import Found, best, candidates
from cmt.bank import Bank
from cmt.compressor import Compressor
from cmt.encoding import EncodedQuestions, encode_questions
from cmt.errors import BankError, CorruptRecordError, InputError, UnknownIdError
from cmt.late_interaction import SHORTLIST, shortlist_scores, stacked
from cmt.matching import Hit, KeyIndex
from cmt.reranking import question_log_likelihoods
from cmt.selection import Selection
from cmt.tensors import move

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
        temperature: float = 1.0,
    ) -> list[Found]:
        """The memories to be read for each question, best first; none where none is selected.

        With `prefer_later`, a candidate gives way to a later one on its subject (freshness.py).
        `temperature` is of their weights (aggregating.py).

        Raises:
            EmptyBankError: The bank holds no memory.
            InputError: top_k < 1.
        """
        if top_k < 1:
            raise InputError(f"expected top_k >= 1, got {top_k}")
        again = rerank > top_k
        with self._model:
            encoded = encode_questions(self._compressor, questions)
        most = max(top_k, rerank)
        hits, found = self._candidates(encoded, most, selection, with_tensors or again)
        scale = self._compressor.scale().item()
        likelihoods: Sequence[torch.Tensor | None] = [None] * len(found)
        if again and any(own.matches for own in found):
            likelihoods = list(self._likelihoods(questions, found))
        return [
            best(
                own,
                top_k,
                scale,
                likelihoods_C,
                self._later(own_hits) if prefer_later else None,
                temperature,
            )
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
        self, questions: EncodedQuestions, how_many: int, selection: Selection, with_tensors: bool
    ) -> tuple[list[list[Hit]], list[Found]]:
        late = questions.vectors is not None
        depth = max(how_many, SHORTLIST) if late else how_many
        attempts = 0
        while attempts < _ATTEMPTS:
            hits = self._index.search(questions.keys_QC, depth, selection)
            try:
                if late:
                    hits = self._compared(questions, hits, how_many)
                ids = list(_unique(hits))
                sources = dict(zip(ids, self._bank.sources(ids), strict=True))
                read = self._bank.memories(ids) if with_tensors else []
            except UnknownIdError:  # deleted since the search
                attempts += 1
                continue
            except CorruptRecordError as error:  # the others still serve
                if error.memory_id is None:
                    raise
                _logger.warning("memory %d is left out of matching: %s", error.memory_id, error)
                self._index.leave_out(error.memory_id)
                continue
            stored = {memory.memory_id: memory for memory in read}
            return hits, [candidates(own, sources, stored) for own in hits]
        raise BankError(
            f"expected to read the memories found in {self._bank.path}, but they were deleted "
            f"meanwhile, {_ATTEMPTS} times in a row: ask again"
        )

    def _compared(
        self, questions: EncodedQuestions, hits: Sequence[Sequence[Hit]], how_many: int
    ) -> list[list[Hit]]:
        """Late interaction: each question's best of its shortlist, best first."""
        assert questions.vectors is not None
        ids = _unique(hits)
        if not ids:
            return [[] for _ in hits]
        # As many hits for each question: all were searched for among the same memories.
        chosen_QC = torch.tensor([[ids[hit.memory_id] for hit in own] for own in hits])
        vectors_DKV = stacked(self._bank.vectors(list(ids)))
        vectors_DKV, chosen_QC = move((vectors_DKV, chosen_QC), questions.keys_QC.device)
        late_QC = shortlist_scores(questions.vectors, vectors_DKV.float(), chosen_QC).tolist()
        scale = self._compressor.scale().item()
        best_hits: list[list[Hit]] = []
        for own, late_C in zip(hits, late_QC, strict=True):
            logits = [scale * hit.score + late for hit, late in zip(own, late_C, strict=True)]
            order = sorted(range(len(own)), key=logits.__getitem__, reverse=True)  # stable
            best_hits.append([replace(own[i], late=late_C[i]) for i in order[:how_many]])
        return best_hits

    def _likelihoods(
        self, questions: Sequence[Sequence[int]], found: Sequence[Found]
    ) -> torch.Tensor:
        """Re-rank: log P(q | Mⁱ) by the frozen model, (questions, candidates), on the CPU."""
        memories = {
            match.memory_id: memory
            for own in found
            for match, memory in zip(own.matches, own.memories, strict=True)
        }
        places = {memory_id: place for place, memory_id in enumerate(memories)}
        candidates_BC = torch.tensor(
            [[places[match.memory_id] for match in own.matches] for own in found]
        )
        with self._model:
            return question_log_likelihoods(
                self._compressor.base,
                questions,
                list(memories.values()),
                candidates_BC,
                self._start,
                bfloat16_products=self._compressor.bfloat16_products,
            ).cpu()


def _unique(hits: Sequence[Sequence[Hit]]) -> dict[int, int]:
    """Ids of the memories found, each once, and their places in that order."""
    ids = dict.fromkeys(hit.memory_id for own in hits for hit in own)
    return {memory_id: place for place, memory_id in enumerate(ids)}
