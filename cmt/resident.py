"""A bank in memory: a dataset's documents learned onto the model's device, and matched there.

The same compressing, matching and re-ranking as `Memory`, without a file: for what is learned,
asked and gone, evaluations and the benchmark's methods.

Shape legend: D pieces in the bank, Q questions, B questions of a batch, C candidates of a
question (of a key: its size), L layers, G key/value heads, K memory tokens, E head size, V vector
size.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from cmt.bm25 import Texts
from cmt.compressor import Compressor
from cmt.datasets.qa import QADataset
from cmt.encoding import encode_documents, encode_questions
from cmt.errors import InputError
from cmt.late_interaction import SHORTLIST, QuestionVectors, shortlist_scores
from cmt.lexical import library
from cmt.reading import reading_start
from cmt.reranking import (
    LIKELIHOOD_WEIGHT,
    combined_scores,
    question_log_likelihoods,
    rerank_depth,
)
from cmt.splitting import split_all

T = TypeVar("T")


@dataclass(kw_only=True, slots=True)
class ResidentBank:
    """A dataset's memories on the model's device, and which document each belongs to.

    Attributes:
        memories: (D, L, 2, G, K, E) in bfloat16, as the bank stores them.
        keys: (D, C) in float32.
        owners_D: Index of each piece's document.
        seconds: What learning them took.
        vectors_DKV: Of their memory tokens; None without late interaction.
    """

    memories: Tensor
    keys: Tensor
    owners_D: Tensor
    seconds: float
    vectors_DKV: Tensor | None = None


def learn(
    compressor: Compressor,
    dataset: QADataset,
    *,
    batch_tokens: int = 16384,
    memory_tokens: int | None = None,
) -> ResidentBank:
    """Compress every document of a dataset, long ones in pieces.

    Args:
        compressor: With its base model underneath.
        dataset: What is learned.
        batch_tokens: Most tokens compressed in one pass, a longer piece aside.
        memory_tokens: K of the memories, one of the compressor's `config.sizes`; None: the largest.

    Raises:
        InputError: The dataset has no documents, or the compressor isn't trained for the size.
        DocumentError: One has nothing in it.
    """
    if not dataset.documents:
        raise InputError(f"expected at least one document in {dataset.name}, got none")
    config, base = compressor.config, compressor.base
    K = config.size(memory_tokens)
    began = time.perf_counter()
    pieces: list[tuple[int, ...]] = []
    owners: list[int] = []
    split = split_all(
        [document.text for document in dataset.documents],
        base.tokenizer,
        max_tokens=config.max_piece_tokens,
        overlap_tokens=config.overlap_tokens,
    )
    for number, parts in enumerate(split):
        pieces += [part.token_ids for part in parts]
        owners += [number] * len(parts)
    order = sorted(range(len(pieces)), key=lambda i: len(pieces[i]))  # like lengths together
    sorted_pieces = [pieces[i] for i in order]
    memories, keys, vectors = [], [], []
    for _, encoded in encode_documents(compressor, sorted_pieces, batch_tokens, K):
        memories.append(encoded.stacked().bfloat16())  # as the bank stores them
        keys.append(encoded.document_keys_DC)
        if encoded.document_vectors_DKV is not None:
            vectors.append(encoded.document_vectors_DKV.bfloat16())
    back = torch.tensor(order, device=base.device).argsort()
    bank = ResidentBank(
        memories=torch.cat(memories)[back],
        keys=torch.cat(keys)[back],
        owners_D=torch.tensor(owners, device=base.device),
        seconds=0.0,
        vectors_DKV=torch.cat(vectors)[back] if vectors else None,
    )
    if base.device.type == "cuda":
        torch.cuda.synchronize()
    bank.seconds = time.perf_counter() - began
    return bank


def match_scores(
    compressor: Compressor,
    bank: ResidentBank,
    prompts: Sequence[Sequence[int]],
    shortlist: int,
    batch_size: int,
) -> Tensor:
    """Self-matching: logits of every question (tokenised) with every memory, (Q, D)."""
    questions = encode_questions(compressor, prompts)
    scores_QD = questions.keys_QC @ bank.keys.T * compressor.scale()
    if shortlist and questions.vectors is not None and bank.vectors_DKV is not None:
        vectors = questions.vectors
        scores_QD = _compared(scores_QD, vectors, bank.vectors_DKV, shortlist, batch_size)
    return scores_QD


def lexical_scores(dataset: QADataset, bank: ResidentBank) -> Tensor:
    """BM25 of every question with every memory's document, (Q, D)."""
    return bm25_scores(dataset)[:, bank.owners_D.cpu()].to(bank.keys.device)


