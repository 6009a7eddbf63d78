"""The losses of the method, as plain functions of tensors.

Shape legend: T target tokens, V vocabulary, Q questions, D documents, C key size,
X stale keys.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from cmt.errors import InputError


def answer_cross_entropy(logits_TV: Tensor, labels_T: Tensor) -> Tensor:
    """The paper's base loss: −1/T Σₜ log p(yₜ | M*, q, y₍<ₜ₎).

    Args:
        logits_TV: Logits that predict each answer token, any float type.
        labels_T: The answer's token ids.

    Returns:
        The mean over all tokens, a float32 scalar.
    """
    return functional.cross_entropy(logits_TV.float(), labels_T)


def memory_aware_logits(with_memory_TV: Tensor, without_memory_TV: Tensor, alpha: float) -> Tensor:
    """The paper's adjusted logits, (1+α)·l(y | M*, q) − α·l(y | q).

    What the frozen model would say anyway is subtracted; what the memory adds is amplified.
    α = 0 gives `with_memory_TV` back.
    """
    return (1 + alpha) * with_memory_TV.float() - alpha * without_memory_TV.float()


def memory_aware_cross_entropy(
    with_memory_TV: Tensor, without_memory_TV: Tensor, labels_T: Tensor, alpha: float
) -> Tensor:
    """Cross-entropy of the answer on the memory-aware logits (the paper's objective)."""
    logits_TV = memory_aware_logits(with_memory_TV, without_memory_TV, alpha)
    return functional.cross_entropy(logits_TV, labels_T)


def self_matching_loss(
    questions_QC: Tensor, memories_DC: Tensor, positives_Q: Tensor, lambda_: float
) -> Tensor:
    """The paper's self-matching: −cos(qᵢ, Mⁱ) + λ·log Σ_{j≠i} exp(−‖Mⁱ − Mʲ‖²), mean over i.

    The first term draws a question to its own document's memory; the second drives memories
    apart, against collapse.

    Args:
        questions_QC: Pooled compressed questions.
        memories_DC: Pooled memories of D ≥ 2 documents.
        positives_Q: Each question's document.
        lambda_: λ.

    Raises:
        InputError: Fewer than two memories: there is no other one to keep apart from.
    """
    if len(memories_DC) < 2:
        raise InputError(f"expected the memories of at least 2 documents, got {len(memories_DC)}")
    similarity_Q = functional.cosine_similarity(questions_QC, memories_DC[positives_Q], dim=-1)
    distances_DD = (memories_DC[:, None] - memories_DC[None]).pow(2).sum(-1)
    own = torch.eye(len(memories_DC), dtype=torch.bool, device=memories_DC.device)
    spread_D = torch.logsumexp((-distances_DD).masked_fill(own, -torch.inf), dim=1)
    return -similarity_Q.mean() + lambda_ * spread_D[positives_Q].mean()


def contrastive_matching_loss(
    questions_QC: Tensor,
    keys_DC: Tensor,
    positives_Q: Tensor,
    scale: Tensor | float,
    stale_keys_XC: Tensor | None = None,
    stale_allowed_X: Tensor | None = None,
) -> Tensor:
    """InfoNCE over the batch: −log softmax_j(s·⟨qᵢ, κⱼ⟩)[i], mean over questions.

    Every other document of the batch is a negative. `stale_keys_XC`, keys of documents seen
    in earlier steps (cross-batch memory, arXiv 1912.06798), are further negatives without
    gradient.

    Args:
        questions_QC, keys_DC: Unit vectors.
        positives_Q: Each question's document.
        scale: s, the inverse temperature.
        stale_keys_XC: Unit vectors.
        stale_allowed_X: False where a stale key belongs to a document of this batch or was
            never filled.
    """
    logits = questions_QC @ keys_DC.T * scale
    if stale_keys_XC is not None:
        stale = questions_QC @ stale_keys_XC.T * scale
        if stale_allowed_X is not None:
            stale = stale.masked_fill(~stale_allowed_X[None], -torch.inf)
        logits = torch.cat([logits, stale], dim=1)
    return matching_cross_entropy(logits, positives_Q)


def matching_cross_entropy(scores_QD: Tensor, positives_Q: Tensor) -> Tensor:
    """InfoNCE of any scores over the batch: −log softmax_j(s(qᵢ, Mʲ))[i], mean over questions.

    Args:
        scores_QD: Logits of each question's matching every document.
        positives_Q: Each question's document.
    """
    return functional.cross_entropy(scores_QD.float(), positives_Q)


def question_cross_entropy(logits_TV: Tensor, tokens_T: Tensor) -> Tensor:
    """−1/T Σₜ log p(qₜ | M, q₍<ₜ₎): the question, asked by the frozen model of its memory.

    Trains what re-ranking measures (`reranking.py`).
    """
    return functional.cross_entropy(logits_TV.float(), tokens_T)


def pairwise_reranking_loss(own_P: Tensor, other_P: Tensor, weight: float) -> Tensor:
    """−log σ(w·(log p(q | Mᵒʷⁿ) − log p(q | Mᵒᵗʰᵉʳ))), mean over pairs (RankNet's loss).

    A question is to be likelier after its own memory than after another that matches it well:
    what re-ranking by likelihood needs (`reranking.py`), and its cross-entropy does not ask for.

    Args:
        own_P, other_P: Log-likelihood of each question after either memory.
        weight: w, what a log-likelihood counts.
    """
    return functional.softplus(-weight * (own_P - other_P)).mean()


def reconstruction_cross_entropy(logits_TV: Tensor, tokens_T: Tensor) -> Tensor:
    """−1/T Σₜ log p(dₜ | M, d₍<ₜ₎): the frozen model retells the document from its memory."""
    return functional.cross_entropy(logits_TV.float(), tokens_T)
