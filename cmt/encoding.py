"""Texts through the compressor in batches of bounded size.

Shape legend: D pieces, Q questions, L layers, G key/value heads, K memory tokens, E head
size, C key size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cmt import replaying
from cmt.compressor import Compressor, Encoded, prepare
from cmt.late_interaction import QuestionVectors
from cmt.padding import last_places
from cmt.tensors import move


def batches(lengths: Sequence[int], most_tokens: int) -> Iterator[list[int]]:
    """Consecutive indices whose lengths sum to at most `most_tokens` (or a single longer one)."""
    batch: list[int] = []
    total = 0
    for index, length in enumerate(lengths):
        if batch and total + length > most_tokens:
            yield batch
            batch, total = [], 0
        batch.append(index)
        total += length
    if batch:
        yield batch


@torch.no_grad()
def encode_documents(
    compressor: Compressor,
    pieces: Sequence[Sequence[int]],
    batch_tokens: int = 4096,
    memory_tokens: int | None = None,
) -> Iterator[tuple[list[int], Encoded]]:
    """Compress tokenised pieces of documents, each into `memory_tokens`; None: all there are.

    Yields:
        Their indices and what the compressor makes of them, a batch at a time, on the base
        model's device: memories in its dtype, keys and vectors in float32.

    Raises:
        InputError: The compressor isn't trained for so many memory tokens.
    """
    K = compressor.config.size(memory_tokens)
    for batch in batches([len(piece) + K + 1 for piece in pieces], batch_tokens):
        prepared = prepare([pieces[i] for i in batch], [], K)
        yield batch, compressor(move(prepared, compressor.base.device))


@dataclass(kw_only=True, slots=True)
class EncodedQuestions:
    """Keys of questions, (Q, C) in float32, and vectors of their tokens, if there are any."""

    keys_QC: Tensor
    vectors: QuestionVectors | None


@torch.no_grad()
def encode_questions(
    compressor: Compressor, questions: Sequence[Sequence[int]], batch_tokens: int = 4096
) -> EncodedQuestions:
    """What tokenised questions are matched by, on the base model's device."""
    K, device = compressor.config.memory_tokens, compressor.base.device
    longest = max((len(question) + 1 for question in questions), default=0)
    if questions and replaying.serves(compressor.base, len(questions), longest):
        return _replayed(compressor, questions)
    keys: list[Tensor] = []
    parts: list[QuestionVectors] = []
    for batch in batches([len(question) + 1 for question in questions], batch_tokens):
        encoded = compressor(move(prepare([], [questions[i] for i in batch], K), device))
        keys.append(encoded.question_keys_QC)
        if encoded.question_vectors is not None:
            encoded.question_vectors.owners_T += batch[0]
            parts.append(encoded.question_vectors)
    if not keys:
        return EncodedQuestions(
            keys_QC=torch.zeros(0, compressor.config.key_size, device=device), vectors=None
        )
    vectors = None
    if parts:
        vectors = QuestionVectors(
            vectors_TV=torch.cat([part.vectors_TV for part in parts]),
            weights_T=torch.cat([part.weights_T for part in parts]),
            owners_T=torch.cat([part.owners_T for part in parts]),
            lengths=tuple(length for part in parts for length in part.lengths),
        )
    return EncodedQuestions(keys_QC=torch.cat(keys), vectors=vectors)


def _replayed(compressor: Compressor, questions: Sequence[Sequence[int]]) -> EncodedQuestions:
    """The same in a pass of fixed shape."""
    base = compressor.base
    lengths = tuple(len(question) for question in questions)
    with_key = [[*question, 0] for question in questions]
    with replaying.fixed_reading(base, with_key, start=1) as reading:
        embeddings_BTW = base.embed(reading.tokens_BT)
        embeddings_BTW[:, -1] = compressor.question_key_embedding.to(embeddings_BTW.dtype)
        with compressor.lora.on():
            hidden_QTW = reading.hidden(embeddings_BTW)
        places = last_places(lengths, hidden_QTW.shape[1], after=1)
        index_T, owners_T = move(places, base.device)
        keys_QC, vectors = compressor.matched_by(
            hidden_QTW[:, -1], hidden_QTW.flatten(0, 1)[index_T], owners_T, lengths
        )
    return EncodedQuestions(keys_QC=keys_QC, vectors=vectors)
