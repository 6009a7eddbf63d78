"""Late interaction: every token of a question finds its best place among a memory's tokens.

One key is one look at a whole document. Late interaction (ColBERT, arXiv 2004.12832) compares
finer: each of the K memory tokens has a small unit vector of its own, each token t of the
question another, with a weight w_t ≥ 0 that says how much the token counts, and

    s(q, M) = Σ_t w_t · max_j ⟨q_t, m_j⟩.

The vectors come out of the same pass that makes memory and key, and take about one percent of
the memory's bytes.

Shape legend: Q questions, T tokens of all questions in a row, D documents, K memory tokens,
V vector size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

SHORTLIST = 100
"""How many memories found by key are compared token by token."""


@dataclass(kw_only=True, slots=True)
class QuestionVectors:
    """What questions are compared by.

    Attributes:
        vectors_TV: A unit vector of each token.
        weights_T: How much it counts, at least 0.
        owners_T: Which question it belongs to, ascending.
    """

    vectors_TV: Tensor
    weights_T: Tensor
    owners_T: Tensor

    def rows(self, numbers: Sequence[int]) -> QuestionVectors:
        """Those of some questions, numbered anew from 0 in the order given."""
        device = self.owners_T.device
        counts = torch.bincount(self.owners_T, minlength=max(numbers, default=0) + 1)
        starts = counts.cumsum(0) - counts
        chosen = torch.as_tensor(numbers, device=device)
        places = [
            torch.arange(start, start + count, device=device)
            for start, count in zip(starts[chosen].tolist(), counts[chosen].tolist(), strict=True)
        ]
        index_T = torch.cat(places)
        return QuestionVectors(
            vectors_TV=self.vectors_TV[index_T],
            weights_T=self.weights_T[index_T],
            owners_T=torch.arange(len(numbers), device=device).repeat_interleave(counts[chosen]),
        )


def late_scores(question: QuestionVectors, documents_DKV: Tensor, questions: int) -> Tensor:
    """s(q, M) of every question with every document, shape (Q, D)."""
    D, K, _ = documents_DKV.shape
    similarities_TDK = (question.vectors_TV @ documents_DKV.flatten(0, 1).T).view(-1, D, K)
    best_TD = similarities_TDK.amax(2).float() * question.weights_T.float()[:, None]
    scores_QD = torch.zeros(questions, D, device=best_TD.device)
    return scores_QD.index_add(0, question.owners_T, best_TD)
