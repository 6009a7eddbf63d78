"""Learn a dataset's documents, ask its questions, score the answers.

Two readings: *found*, the memories that self-matching finds among all of the bank's, and
*given*, the question's own document's memory, the ceiling that matching could reach.

Shape legend: D pieces in the bank, Q questions, B questions of a batch, M memories read.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from cmt.aggregating import DEFAULT_AGGREGATION, Aggregation
from cmt.compressor import Compressor
from cmt.datasets.qa import QADataset
from cmt.errors import InputError
from cmt.generation import Sampling, generate
from cmt.late_interaction import SHORTLIST
from cmt.lexical import checked_weight
from cmt.metrics import bootstrap_interval, exact_match, f1, prefix_exact_match, recall_at, shortest
from cmt.reading import question_tokens, reading_start
from cmt.resident import (
    ResidentBank,
    chunks,
    learn,
    lexical_scores,
    match_scores,
    reading_scores,
    with_lexical,
)


@dataclass(kw_only=True, slots=True)
class Scores:
    """Percentages over questions, with bootstrap 95% intervals (low, high).

    The peers report `prefix_exact_match` as EM, and `shortest_f1`, against each question's
    shortest answer alone, as F1.
    """

    exact_match: float
    f1: float
    prefix_exact_match: float
    shortest_f1: float
    exact_match_interval: tuple[float, float]
    f1_interval: tuple[float, float]
    predictions: list[str] = field(repr=False)


@dataclass(kw_only=True, slots=True)
class QAResult:
    """What an evaluation measured.

    Attributes:
        found, given: Scores by top_k ("top_1", …) and with the right memory given.
        recall: Share of questions whose document is among the best k, `rerank` of them re-ranked.
        compress_seconds, answer_seconds: Wall-clock, the first over all documents, the
            second over all questions of one reading.
    """

    documents: int
    pieces: int
    questions: int
    memory_tokens: int
    bytes_per_memory: int
    recall: dict[int, float]
    found: dict[int, Scores]
    given: Scores | None
    compress_seconds: float
    answer_seconds: dict[str, float]


@torch.no_grad()
def evaluate(  # noqa: PLR0913
    compressor: Compressor,
    dataset: QADataset,
    *,
    top_k: Sequence[int] = (1,),
    given: bool = True,
    rerank: int = 0,
    shortlist: int = SHORTLIST,
    lexical: float = 0.0,
    aggregation: Aggregation = DEFAULT_AGGREGATION,
    bank: ResidentBank | None = None,
    memory_tokens: int | None = None,
    batch_size: int = 32,
    max_new_tokens: int = 24,
    alpha: float = 0.0,
    resamples: int = 1000,
    progress: Any = None,
) -> QAResult:
    """Learn all documents, ask all questions, score.

    Args:
        compressor: With its base model underneath.
        dataset: What is learned and asked.
        top_k: Numbers of memories to aggregate, a row of scores each.
        given: Also score with the right memory given.
        rerank: How many memories are found and re-ranked (reranking.py), for each number in
            `top_k` so many at least; 0 or 1: none.
        shortlist: How many memories are found by key and compared by late interaction, where
            the compressor has it; 0: none.
        lexical: Weight of BM25 on the documents' texts beside the logit of matching; 0: none.
        aggregation: How several memories are read together.
        bank: The dataset's documents, learned already; None learns them.
        memory_tokens: As for `learn`; None: the largest, or those of `bank`.
        batch_size: Questions answered at a time.
        max_new_tokens: Longest answer.
        alpha: α of decoding (`Sampling.alpha`).
        resamples: Of the bootstrap.
        progress: Something with `update(n)`, told the number of questions answered.

    Raises:
        InputError: No documents or no questions; a number below 1 (`rerank`: below 0);
            memory_tokens that the compressor isn't trained for, or `bank` doesn't have.
        DocumentError: A document that can't be split into pieces (an empty one).
    """
    _check(dataset, batch_size=batch_size, resamples=resamples, top_k=min(top_k, default=1))
    if rerank < 0:
        raise InputError(f"expected rerank of at least 0, got {rerank}")
    base, config = compressor.base, compressor.config
    bank = bank or learn(compressor, dataset, memory_tokens=memory_tokens)
    K = bank.memories.shape[4]
    if memory_tokens not in (None, K):
        raise InputError(f"expected a bank of {memory_tokens} memory tokens, got one of {K}")
    prompts = question_tokens(base.tokenizer, [q.text for q in dataset.questions])
    scores_QD = match_scores(compressor, bank, prompts, shortlist, batch_size)
    if checked_weight(lexical):
        scores_QD = with_lexical(scores_QD, lexical * lexical_scores(dataset, bank), shortlist)
    began = time.perf_counter()
    ranked = reading_scores(compressor, bank, prompts, scores_QD, (1, *top_k), rerank, batch_size)
    match_seconds = time.perf_counter() - began
    right_Q = torch.tensor([q.document for q in dataset.questions], device=base.device)
    own_QD = bank.owners_D[None] == right_Q[:, None]
    ranks = document_ranks(ranked[1], own_QD, bank.owners_D, len(dataset.documents))
    sampling = Sampling(max_new_tokens=max_new_tokens, alpha=alpha)
    readings = {f"top_{k}": ranked[k].topk(min(k, len(bank.keys)), dim=1) for k in top_k}
    if given:
        readings["given"] = ranked[1].masked_fill(~own_QD, -torch.inf).topk(1, dim=1)
    results: dict[str, Scores] = {}
    seconds: dict[str, float] = {"rerank": match_seconds} if rerank > 1 else {}
    by_length = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    for name, best in readings.items():
        began = time.perf_counter()
        predictions = [""] * len(prompts)
        for rows in chunks(by_length, batch_size):
            index = torch.tensor(rows, device=base.device)
            prefix = aggregation.resident_prefix(
                bank.memories, best.indices[index], best.values[index]
            )
            texts = generate(
                base,
                [prompts[i] for i in rows],
                prefix,
                start=reading_start(config.max_piece_tokens),
                sampling=sampling,
                stop_tokens=compressor.stop_tokens,
            )
            for i, text in zip(rows, texts, strict=True):
                predictions[i] = str(base.tokenizer.decode(text, skip_special_tokens=True)).strip()
            if progress is not None:
                progress.update(len(rows))
        seconds[name] = time.perf_counter() - began
        results[name] = score(predictions, dataset, resamples=resamples)
    return QAResult(
        documents=len(dataset.documents),
        pieces=len(bank.keys),
        questions=len(prompts),
        memory_tokens=K,
        bytes_per_memory=bank.memories[0].numel() * 2,
        recall={k: 100 * recall_at(ranks, k) for k in (1, 3, 5, 10)},
        found={k: results[f"top_{k}"] for k in top_k},
        given=results.get("given"),
        compress_seconds=bank.seconds,
        answer_seconds=seconds,
    )


def score(predictions: Sequence[str], dataset: QADataset, *, resamples: int = 1000) -> Scores:
    """Standard EM and F1, and the peers' prefix EM, in percent.

    Raises:
        InputError: No question, or not one prediction each.
    """
    if not predictions or len(predictions) != len(dataset.questions):
        raise InputError(
            f"expected a prediction for each of the {len(dataset.questions)} questions of "
            f"{dataset.name}, at least one, got {len(predictions)}"
        )
    answers = [question.answers for question in dataset.questions]
    pairs = list(zip(predictions, answers, strict=True))
    exact = [100 * exact_match(prediction, gold) for prediction, gold in pairs]
    overlap = [100 * f1(prediction, gold) for prediction, gold in pairs]
    prefix = [100 * prefix_exact_match(prediction, gold) for prediction, gold in pairs]
    shortest_overlap = [100 * f1(prediction, [shortest(gold)]) for prediction, gold in pairs]
    return Scores(
        exact_match=sum(exact) / len(exact),
        f1=sum(overlap) / len(overlap),
        prefix_exact_match=sum(prefix) / len(prefix),
        shortest_f1=sum(shortest_overlap) / len(shortest_overlap),
        exact_match_interval=bootstrap_interval(exact, resamples=resamples),
        f1_interval=bootstrap_interval(overlap, resamples=resamples),
        predictions=list(predictions),
    )


def _check(dataset: QADataset, **numbers: int) -> None:
    if not dataset.questions:
        raise InputError(f"expected at least one question in {dataset.name}, got none")
    for name, number in numbers.items():
        if number < 1:
            raise InputError(f"expected {name} of at least 1, got {number}")


def document_ranks(
    scores_QD: Tensor, own_QD: Tensor, owners_D: Tensor, documents: int
) -> list[int | None]:
    """Rank (1 is best) of each question's document, a document counting by its best piece."""
    best = torch.full((len(scores_QD), documents), -torch.inf, device=scores_QD.device)
    best = best.scatter_reduce(1, owners_D.expand(len(scores_QD), -1), scores_QD, "amax")
    own_best = scores_QD.masked_fill(~own_QD, -torch.inf).amax(1, keepdim=True)
    return [1 + rank for rank in (best > own_best).sum(1).tolist()]
