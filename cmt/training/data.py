"""Training batches: tokenised once, each batch a pure function of seed and step.

Because batch `step` depends on nothing else, a resumed run sees the very batches that an
uninterrupted one would have seen, and worker processes can make them ahead in any order.

Shape legend: D documents of a batch, Q its questions.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cmt.compressor import CompressorInput, prepare
from cmt.datasets.qa import QADataset
from cmt.errors import InputError
from cmt.reading import (
    ReadInput,
    closing_tokens,
    opening_tokens,
    prepare_reading,
    question_tokens,
    reading_start,
)
from cmt.tokens import token_ids
from cmt.training.batch_config import BatchConfig
from cmt.training.sources import Epochs, with_extra
from cmt.training.variants import Cut, Variants


@dataclass(kw_only=True, slots=True)
class TrainingBatch:
    """One step's input.

    Attributes:
        document_ids_D: Which documents of the corpus these are, for stale keys.
        positives_Q: Each question's document in this batch.
        single: The first so many questions read one memory, the rest `memories` of
            `most_memories` places.
        compared: The first so many are also read after another memory.
        retold_R: Documents of this batch to retell.
    """

    compressor: CompressorInput
    reading: ReadInput
    document_ids_D: Tensor
    positives_Q: Tensor
    retold_R: Tensor
    single: int
    compared: int
    memories: int
    most_memories: int


class TrainingData(torch.utils.data.Dataset[TrainingBatch]):
    """Batches of a question-answering corpus, by step number; further questions, plain texts."""

    def __init__(  # noqa: PLR0913
        self,
        dataset: QADataset,
        tokenizer: Any,
        config: BatchConfig,
        *,
        memory_tokens: int,
        max_piece_tokens: int,
        memory_sizes: Sequence[int] = (),
        extra: QADataset | None = None,
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
            extra: Further questions, made ones for instance, on texts of their own
                (`BatchConfig.extra`) or on the dataset's (`BatchConfig.more_questions`).
            texts: Plain texts; each should be no longer than a piece, the rest is cut.
            seed: Fixes everything.
            process, processes: This process's number in a distributed run, and how many.

        Raises:
            InputError: Too few documents for a batch, none of the further questions that the
                configuration asks for, a document without a token, more memories to
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
        if extra is None and (config.extra or config.more_questions):
            raise InputError(
                f"expected further questions for extra={config.extra} and "
                f"more_questions={config.more_questions}, got none"
            )
        own = len(dataset.documents), len(dataset.questions)
        if extra is not None:
            dataset = with_extra(dataset, extra, more=config.more_questions > 0)
        self._tokenise(dataset, tokenizer, texts)
        self._group_questions(dataset, *own)
        self.variants = None
        if config.cropped_share or config.joined_share:
            self.variants = Variants(dataset, tokenizer, max_piece_tokens)
        for kind, epochs in (("", self.epochs), (" of the further ones", self.extra_epochs)):
            if epochs is not None and epochs.documents < epochs.size * processes:
                raise InputError(
                    f"expected at least {epochs.size * processes} documents with questions{kind} "
                    f"(documents a batch × processes), got {epochs.documents}"
                )
        drawn = config.documents + config.extra + (config.texts if texts else 0)
        if config.several_share and not 2 <= config.most_memories <= drawn:
            raise InputError(
                f"expected most_memories from 2 to the {drawn} documents of a batch where some "
                f"questions read several, got {config.most_memories}"
            )

    def _tokenise(self, dataset: QADataset, tokenizer: Any, texts: Sequence[str]) -> None:
        passages = [document.text for document in dataset.documents]
        limit = self.max_piece_tokens
        self.documents = [tokens[:limit] for tokens in token_ids(tokenizer, passages + list(texts))]
        for number, tokens in enumerate(self.documents):
            if not tokens:
                raise InputError(f"expected a token in every document, got none in no. {number}")
        self.first_text = len(passages)
        self.opening = opening_tokens(tokenizer)
        self.closing = closing_tokens(tokenizer)
        self.questions = question_tokens(tokenizer, [q.text for q in dataset.questions])
        shortest = [" " + min(q.answers, key=len) for q in dataset.questions]
        end = tokenizer.eos_token_id
        if end is None:
            raise InputError("expected a tokenizer with an end token to end answers, got none")
        cut = self.config.max_answer_tokens
        self.answers = [[*tokens[:cut], end] for tokens in token_ids(tokenizer, shortest)]

    def _group_questions(self, dataset: QADataset, documents: int, questions: int) -> None:
        """Questions by document and documents by article; the first so many are the corpus's."""
        self.questions_of = dataset.questions_by_document()
        self.own_documents, self.own_questions = documents, questions
        articles: tuple[dict[int, list[int]], ...] = (defaultdict(list), defaultdict(list))
        for document, numbers in enumerate(self.questions_of):
            extra = document >= documents
            if numbers and (extra or numbers[0] < questions):
                articles[extra][dataset.articles[document]].append(document)
        config = self.config
        self.epochs = Epochs(articles[0], config.documents, config.group, (self.seed, 1))
        self.extra_epochs = None
        if config.extra:
            self.extra_epochs = Epochs(articles[1], config.extra, config.group, (self.seed, 3))

    def steps_per_epoch(self) -> int:
        """Steps an epoch takes; documents that fill no whole batch wait for another epoch."""
        return self.epochs.batches() // self.processes

    def _memory_tokens(self, step: int) -> int:
        """How many memory tokens a step compresses into: in all processes the same."""
        if len(self.sizes) == 1:
            return self.sizes[0]
        rng = np.random.default_rng((self.seed, 16, step))
        return int(rng.choice(self.sizes, p=self.config.size_shares or None))

    def _cuts(self, drawn: Sequence[int], turn: int) -> list[Cut]:
        """The documents as they are read: most of them whole."""
        cuts: dict[int, Cut] = {}
        if self.variants is not None:
            rng = np.random.default_rng((self.seed, 4, turn))
            shares = self.config.cropped_share, self.config.joined_share
            cuts = self.variants.draw(drawn, *shares, rng)
        return [
            cuts.get(place) or Cut(self.documents[document], self.questions_of[document])
            for place, document in enumerate(drawn)
        ]

    def _asked(self, numbers: list[int], own: bool, rng: np.random.Generator) -> list[int]:
        """Some of a document's questions; those of the corpus's documents are of two kinds."""
        config = self.config
        most = config.questions_per_document
        if not own:
            return [int(number) for number in rng.permutation(numbers)[:most]]
        first = [number for number in numbers if number < self.own_questions]
        further = [number for number in numbers if number >= self.own_questions]
        drawn = [int(number) for number in rng.permutation(first)[:most]]
        if further:
            drawn += [int(number) for number in rng.permutation(further)[: config.more_questions]]
        return drawn

    def _thinned(self, question: list[int], rng: np.random.Generator) -> list[int]:
        """The question without some of its own tokens; what is written around them stays."""
        end = len(question) - self.closing
        kept = rng.random(end - self.opening) >= self.config.dropped_share
        own = [
            token for token, keep in zip(question[self.opening : end], kept, strict=True) if keep
        ]
        return question[: self.opening] + own + question[end:]

    def __getitem__(self, step: int) -> TrainingBatch:
        """Batch of a step."""
        config = self.config
        turn = step * self.processes + self.process
        rng = np.random.default_rng((self.seed, 2, turn))
        drawn = self.epochs.batch(turn)
        if self.extra_epochs is not None:
            drawn += self.extra_epochs.batch(turn)
        cuts = self._cuts(drawn, turn)
        asked = [
            (place, number)
            for place, cut in enumerate(cuts)
            for number in self._asked(cut.questions, place < config.documents, rng)
        ]
        bearing = len(drawn)
        asked = [asked[i] for i in rng.permutation(len(asked))]
        single = len(asked) - int(len(asked) * config.several_share)
        compared = int(single * config.compared_share)
        texts = len(self.documents) - self.first_text
        if texts and config.texts:
            drawn += (self.first_text + rng.integers(0, texts, config.texts)).tolist()
        retold = rng.permutation(bearing)[: int(bearing * config.retold_share)]
        retold = np.concatenate([retold, np.arange(bearing, len(drawn))]).astype(int)
        memories = int(rng.integers(2, config.most_memories + 1)) if config.several_share else 1
        tokens = [cut.tokens for cut in cuts] + [self.documents[i] for i in drawn[bearing:]]
        questions = [self.questions[number] for _, number in asked]
        answers = [self.answers[number] for _, number in asked]
        matched = questions
        if config.dropped_share:
            matched = [self._thinned(question, rng) for question in questions]
        return TrainingBatch(
            compressor=prepare(tokens, matched, self._memory_tokens(step)),
            reading=prepare_reading(
                [questions[:single], questions[single:]],
                [answers[:single], answers[single:]],
                [tokens[i] for i in retold],
                reading_start(self.max_piece_tokens),
                asked_after=self.opening if config.asked else None,
                compared=compared,
            ),
            document_ids_D=torch.tensor(drawn),
            positives_Q=torch.tensor([place for place, _ in asked]),
            retold_R=torch.from_numpy(retold),
            single=single,
            compared=compared,
            memories=memories,
            most_memories=config.most_memories,
        )
