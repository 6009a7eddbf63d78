"""Where an answer's attention went: to each memory, to the sink, to the question and the answer.

The frozen model reads question and answer once more, after the same prefix. At every place that
predicted a token of the answer, each layer's and head's attention sums to 1; the shares are the
mean over those places, layers and heads. Attention is not explanation: it says where the model
looked, not why it said what it said.

Memories that are read separately have a row each, whose shares count as much as they match.

Shape legend: R rows, M memories, H query heads, G key/value heads, T tokens read, S places attended
to, E head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

from cmt.aggregation import Prefix
from cmt.answering import Reading
from cmt.attention import packed_attention
from cmt.generation import Sampling, stream
from cmt.mixing import MixedPrefix

_OBSERVED = "cmt-observed"
_record: ContextVar[list[Tensor] | None] = ContextVar("attention weights", default=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionShare:
    """Shares that sum to 1; `memories` in the order of the answer's matches."""

    memories: tuple[float, ...]
    sink: float
    text: float


def attention_share(reading: Reading, place: int, generated: Sequence[int]) -> AttentionShare:
    """Where the attention of one answer of a batch went; one pass of the frozen model.

    Args:
        reading: What the batch read.
        place: The answer's place in it; it must have been answered from memories.
        generated: The answer's tokens.
    """
    assert reading.prefix is not None
    prefix, row = reading.prefix, list(reading.answered).index(place)
    rows, weights_R = [row], torch.ones(1)
    if isinstance(prefix, MixedPrefix):
        rows = [number for number, owner in enumerate(prefix.owners) if owner == row]
        weights_R = prefix.log_weights_QM[row, : len(rows)].softmax(0).cpu()
    own = Prefix(
        memories=prefix.memories[rows],
        log_weights_BP=prefix.log_weights_BP[rows],
        tokens=(prefix.tokens[row],) * len(rows),
    )
    shares_RS = weights_R[:, None] * _shares(reading, place, own, generated)
    end = 1 + own.memories.shape[4]
    if isinstance(prefix, MixedPrefix):
        memories_M = shares_RS[:, 1:end].sum(1)
    else:
        width = prefix.tokens[row] // max(1, len(reading.matches[place]))
        memories_M = shares_RS[0, 1 : 1 + prefix.tokens[row]].view(-1, width).sum(1)
    return AttentionShare(
        memories=tuple(memories_M.tolist()),
        sink=float(shares_RS[:, 0].sum()),
        text=float(shares_RS[:, end:].sum()),
    )


def _shares(reading: Reading, place: int, own: Prefix, generated: Sequence[int]) -> Tensor:
    """The attention of an answer after each row of `own`: the mean over its places, (R, S)."""
    base = reading.base
    tokens = [*reading.tokens[place], *generated[:-1]]
    usual = base.model.config._attn_implementation
    recorded: list[Tensor] = []
    token = _record.set(recorded)
    base.model.set_attn_implementation(_OBSERVED)
    try:
        steps = stream(
            base, [tokens] * len(own.tokens), own, start=reading.start,
            sampling=Sampling(max_new_tokens=1),
            replayed=False,  # a replayed pass is not seen
        )  # fmt: skip
        next(steps, None)
    finally:
        base.model.set_attn_implementation(usual)
        _record.reset(token)
    predicting = max(1, len(generated))
    # a layer's weights (R, H, T, S) to the mean over its heads and the answer's places, (R, S)
    layers = [layer[:, :, -predicting:].mean((1, 2)) for layer in recorded]
    return torch.stack(layers).mean(0).cpu()


def _observed_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """As `packed_attention`; what this thread reads with the record on is recorded."""
    recorded = _record.get()
    if recorded is not None:
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        keys_HSE = key.repeat_interleave(query.shape[1] // key.shape[1], 1)
        scores = (query @ keys_HSE.transpose(-1, -2)).float() * scale
        if attention_mask is not None:
            scores = scores + attention_mask.float()
        recorded.append(scores.softmax(-1))
    return packed_attention(module, query, key, value, attention_mask, scaling=scaling, **kwargs)


AttentionInterface.register(_OBSERVED, _observed_attention)
AttentionMaskInterface.register(_OBSERVED, sdpa_mask)
