"""Re-ranking: how likely the frozen model finds the question, given each memory found.

Self-matching compares two vectors. Here the frozen model itself reads the question after each
of the best memories, and log P(q | Mⁱ), the sum over the question's tokens, joins the score: a
memory that makes the question likely is one the question was asked about. (Query likelihood,
as in unsupervised passage re-ranking, arXiv 2204.07496; here with memories for passages.) It
needs no training and no outside retriever, and reads each question once a candidate. All that may
be read for an answer are candidates (`rerank_depth`), since likelihoods weigh them too.

Shape legend: B questions, C candidates each, P pairs of a question and a memory, D memories, L
layers, G key/value heads, K memory tokens, E head size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from cmt import replaying
from cmt.attention import LayerKV
from cmt.base_model import BaseModel
from cmt.head_loss import CHUNK, CHUNK_CPU, head_token_losses
from cmt.padding import last_places
from cmt.reading import opening_tokens, prepare_reading, read
from cmt.tensors import move

LIKELIHOOD_WEIGHT = 0.4
"""What log P(q | M) counts beside the logits of matching; chosen on validation (docs/LOG.md)."""
MOST_TOKENS = 65_536
"""Tokens of questions in one pass, each question once a candidate."""


def rerank_depth(top_k: int, rerank: int) -> int:
    """How many of the memories found are re-ranked where the `top_k` best are read; 0: none.

    With re-ranking on (`rerank` from 2 on) at least those that are read: order and weights of all
    of them come from the same sum. A `rerank` of 0 or 1 turns it off.
    """
    return max(top_k, rerank) if rerank > 1 else 0


@torch.no_grad()
def question_log_likelihoods(
    base: BaseModel,
    questions: Sequence[Sequence[int]],
    memories: Tensor | Sequence[Tensor],
    candidates_BC: Tensor,
    start: int,
) -> Tensor:
    """Log P(q | Mⁱ) of each question and candidate, shape (B, C), float32.

    Args:
        base: The frozen model.
        questions: Prompts as `reading.question_tokens` makes them.
        memories: Memories that candidates are among, (D, L, 2, G, K, E), or a sequence of them,
            (L, 2, G, K, E) with any K each; there is a pass for each K.
        candidates_BC: Rows of `memories`; on the CPU where those are a sequence.
        start: Position of a question's first token.
    """
    B, C = candidates_BC.shape
    asked = [question for question in questions for _ in range(C)]
    at_once = max(1, MOST_TOKENS // max(map(len, questions)))
    found, first = [], 0
    for rows_P in candidates_BC.flatten().split(at_once):
        own = asked[first : first + at_once]
        found.append(_of_pairs(base, own, memories, rows_P, start))
        first += at_once
    return torch.cat(found).view(B, C)


def _of_pairs(
    base: BaseModel,
    asked: Sequence[Sequence[int]],
    memories: Tensor | Sequence[Tensor],
    rows_P: Tensor,
    start: int,
) -> Tensor:
    """Log P(q | M) of each question with the memory in its row, (P,)."""
    if isinstance(memories, Tensor):
        chosen, places_P = _chosen(memories, rows_P)
        return _pairs(base, asked, chosen, places_P, start)
    likelihoods_P = torch.zeros(len(asked), device=base.device)
    for numbers, own, places in _by_size(memories, rows_P.tolist()):
        some = [asked[number] for number in numbers]
        pairs = _pairs(base, some, own, places, start)
        where = move(torch.tensor(numbers), base.device)
        likelihoods_P = likelihoods_P.index_copy(0, where, pairs)
    return likelihoods_P


def _chosen(memories: Tensor, rows_P: Tensor) -> tuple[Tensor, Tensor]:
    """The memories of some rows, and each row's place among them."""
    if rows_P.device.type != "cpu":  # finding equal rows would wait for the device
        return memories[rows_P.to(memories.device)], torch.arange(len(rows_P))
    rows, places_P = rows_P.unique(return_inverse=True)
    return memories[rows.to(memories.device)], places_P


