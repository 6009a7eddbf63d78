"""The frozen model reads: teacher-forced passes over questions, answers and documents.

Used in training and in scoring; generating is `generation.py`'s. LoRA is off here.

Shape legend: N packed tokens, B segments, M memories read by a segment, R documents
retold, T target tokens, W hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cmt.attention import LayerKV, PackedPass, Packing, pack
from cmt.base_model import BaseModel
from cmt.tokens import token_ids

QUESTION_PREFIX = "Question:"
ANSWER_PREFIX = "\nAnswer:"


def question_tokens(tokenizer: Any, questions: Sequence[str]) -> list[list[int]]:
    r"""Token ids of ``Question: …\nAnswer:`` for each question, read and matched alike."""
    before = tokenizer(QUESTION_PREFIX, add_special_tokens=False)["input_ids"]
    after = tokenizer(ANSWER_PREFIX, add_special_tokens=False)["input_ids"]
    middles = token_ids(tokenizer, [" " + question.strip() for question in questions])
    return [before + middle + after for middle in middles]


def opening_tokens(tokenizer: Any) -> int:
    """How many tokens of `question_tokens` come before the question's own."""
    return len(tokenizer(QUESTION_PREFIX, add_special_tokens=False)["input_ids"])


def closing_tokens(tokenizer: Any) -> int:
    """How many tokens of `question_tokens` come after the question's own."""
    return len(tokenizer(ANSWER_PREFIX, add_special_tokens=False)["input_ids"])


def reading_start(max_piece_tokens: int) -> int:
    """Position of the first token read after memories: past the sink and the longest piece."""
    return max_piece_tokens + 1


@dataclass(kw_only=True, slots=True)
class ReadInput:
    """Segments the frozen model reads after memories, laid out for one pass.

    Attributes:
        tokens_N: Token ids; a retold document begins with a place for the retelling token.
        openings: Places of those retelling tokens.
        targets_T: Places whose hidden state predicts a wanted token.
        labels_T: Those tokens.
        answers, retold, asked: How many of the targets are answer tokens, how many retell
            documents and how many are questions' own; they come in this order, the rest are those
            of the compared questions.
        compared_T: Which compared question each of the last targets belongs to; the first of the
            asked targets are the same tokens.
        packing: Groups in this order: questions that read one memory, questions that read
            several, questions compared, documents retold; a group without segments is left out.
    """

    tokens_N: Tensor
    positions_N: Tensor
    packing: Packing
    openings: Tensor
    targets_T: Tensor
    labels_T: Tensor
    answers: int
    retold: int
    asked: int
    compared_T: Tensor


def prepare_reading(
    questions: Sequence[Sequence[Sequence[int]]],
    answers: Sequence[Sequence[Sequence[int]]],
    retold: Sequence[Sequence[int]],
    start: int,
    *,
    asked_after: int | None = None,
    compared: int = 0,
) -> ReadInput:
    """Lay out groups of questions with their answers, and documents to retell.

    Args:
        questions, answers: Token ids, one sequence of segments a group.
        retold: Token ids of the documents to retell.
        start: Position of each segment's first token.
        asked_after: The questions of the first group are targets too, but for so many first
            tokens (at least 1); None: they are not.
        compared: So many of them, the first ones, are read once more without an answer, after
            another memory.
    """
    assert asked_after is not None or not compared, "compared questions are asked ones"
    tokens: list[Sequence[int]] = []
    targets: list[Tensor] = []
    labels: list[int] = []
    openings: list[int] = []
    lengths: list[list[int]] = []
    asked_targets: list[Tensor] = []
    asked_labels: list[int] = []
    place = 0
    for group_questions, group_answers in zip(questions, answers, strict=True):
        asked_from = None if lengths else asked_after
        lengths.append([])
        for question, answer in zip(group_questions, group_answers, strict=True):
            segment = [*question, *answer[:-1]]  # the last token is predicted, never read
            tokens.append(segment)
            targets.append(place + len(question) - 1 + torch.arange(len(answer)))
            labels += answer
            if asked_from is not None:
                asked_targets.append(place + torch.arange(asked_from - 1, len(question) - 1))
                asked_labels += question[asked_from:]
            lengths[-1].append(len(segment))
            place += len(segment)
    answer_tokens = len(labels)
    compared_targets: list[Tensor] = []
    compared_labels: list[int] = []
    owners: list[int] = []
    lengths.append([])
    for number, question in enumerate(questions[0][:compared] if compared else []):
        assert asked_after is not None
        tokens.append(question[:-1])
        compared_targets.append(place + torch.arange(asked_after - 1, len(question) - 1))
        compared_labels += question[asked_after:]
        owners += [number] * (len(question) - asked_after)
        lengths[-1].append(len(question) - 1)
        place += len(question) - 1
    lengths.append([])
    for document in retold:
        tokens.append([0, *document[:-1]])
        openings.append(place)
        targets.append(place + torch.arange(len(document)))
        labels += document
        lengths[-1].append(len(document))
        place += len(document)
    retold_tokens = len(labels) - answer_tokens
    row = [token for segment in tokens for token in segment]
    positions = torch.cat([torch.arange(len(segment)) for segment in tokens]) + start
    return ReadInput(
        tokens_N=torch.tensor(row),
        positions_N=positions,
        packing=pack(lengths),
        openings=torch.tensor(openings, dtype=torch.long),
        targets_T=torch.cat(targets + asked_targets + compared_targets),
        labels_T=torch.tensor(labels + asked_labels + compared_labels),
        answers=answer_tokens,
        retold=retold_tokens,
        asked=len(asked_labels),
        compared_T=torch.tensor(owners, dtype=torch.long),
    )


def read(
    base: BaseModel,
    batch: ReadInput,
    memories: Sequence[LayerKV] | None,
    opening_W: Tensor | None = None,
) -> Tensor:
    """Hidden states at the targets, shape (T, W).

    Args:
        base: The frozen model.
        batch: What to read; `memories_BM` and `weights_BM` of its groups say which memories.
        memories: Keys and values of every layer, each (D, K, G, E); None reads without.
        opening_W: Embedding of the token that asks for a document to be retold.
    """
    embeddings_NW = base.embed(batch.tokens_N)
    if len(batch.openings):
        assert opening_W is not None
        opening = opening_W.to(embeddings_NW.dtype).expand(len(batch.openings), -1)
        embeddings_NW = embeddings_NW.index_copy(0, batch.openings, opening)
    run = PackedPass(
        packing=batch.packing, prefix=memories, sink=None if memories is None else base.sink
    )
    return base.run_packed(embeddings_NW, batch.positions_N, run)[batch.targets_T]
