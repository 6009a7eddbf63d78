"""Texts through the compressor in batches of bounded size.

Shape legend: D pieces, Q questions, L layers, G key/value heads, K memory tokens, E head
size, C key size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from cmt.compressor import Compressor, prepare
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
    compressor: Compressor, pieces: Sequence[Sequence[int]], batch_tokens: int = 4096
) -> Iterator[tuple[list[int], Tensor, Tensor]]:
    """Compress pieces of documents.

    Yields:
        Their indices, their memories (D, L, 2, G, K, E) in the base model's dtype (bfloat16
        with the compressor's `bfloat16_products`), and their keys (D, C) in float32, a batch at
        a time, on the base model's device.
    """
    K = compressor.config.memory_tokens
    for batch in batches([len(piece) + K + 1 for piece in pieces], batch_tokens):
        prepared = prepare([pieces[i] for i in batch], [], K)
        encoded = compressor(move(prepared, compressor.base.device))
        yield batch, encoded.stacked(), encoded.document_keys_DC


@torch.no_grad()
def encode_questions(
    compressor: Compressor, questions: Sequence[Sequence[int]], batch_tokens: int = 4096
) -> Tensor:
    """Keys of tokenised questions, (Q, C) in float32 on the base model's device."""
    K = compressor.config.memory_tokens
    if not questions:
        return torch.zeros(0, compressor.config.key_size, device=compressor.base.device)
    keys = [
        compressor(
            move(prepare([], [questions[i] for i in batch], K), compressor.base.device)
        ).question_keys_QC
        for batch in batches([len(question) + 1 for question in questions], batch_tokens)
    ]
    return torch.cat(keys)