def _by_size(
    memories: Sequence[Tensor], rows: Sequence[int]
) -> Iterator[tuple[list[int], Tensor, Tensor]]:
    """For each K: numbers of the pairs that read such memories, those, and places among them."""
    for K in sorted({memories[row].shape[3] for row in rows}):
        numbers = [number for number, row in enumerate(rows) if memories[row].shape[3] == K]
        places = {row: place for place, row in enumerate(dict.fromkeys(rows[n] for n in numbers))}
        own = torch.stack([memories[row] for row in places])
        yield numbers, own, torch.tensor([places[rows[number]] for number in numbers])


def _pairs(
    base: BaseModel,
    questions: Sequence[Sequence[int]],
    memories: Tensor,
    places_P: Tensor,
    start: int,
) -> Tensor:
    """Log P(q | Mⁱ) of each question, all in one pass, with the memory in its place: (P,)."""
    opening = opening_tokens(base.tokenizer)
    if replaying.serves(base, len(questions), max(map(len, questions))):
        chosen = memories.to(base.device)[places_P.to(base.device)]
        return _replayed(base, questions, chosen, start, opening)
    prepared = prepare_reading(
        [[question[:opening] for question in questions]],
        [[question[opening:] for question in questions]],
        [],
        start,
    )
    prepared.packing.groups[0].memories_BM = places_P[:, None]
    lengths = torch.tensor([len(question) - opening for question in questions])
    owners_T = torch.arange(len(questions)).repeat_interleave(lengths)
    batch, owners_T = move((prepared, owners_T), base.device)
    targets_TW = read(base, batch, by_layer(memories.to(base.device, base.dtype)))
    return _summed(base, targets_TW, batch.labels_T, owners_T, len(questions))


def _summed(
    base: BaseModel, targets_TW: Tensor, labels_T: Tensor, owners_T: Tensor, questions: int
) -> Tensor:
    """Log-likelihoods of the tokens, added up for each question they belong to."""
    chunk = CHUNK if base.device.type == "cuda" else CHUNK_CPU
    losses_T = head_token_losses(base, targets_TW, labels_T, chunk=chunk)
    return -torch.zeros(questions, device=base.device).index_add_(0, owners_T, losses_T)


def _replayed(
    base: BaseModel,
    questions: Sequence[Sequence[int]],
    memories: Tensor,
    start: int,
    opening: int,
) -> Tensor:
    """The same in a pass of fixed shape; `memories` are each question's, (P, L, 2, G, K, E)."""
    read = [question[:-1] for question in questions]
    prefix = base.after_sink(memories)
    with replaying.fixed_reading(base, read, start=start, prefix=prefix) as reading:
        hidden_PTW = reading.hidden()
        lengths = [len(question) - opening for question in questions]
        places, owners = last_places(lengths, hidden_PTW.shape[1])
        labels = torch.tensor([token for question in questions for token in question[opening:]])
        index_T, labels_T, owners_T = move((places, labels, owners), base.device)
        targets_TW = hidden_PTW.flatten(0, 1)[index_T]
        return _summed(base, targets_TW, labels_T, owners_T, len(questions))


def by_layer(memories: Tensor) -> list[LayerKV]:
    """Memories (D, L, 2, G, K, E) as packed attention takes them: a pair (D, K, G, E) a layer."""
    layers = memories.transpose(3, 4).unbind(1)
    return [(layer[:, 0], layer[:, 1]) for layer in layers]


def combined_scores(
    logits_BC: Tensor, likelihoods_BC: Tensor, weight: float = LIKELIHOOD_WEIGHT
) -> Tensor:
    """Logits of the candidates: those of matching + weight · log P(q | M), shape (B, C)."""
    return logits_BC + weight * likelihoods_BC
