"""Training batches: tokenised once, each batch a pure function of seed and step.

Because batch `step` depends on nothing else, a resumed run sees the very batches that an
uninterrupted one would have seen, and worker processes can make them ahead in any order.

Shape legend: D documents of a batch, Q its questions.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cmt.compressor import CompressorInput, prepare
from cmt.datasets.qa import QADataset
from cmt.errors import InputError
from cmt.reading import (
    ReadInput,
    opening_tokens,
    prepare_reading,
    question_tokens,
    reading_start,
)


@dataclass(kw_only=True, slots=True)
class BatchConfig:
    """What a batch holds.

    Attributes:
        documents: Question-bearing documents a batch.
        texts: Plain texts a batch, only retold.
        questions_per_document: At most so many, drawn anew each time.
        group: Documents of one article drawn together, hard negatives for matching.
        retold_share: Share of the documents to retell.
        several_share: Share of the questions that read several memories at once.
        most_memories: Largest number of memories read at once.
        max_answer_tokens: Longer answers are cut.
        asked: Whether questions that read one memory are to be predicted from it too.
        size_shares: How often a step compresses into each of the compressor's `sizes`, as shares
            of all steps; (): each as often as any other.
    """

    documents: int = 128
    texts: int = 0
    questions_per_document: int = 4
    group: int = 6
    retold_share: float = 0.33
    several_share: float = 0.5
    most_memories: int = 4
    max_answer_tokens: int = 24
    asked: bool = False
    size_shares: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        """Refuse what can't be filled."""
        least = {
            "documents": 1,
            "texts": 0,
            "questions_per_document": 1,
            "group": 1,
            "most_memories": 1,
            "max_answer_tokens": 1,
        }
        for name, bound in least.items():
            if getattr(self, name) < bound:
                raise InputError(f"expected {name} of at least {bound}, got {getattr(self, name)}")
        for name in ("retold_share", "several_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"expected {name} from 0 to 1, got {getattr(self, name)}")
        shares = self.size_shares
        if shares and not (min(shares) >= 0 and math.isclose(sum(shares), 1)):
            raise InputError(f"expected size_shares of at least 0 that sum to 1, got {shares}")


@dataclass(kw_only=True, slots=True)
class TrainingBatch:
    """One step's input.

    Attributes:
        document_ids_D: Which documents of the corpus these are, for stale keys.
        positives_Q: Each question's document in this batch.
        single: The first so many questions read one memory, the rest `memories` of
            `most_memories` places.
        retold_R: Documents of this batch to retell.
    """

    compressor: CompressorInput
    reading: ReadInput
    document_ids_D: Tensor
    positives_Q: Tensor
    retold_R: Tensor
    single: int
    memories: int
    most_memories: int


class TrainingData(torch.utils.data.Dataset[TrainingBatch]):
    """Batches of a question-answering corpus with optional plain texts, by step number."""

    def __init__(  # noqa: PLR0913
        self,
        dataset: QADataset,
        tokenizer: Any,
        config: BatchConfig,
        *,
        memory_tokens: int,
        max_piece_tokens: int,
        memory_sizes: Sequence[int] = (),
        texts: Sequence[str] = (),
        seed: int = 0,
        process: int = 0,
        processes: int = 1,
    ) -> None:
        """Tokenise everything.

        Args:
            dataset: Documents and their questions.
            tokenizer: The base model's.
            config: What a batch holds.
            memory_tokens, max_piece_tokens, memory_sizes: As in the compressor's configuration.
            texts: Plain texts; each should be no longer than a piece, the rest is cut.
            seed: Fixes everything.
            process, processes: This process's number in a distributed run, and how many.

        Raises:
            InputError: Too few documents for a batch, one without a token, more memories to
                read at once than documents, a tokenizer without an end token, or not one of
                `size_shares` for each size.
        """
        self.config, self.seed = config, seed
        self.process, self.processes = process, processes
        self.sizes, self.max_piece_tokens = (*memory_sizes, memory_tokens), max_piece_tokens
        if len(config.size_shares) not in (0, len(self.sizes)):
            raise InputError(
                f"expected one of size_shares for each memory size ({self.sizes}), "
                f"got {config.size_shares}"
            )
        self._tokenise(dataset, tokenizer, texts)
        if len(self.answerable) < config.documents * processes:
            raise InputError(
                f"expected at least {config.documents * processes} documents with questions "
                f"(documents a batch × processes), got {len(self.answerable)}"
            )
        drawn = config.documents + (config.texts if texts else 0)
        if config.several_share and not 2 <= config.most_memories <= drawn:
            raise InputError(
                f"expected most_memories from 2 to the {drawn} documents of a batch where some "
                f"questions read several, got {config.most_memories}"
            )
        self._epoch: tuple[int, np.ndarray] = (-1, np.zeros(0, dtype=np.int64))

    def _tokenise(self, dataset: QADataset, tokenizer: Any, texts: Sequence[str]) -> None:
        def ids(strings: list[str]) -> list[list[int]]:
            return tokenizer(strings, add_special_tokens=False)["input_ids"] if strings else []

        passages = [document.text for document in dataset.documents]
        limit = self.max_piece_tokens
        self.documents = [tokens[:limit] for tokens in ids(passages + list(texts))]
        for number, tokens in enumerate(self.documents):
            if not tokens:
                raise InputError(f"expected a token in every document, got none in no. {number}")
        self.first_text = len(passages)
        self.opening = opening_tokens(tokenizer)
        self.questions = question_tokens(tokenizer, [q.text for q in dataset.questions])
        shortest = [" " + min(q.answers, key=len) for q in dataset.questions]
        end = tokenizer.eos_token_id
        if end is None:
            raise InputError("expected a tokenizer with an end token to end answers, got none")
        cut = self.config.max_answer_tokens
        self.answers = [[*tokens[:cut], end] for tokens in ids(shortest)]
        self.questions_of: dict[int, list[int]] = defaultdict(list)
        for number, question in enumerate(dataset.questions):
            self.questions_of[question.document].append(number)
        self.answerable = sorted(self.questions_of)
        self.articles: dict[int, list[int]] = defaultdict(list)
        for document in self.answerable:
            self.articles[dataset.articles[document]].append(document)

    def _order(self, epoch: int) -> np.ndarray:
        """Documents in the epoch's order: groups of one article together, groups shuffled."""
        if self._epoch[0] != epoch:
            rng = np.random.default_rng((self.seed, 1, epoch))
            groups = []
            for article in sorted(self.articles):
                shuffled = rng.permutation(self.articles[article])
                bounds = [*range(0, len(shuffled), self.config.group), len(shuffled)]
                groups += [shuffled[a:b] for a, b in pairwise(bounds)]
            order = np.concatenate([groups[i] for i in rng.permutation(len(groups))])
            self._epoch = epoch, order
        return self._epoch[1]

    def steps_per_epoch(self) -> int:
        """Steps an epoch takes; documents that fill no whole batch wait for another epoch."""
        return len(self.answerable) // self.config.documents // self.processes

    def _memory_tokens(self, step: int) -> int:
        """How many memory tokens a step compresses into: in all processes the same."""
        if len(self.sizes) == 1:
            return self.sizes[0]
        rng = np.random.default_rng((self.seed, 16, step))
        return int(rng.choice(self.sizes, p=self.config.size_shares or None))

    def __getitem__(self, step: int) -> TrainingBatch:
        """Batch of a step."""
        config = self.config
        turn = step * self.processes + self.process
        per_epoch = len(self.answerable) // config.documents
        epoch, place = divmod(turn, per_epoch)
        rng = np.random.default_rng((self.seed, 2, turn))
        drawn = self._order(epoch)[place * config.documents :][: config.documents].tolist()
        asked = [
            (place_in_batch, int(number))
            for place_in_batch, document in enumerate(drawn)
            for number in rng.permutation(self.questions_of[document])[
                : config.questions_per_document
            ]
        ]
        asked = [asked[i] for i in rng.permutation(len(asked))]
        single = len(asked) - int(len(asked) * config.several_share)
        texts = len(self.documents) - self.first_text
        if texts and config.texts:
            drawn += (self.first_text + rng.integers(0, texts, config.texts)).tolist()
        retold = rng.permutation(config.documents)[: int(config.documents * config.retold_share)]
        retold = np.concatenate([retold, np.arange(config.documents, len(drawn))]).astype(int)
        memories = int(rng.integers(2, config.most_memories + 1)) if config.several_share else 1
        tokens = [self.documents[document] for document in drawn]
        questions = [self.questions[number] for _, number in asked]
        answers = [self.answers[number] for _, number in asked]
        return TrainingBatch(
            compressor=prepare(tokens, questions, self._memory_tokens(step)),
            reading=prepare_reading(
                [questions[:single], questions[single:]],
                [answers[:single], answers[single:]],
                [tokens[i] for i in retold],
                reading_start(self.max_piece_tokens),
                asked_after=self.opening if config.asked else None,
            ),
            document_ids_D=torch.tensor(drawn),
            positives_Q=torch.tensor([place for place, _ in asked]),
            retold_R=torch.from_numpy(retold),
            single=single,
            memories=memories,
            most_memories=config.most_memories,
        )
