"""Top-k aggregation: the memories found for a question become one prefix.

The memories lie side by side before the question, and each one's matching probability, as a
logarithm, is added to the attention scores of its tokens: a memory of weight w counts as if
it had been read with probability w. With one memory the weight is 1 and nothing is added.

Shape legend: B questions, M memories a question, D memories in all, L layers, G key/value
heads, K tokens of a memory, P tokens of the prefix, E head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cmt.errors import InputError


@dataclass(kw_only=True, slots=True)
class Prefix:
    """One prefix a question.

    Attributes:
        memories: Keys and values of every layer, (B, L, 2, G, P, E).
        log_weights_BP: Added to attention scores; −inf where a question has fewer tokens.
        tokens: Memory tokens of each question, padding not counted.
    """

    memories: Tensor
    log_weights_BP: Tensor
    tokens: tuple[int, ...]


def matching_weights(scores: Sequence[float] | Tensor, scale: float) -> Tensor:
    """Matching probabilities: softmax of the scaled cosine scores, over the last dimension."""
    return (torch.as_tensor(scores, dtype=torch.float32) * scale).softmax(-1)


def aggregate(
    memories: Sequence[Sequence[Tensor]], weights: Sequence[Sequence[float] | Tensor]
) -> Prefix:
    """One prefix from each question's memories; any number of them, of any length each.

    Args:
        memories: For each question its memories, each (L, 2, G, K, E).
        weights: For each question its memories' weights.

    Raises:
        InputError: No question, one without a memory, not as many weights as memories, or a
            weight below 0.
    """
    if not memories or len(memories) != len(weights):
        raise InputError(
            f"expected memories and weights of at least one question, "
            f"got {len(memories)} of memories and {len(weights)} of weights"
        )
    rows, log_rows = [], []
    for own, shares in zip(memories, weights, strict=True):
        if not own or len(own) != len(shares):
            raise InputError(
                f"expected one weight for each of at least one memory, "
                f"got {len(own)} memories and {len(shares)} weights"
            )
        rows.append(torch.cat(list(own), dim=3))
        lengths = torch.tensor([memory.shape[3] for memory in own])
        shares_M = torch.as_tensor(shares, dtype=torch.float32).cpu()
        if not bool((shares_M >= 0).all()):
            raise InputError(f"expected weights of at least 0, got {shares_M.tolist()}")
        logs = shares_M.log()
        log_rows.append(logs.repeat_interleave(lengths))
    longest = max(row.shape[3] for row in rows)
    first = rows[0]
    shape = (len(rows), *first.shape[:3], longest, first.shape[4])
    prefix = torch.zeros(shape, dtype=first.dtype, device=first.device)
    log_weights = torch.full((len(rows), longest), -torch.inf)
    for number, (row, logs) in enumerate(zip(rows, log_rows, strict=True)):
        prefix[number, :, :, :, : row.shape[3]] = row
        log_weights[number, : len(logs)] = logs
    return Prefix(
        memories=prefix,
        log_weights_BP=log_weights.to(first.device),
        tokens=tuple(row.shape[3] for row in rows),
    )


def aggregate_resident(memories: Tensor, chosen_BM: Tensor, weights_BM: Tensor) -> Prefix:
    """The same from memories that lie in one tensor, (D, L, 2, G, K, E), without a loop."""
    B, M = chosen_BM.shape
    K = memories.shape[4]
    chosen = memories[chosen_BM]  # (B, M, L, 2, G, K, E)
    prefix = chosen.permute(0, 2, 3, 4, 1, 5, 6).flatten(4, 5)
    log_weights = weights_BM.float().log().repeat_interleave(K, dim=1)
    return Prefix(memories=prefix, log_weights_BP=log_weights, tokens=(M * K,) * B)
