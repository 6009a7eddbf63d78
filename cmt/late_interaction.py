"""Late interaction: every token of a question finds its best place among a memory's tokens.

One key is one look at a whole document. Late interaction (ColBERT, arXiv 2004.12832) compares
finer: each of the K memory tokens has a small unit vector of its own, each token t of the
question another, with a weight w_t ≥ 0 that says how much the token counts, and

    s(q, M) = Σ_t w_t · max_j ⟨q_t, m_j⟩.

The vectors come out of the same pass that makes memory and key, and take about one percent of
the memory's bytes.

Shape legend: Q questions, T tokens of all questions in a row (beside a Q: of the longest), D
documents, C of them a question's candidates, K memory tokens, V vector size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from cmt.attention import pack
from cmt.tensors import move

SHORTLIST = 100
"""How many memories found by key are compared token by token."""


@dataclass(kw_only=True, slots=True)
class QuestionVectors:
    """What questions are compared by.

    Attributes:
        vectors_TV: A unit vector of each token.
        weights_T: How much it counts, at least 0.
        owners_T: Which question it belongs to, ascending.
        lengths: How many tokens each question has, known without asking the device.
    """

    vectors_TV: Tensor
    weights_T: Tensor
    owners_T: Tensor
    lengths: tuple[int, ...]

    def rows(self, numbers: Sequence[int]) -> QuestionVectors:
        """Those of some questions, numbered anew from 0 in the order given."""
        starts = list(accumulate(self.lengths, initial=0))
        lengths = tuple(self.lengths[number] for number in numbers)
        places = [torch.arange(starts[number], starts[number + 1]) for number in numbers]
        owners_T = torch.arange(len(numbers)).repeat_interleave(torch.tensor(lengths))
        index_T, owners_T = move((torch.cat(places), owners_T), self.owners_T.device)
        return QuestionVectors(
            vectors_TV=self.vectors_TV[index_T],
            weights_T=self.weights_T[index_T],
            owners_T=owners_T,
            lengths=lengths,
        )


def late_scores(question: QuestionVectors, documents_DKV: Tensor, questions: int) -> Tensor:
    """s(q, M) of every question with every document, shape (Q, D)."""
    D, K, _ = documents_DKV.shape
    similarities_TDK = (question.vectors_TV @ documents_DKV.flatten(0, 1).T).view(-1, D, K)
    best_TD = similarities_TDK.amax(2).float() * question.weights_T.float()[:, None]
    scores_QD = torch.zeros(questions, D, device=best_TD.device)
    return scores_QD.index_add(0, question.owners_T, best_TD)


def shortlist_scores(question: QuestionVectors, documents_DKV: Tensor, chosen_QC: Tensor) -> Tensor:
    """s(q, M) of every question with the documents chosen for it alone, shape (Q, C)."""
    group = move(pack([question.lengths]).groups[0], question.vectors_TV.device)
    asked_QTV = question.vectors_TV[group.index_BT]
    weights_QT: Tensor = question.weights_T[group.index_BT].float() * group.valid_BT
    own_QCKV = documents_DKV[chosen_QC].to(asked_QTV.dtype)
    similarities_QTP = asked_QTV @ own_QCKV.flatten(1, 2).transpose(1, 2)
    best_QTC: Tensor = similarities_QTP.unflatten(2, own_QCKV.shape[1:3]).amax(3)
    return (best_QTC.float() * weights_QT[..., None]).sum(1)


def stacked(vectors: Sequence[Tensor]) -> Tensor:
    """Vectors (K, V) of documents, K of each its own, as one (D, K, V) with the largest K.

    Where a document has fewer, its first vector is repeated, which changes no maximum.
    """
    K = max(len(own_KV) for own_KV in vectors)
    if all(len(own_KV) == K for own_KV in vectors):  # nearly always, and five times as fast
        return torch.stack(list(vectors))
    return torch.stack(
        [torch.cat([own_KV, own_KV[:1].expand(K - len(own_KV), -1)]) for own_KV in vectors]
    )
