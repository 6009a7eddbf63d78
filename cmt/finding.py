"""Self-matching: from a question's tokens to the memories that are read for it.

The question's key Θ(q) finds a shortlist among the bank's keys, of what is selected; late
interaction compares it token by token; the best of it are re-ranked by how likely the frozen
model finds the question after each; the best of these are kept.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from cmt import freshness
from cmt.answering import Found, best, candidates
from cmt.bank import Bank
from cmt.compressor import Compressor
from cmt.encoding import EncodedQuestions, encode_questions
from cmt.errors import BankError, CorruptRecordError, InputError, UnknownIdError
from cmt.late_interaction import SHORTLIST, shortlist_scores, stacked
from cmt.lexical import LexicalIndex, checked_weight
from cmt.matching import Hit, KeyIndex
from cmt.reranking import question_log_likelihoods, rerank_depth
from cmt.selection import Selection
from cmt.tensors import move

Scores = list[list[float]]
"""Of each question with each memory of its shortlist."""

_ATTEMPTS = 8  # searches, while documents found are being deleted

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Search:
    """How memories are found for questions.

    Attributes:
        top_k: How many are read for a question.
        rerank: How many of those found are re-ranked first, top_k at least; 0 or 1: none.
        prefer_later: A candidate gives way to a later one on its subject (freshness.py).
        temperature: Of their weights (aggregating.py).
        lexical: Weight of BM25 beside the logit of matching (lexical.py); 0: none.
    """

    top_k: int
    rerank: int
    prefer_later: bool = True
    temperature: float = 1.0
    lexical: float = 0.0

    def __post_init__(self) -> None:
        """Refuse numbers without meaning."""
        if self.top_k < 1:
            raise InputError(f"expected top_k >= 1, got {self.top_k}")
        checked_weight(self.lexical)


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
        self._lexical: LexicalIndex | None = None

    def find(
        self,
        asked: Sequence[str],
        questions: Sequence[Sequence[int]],
        search: Search,
        selection: Selection,
        *,
        with_tensors: bool = True,
    ) -> list[Found]:
        """The memories to be read for each question, best first; none where none is selected.

        Args:
            asked: The questions as text.
            questions: Their token ids.
            search: How.
            selection: Among which memories.
            with_tensors: Read the memories too, not their sources alone.

        Raises:
            EmptyBankError: The bank holds no memory.
            InputError: A lexical weight without bm25s.
        """
        top_k, depth = search.top_k, rerank_depth(search.top_k, search.rerank)
        words = asked if search.lexical else None
        if words is not None and self._lexical is None:
            self._lexical = LexicalIndex(self._bank)
        with self._model:
            encoded = encode_questions(self._compressor, questions)
        hits, found = self._candidates(
            encoded, depth or top_k, selection, with_tensors or depth > 0, words, search.lexical
        )
        scale = self._compressor.scale().item()
        likelihoods: Sequence[torch.Tensor | None] = [None] * len(found)
        if depth and any(own.matches for own in found):
            likelihoods = list(self._likelihoods(questions, found))
        return [
            best(
                own,
                top_k,
                scale,
                likelihoods_C,
                self._later(own_hits) if search.prefer_later else None,
                search.temperature,
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
        self,
        questions: EncodedQuestions,
        how_many: int,
        selection: Selection,
        with_tensors: bool,
        words: Sequence[str] | None,
        lexical: float,
    ) -> tuple[list[list[Hit]], list[Found]]:
        more = questions.vectors is not None or words is not None
        depth = max(how_many, SHORTLIST) if more else how_many
        attempts = 0
        while attempts < _ATTEMPTS:
            hits = self._index.search(questions.keys_QC, depth, selection)
            try:
                if more:
                    late, lexical_scores = self._compared(questions, hits), None
                    if words is not None:
                        lexical_scores = self._counted(words, hits, lexical)
                    hits = self._ordered(hits, late, lexical_scores, how_many)
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
            # Each goes to the model's device by itself: joined here first, they were copied twice.
            device = questions.keys_QC.device
            tensors = {memory.memory_id: memory.memory.to(device) for memory in read}
            return hits, [candidates(own, sources, tensors) for own in hits]
        raise BankError(
            f"expected to read the memories found in {self._bank.path}, but they were deleted "
            f"meanwhile, {_ATTEMPTS} times in a row: ask again"
        )

    def _compared(
        self, questions: EncodedQuestions, hits: Sequence[Sequence[Hit]]
    ) -> Scores | None:
        """Late interaction of each question with its shortlist; None where there is none."""
        ids = _unique(hits)
        if questions.vectors is None or not ids:
            return None
        # As many hits for each question: all were searched for among the same memories.
        chosen_QC = torch.tensor([[ids[hit.memory_id] for hit in own] for own in hits])
        vectors_DKV = stacked(self._bank.vectors(list(ids)))
        vectors_DKV, chosen_QC = move((vectors_DKV, chosen_QC), questions.keys_QC.device)
        scores: Scores = shortlist_scores(
            questions.vectors, vectors_DKV.float(), chosen_QC
        ).tolist()
        return scores

    def _counted(
        self, words: Sequence[str], hits: Sequence[Sequence[Hit]], weight: float
    ) -> Scores:
        """BM25 of each question with its shortlist, as it counts."""
        assert self._lexical is not None
        scores = self._lexical.scores(words, [[hit.memory_id for hit in own] for own in hits])
        return [[weight * score for score in own] for own in scores]

    def _ordered(
        self,
        hits: Sequence[Sequence[Hit]],
        late: Scores | None,
        lexical: Scores | None,
        how_many: int,
    ) -> list[list[Hit]]:
        """Each question's best by all that makes up a logit, best first."""
        scale = self._compressor.scale().item()
        best_hits: list[list[Hit]] = []
        for number, own in enumerate(hits):
            none = [0.0] * len(own)
            late_C = none if late is None else late[number]
            words_C = none if lexical is None else lexical[number]
            logits = [
                scale * hit.score + more + counted
                for hit, more, counted in zip(own, late_C, words_C, strict=True)
            ]
            order = sorted(range(len(own)), key=logits.__getitem__, reverse=True)  # stable
            best_hits.append(
                [replace(own[i], late=late_C[i], lexical=words_C[i]) for i in order[:how_many]]
            )
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
            ).cpu()


def _unique(hits: Sequence[Sequence[Hit]]) -> dict[int, int]:
    """Ids of the memories found, each once, and their places in that order."""
    ids = dict.fromkeys(hit.memory_id for own in hits for hit in own)
    return {memory_id: place for place, memory_id in enumerate(ids)}