def bm25_scores(dataset: QADataset) -> Tensor:
    """BM25 of every question with every document, on the CPU."""
    texts = Texts(library(), [document.text for document in dataset.documents])
    return torch.from_numpy(texts.scores([question.text for question in dataset.questions]))


def with_lexical(scores_QD: Tensor, lexical_QD: Tensor, shortlist: int) -> Tensor:
    """BM25 added to the logits of each question's shortlist, above all others."""
    found = scores_QD.topk(min(shortlist or SHORTLIST, scores_QD.shape[1]), dim=1)
    more_QC = found.values + lexical_QD.gather(1, found.indices)
    return _rescored(scores_QD, found.indices, more_QC)


def rerank_scores(
    compressor: Compressor,
    bank: ResidentBank,
    prompts: Sequence[Sequence[int]],
    scores_QD: Tensor,
    rerank: int,
    batch_size: int,
    weight: float = LIKELIHOOD_WEIGHT,
) -> Tensor:
    """Scores with the best `rerank` of each question re-ranked, above all others."""
    values_QC, chosen_QC = scores_QD.topk(min(rerank, scores_QD.shape[1]), dim=1)
    likelihoods_QC = _likelihoods(compressor, bank, prompts, chosen_QC, batch_size)
    return _rescored(scores_QD, chosen_QC, combined_scores(values_QC, likelihoods_QC, weight))


def reading_scores(
    compressor: Compressor,
    bank: ResidentBank,
    prompts: Sequence[Sequence[int]],
    scores_QD: Tensor,
    top_k: Sequence[int],
    rerank: int,
    batch_size: int,
) -> dict[int, Tensor]:
    """The scores by which the k best are read, (Q, D), for each k: as `Memory.ask` re-ranks.

    Likelihoods are read once, for the largest k; where re-ranking is off the scores are as given.
    """
    depths = {k: min(rerank_depth(k, rerank), scores_QD.shape[1]) for k in top_k}
    deepest = max(depths.values())
    if not deepest:
        return dict.fromkeys(top_k, scores_QD)
    values_QC, chosen_QC = scores_QD.topk(deepest, dim=1)
    likelihoods_QC = _likelihoods(compressor, bank, prompts, chosen_QC, batch_size)
    again_QC = combined_scores(values_QC, likelihoods_QC)
    made = {
        depth: _rescored(scores_QD, chosen_QC[:, :depth], again_QC[:, :depth])
        for depth in set(depths.values())
    }
    return {k: made[depth] for k, depth in depths.items()}


def _likelihoods(
    compressor: Compressor,
    bank: ResidentBank,
    prompts: Sequence[Sequence[int]],
    chosen_QC: Tensor,
    batch_size: int,
) -> Tensor:
    """Log P(q | M) of every question with its candidates, (Q, C)."""
    likelihoods_QC = torch.empty(chosen_QC.shape, device=chosen_QC.device)
    for rows in chunks(range(len(prompts)), batch_size):
        likelihoods_QC[rows] = question_log_likelihoods(
            compressor.base,
            [prompts[i] for i in rows],
            bank.memories,
            chosen_QC[rows],
            reading_start(compressor.config.max_piece_tokens),
        )
    return likelihoods_QC


def _compared(
    scores_QD: Tensor,
    questions: QuestionVectors,
    documents_DKV: Tensor,
    shortlist: int,
    batch_size: int,
) -> Tensor:
    """Scores with the best of each question by key compared by late interaction too."""
    found = scores_QD.topk(min(shortlist, scores_QD.shape[1]), dim=1)
    scores_QC = found.values.clone()
    for rows in chunks(range(len(scores_QD)), batch_size):
        scores_QC[rows] += shortlist_scores(
            questions.rows(rows), documents_DKV, found.indices[rows]
        )
    return _rescored(scores_QD, found.indices, scores_QC)


def _rescored(scores_QD: Tensor, chosen_QC: Tensor, scores_QC: Tensor) -> Tensor:
    """New scores of the chosen, all others below the worst of them in their old order."""
    lowest = scores_QC.amin(1, keepdim=True)
    below_QD = scores_QD - scores_QD.amax(1, keepdim=True) + lowest - 1
    return below_QD.scatter(1, chosen_QC, scores_QC)


def chunks(items: Sequence[T], size: int) -> Iterator[list[T]]:
    """Consecutive runs of at most `size` items."""
    for start in range(0, len(items), size):
        yield list(items[start : start + size])
