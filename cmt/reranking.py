"""Re-ranking: how likely the frozen model finds the question, given each memory found.

Self-matching compares two vectors. Here the frozen model itself reads the question after each
of the best memories, and log P(q | Mⁱ), the sum over the question's tokens, joins the score: a
memory that makes the question likely is one the question was asked about. (Query likelihood,
as in unsupervised passage re-ranking, arXiv 2204.07496; here with memories for passages.) It
needs no training and no outside retriever, and reads each question once a candidate.

Shape legend: B questions, C candidates each, L layers, G key/value heads, K memory tokens,
E head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import torch
from torch import Tensor
from torch.nn import functional

from cmt.attention import LayerKV
from cmt.base_model import BaseModel
from cmt.reading import opening_tokens, prepare_reading, read
from cmt.tensors import move

LIKELIHOOD_WEIGHT = 0.2
"""What log P(q | M) counts beside the logits of matching; chosen in docs/LOG.md."""


@torch.no_grad()
def question_log_likelihoods(
    base: BaseModel,
    questions: Sequence[Sequence[int]],
    memories: Tensor,
    candidates_BC: Tensor,
    start: int,
    *,
    bfloat16_products: bool = False,
) -> Tensor:
    """Log P(q | Mⁱ) of each question and candidate, shape (B, C), float32.

    Args:
        base: The frozen model.
        questions: Prompts as `reading.question_tokens` makes them.
        memories: Memories that candidates are among, (D, L, 2, G, K, E).
        candidates_BC: Rows of `memories`.
        start: Position of a question's first token.
        bfloat16_products: Multiply in bfloat16 under a float32 model; scores only, no answer
            is generated here.
    """
    opening = opening_tokens(base.tokenizer)
    B, C = candidates_BC.shape
    segments = [question for question in questions for _ in range(C)]
    prepared = prepare_reading(
        [[segment[:opening] for segment in segments]],
        [[segment[opening:] for segment in segments]],
        [],
        start,
    )
    batch = move(prepared, base.device)
    rows, place = candidates_BC.flatten().unique(return_inverse=True)
    batch.packing.groups[0].memories_BM = place[:, None].to(base.device)
    chosen = memories[rows.to(memories.device)].to(base.device, base.dtype)
    fast = bfloat16_products and base.dtype == torch.float32
    context = torch.autocast(base.device.type, torch.bfloat16) if fast else nullcontext()
    with context:
        logits_TV = base.logits(read(base, batch, by_layer(chosen)))
    losses_T = functional.cross_entropy(logits_TV.float(), batch.labels_T, reduction="none")
    lengths = torch.tensor([len(segment) - opening for segment in segments], device=base.device)
    owners_T = torch.arange(B * C, device=base.device).repeat_interleave(lengths)
    sums = torch.zeros(B * C, device=base.device).index_add_(0, owners_T, losses_T)
    return -sums.view(B, C)


def by_layer(memories: Tensor) -> list[LayerKV]:
    """Memories (D, L, 2, G, K, E) as packed attention takes them: a pair (D, K, G, E) a layer."""
    layers = memories.transpose(3, 4).unbind(1)
    return [(layer[:, 0], layer[:, 1]) for layer in layers]


def combined_scores(
    logits_BC: Tensor, likelihoods_BC: Tensor, weight: float = LIKELIHOOD_WEIGHT
) -> Tensor:
    """Logits of the candidates: those of matching + weight · log P(q | M), shape (B, C)."""
    return logits_BC + weight * likelihoods_BC
