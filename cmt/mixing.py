"""Top-k by mixing: memories are read separately and their next-token distributions are mixed.

Each memory of a question is read by itself, in a row of its own, and a token's probability is
that of the mixture, p(y) = Σᵢ wᵢ · p(y | Mⁱ, q, y₍<ₜ₎), w the matching probabilities: RAG-Token
of arXiv 2005.11401, and the ensemble of REPLUG, arXiv 2301.12652. The chosen token goes to all
rows of its question. With the posterior, w follows how well each memory explains the answer so
far, wᵢ ∝ wᵢ · p(y₍<ₜ₎ | Mⁱ, q), by Bayes: RAG-Sequence's mixture of whole answers, token by token.

Shape legend: Q questions, q of them that are kept, M most memories of a question, R rows (each
question once a memory), r of them that are kept, V vocabulary; D memories in all, L layers, G
key/value heads, K tokens of a memory, E head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from cmt.aggregation import Prefix, aggregate, aggregate_resident
from cmt.errors import InputError

T = TypeVar("T")


@dataclass(kw_only=True, slots=True)
class MixedPrefix(Prefix):
    """Prefixes of memories that are read separately: as many rows a question as memories.

    Attributes:
        memories: Keys and values of every row, (R, L, 2, G, P, E).
        log_weights_BP: Of the tokens within a row, (R, P); the memories' own are not in it.
        tokens: Memory tokens of each question, those of all its rows.
        owners: The question of each row.
        rows_QM: Rows of each question; its first once more where it has fewer memories.
        log_weights_QM: Logarithms of the memories' weights; −inf where a question has fewer.
        posterior: Whether weights follow how well a memory explains the answer so far.
    """

    owners: tuple[int, ...]
    rows_QM: Tensor
    log_weights_QM: Tensor
    posterior: bool = False

    def repeated(self, items: Sequence[T]) -> list[T]:
        """What belongs to the questions, once a row."""
        return [items[question] for question in self.owners]


class Mixer:
    """The mixture during one generation."""

    def __init__(self, prefix: MixedPrefix, device: torch.device) -> None:
        """Begin with the matching probabilities."""
        self._rows_QM = prefix.rows_QM.to(device)
        self._log_weights_QM = prefix.log_weights_QM.to(device).log_softmax(1)
        self._posterior = prefix.posterior
        self._owners_R = torch.tensor(prefix.owners, device=device)
        self._logs_QMV: Tensor | None = None

    def mixed(self, logits_RV: Tensor) -> Tensor:
        """Logits (Q, V) of the mixture from those of the rows, in float32.

        They are log Σᵢ wᵢ · p(y | Mⁱ), up to a constant a question that leaves those of a memory
        of weight 1 exactly as they were.
        """
        logits_QMV = logits_RV.float()[self._rows_QM]
        totals_QM = logits_QMV.logsumexp(-1)
        heaviest_Q1 = self._log_weights_QM.argmax(1, keepdim=True)
        shifts_QM = totals_QM - totals_QM.gather(1, heaviest_Q1)
        if self._posterior:
            self._logs_QMV = logits_QMV - totals_QM[..., None]
        return (logits_QMV + (self._log_weights_QM - shifts_QM)[..., None]).logsumexp(1)

    def told(self, chosen_Q: Tensor) -> Tensor:
        """The token of each row, (R,), after a token was chosen for each question."""
        if self._logs_QMV is not None:
            places_QM1 = chosen_Q[:, None, None].expand(*self._rows_QM.shape, 1)
            explained_QM = self._logs_QMV.gather(2, places_QM1)[..., 0]
            self._log_weights_QM = (self._log_weights_QM + explained_QM).log_softmax(1)
        return chosen_Q[self._owners_R]

    def kept(self, kept_q: Tensor) -> Tensor:
        """Go on with these questions alone; the rows that are theirs, r of them."""
        found: tuple[Tensor, Tensor] = torch.unique(self._rows_QM[kept_q], return_inverse=True)
        rows_r, self._rows_QM = found
        places_Q = torch.zeros_like(self._log_weights_QM[:, 0], dtype=torch.long)
        places_Q[kept_q] = torch.arange(len(kept_q), device=kept_q.device)
        self._owners_R = places_Q[self._owners_R[rows_r]]
        self._log_weights_QM = self._log_weights_QM[kept_q]
        self._logs_QMV = None  # told before
        return rows_r


def separate(
    memories: Sequence[Sequence[Tensor]],
    weights: Sequence[Sequence[float] | Tensor],
    *,
    posterior: bool = False,
) -> MixedPrefix:
    """A row from each of the questions' memories; any number of them, of any length each.

    Args:
        memories: For each question its memories, each (L, 2, G, K, E).
        weights: For each question its memories' weights.
        posterior: Whether weights follow how well a memory explains the answer so far.

    Raises:
        InputError: No question, one without a memory, not as many weights as memories, or
            weights below 0 or all 0.
    """
    numbers = [len(own) for own in memories]
    if not numbers or min(numbers) == 0 or numbers != [len(own) for own in weights]:
        raise InputError(
            f"expected at least one question and memory, and a weight for each memory, "
            f"got {numbers} memories and {[len(own) for own in weights]} weights"
        )
    weights_QM = torch.zeros(len(numbers), max(numbers))
    rows_QM = torch.zeros(len(numbers), max(numbers), dtype=torch.long)
    row = 0
    for question, (own, number) in enumerate(zip(weights, numbers, strict=True)):
        shares_M = torch.as_tensor(own, dtype=torch.float32).cpu()
        if not (bool((shares_M >= 0).all()) and bool(shares_M.sum() > 0)):
            raise InputError(
                f"expected weights of at least 0, one above it, got {shares_M.tolist()}"
            )
        weights_QM[question, :number] = shares_M
        rows_QM[question] = row
        rows_QM[question, :number] += torch.arange(number)
        row += number
    apart = aggregate([[memory] for own in memories for memory in own], [[1.0]] * row)
    tokens = iter(apart.tokens)
    return MixedPrefix(
        memories=apart.memories,
        log_weights_BP=apart.log_weights_BP,
        tokens=tuple(sum(next(tokens) for _ in own) for own in memories),
        owners=tuple(question for question, own in enumerate(numbers) for _ in range(own)),
        rows_QM=rows_QM.to(apart.memories.device),
        log_weights_QM=weights_QM.log().to(apart.memories.device),
        posterior=posterior,
    )


def separate_resident(
    memories: Tensor, chosen_QM: Tensor, weights_QM: Tensor, *, posterior: bool = False
) -> MixedPrefix:
    """The same from memories that lie in one tensor, (D, L, 2, G, K, E), without a loop."""
    Q, M = chosen_QM.shape
    ones_R1 = torch.ones(Q * M, 1, device=weights_QM.device)
    apart = aggregate_resident(memories, chosen_QM.reshape(-1, 1), ones_R1)
    return MixedPrefix(
        memories=apart.memories,
        log_weights_BP=apart.log_weights_BP,
        tokens=tuple(sum(apart.tokens[M * row : M * row + M]) for row in range(Q)),
        owners=tuple(question for question in range(Q) for _ in range(M)),
        rows_QM=torch.arange(Q * M, device=chosen_QM.device).view(Q, M),
        log_weights_QM=weights_QM.float().log(),
        posterior=posterior,
    )
