"""Rows of tokens that the frozen model reads on: prompts after their prefixes, token by token.

The only file that touches transformers' key/value caches. Prompts are padded on the left,
prefixes masked, so that a question answered in a batch is the question answered alone.

Shape legend: B rows, T longest prompt, P prefix tokens (sink included), S all tokens so far,
V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import torch
from torch import Tensor
from transformers import DynamicCache

from cmt.aggregation import Prefix
from cmt.attention import any_shape
from cmt.base_model import BaseModel


class Rows:
    """Prompts being read: what was read is in a cache, what comes next is kept."""

    def __init__(
        self,
        base: BaseModel,
        prompts: Sequence[Sequence[int]],
        prefix: Prefix | None,
        start: int,
    ) -> None:
        """Begin with `prompts`, each after its row of `prefix`; None: the plain model.

        `start` is the position of a prompt's first token.
        """
        self._base = base
        filler = base.tokenizer.eos_token_id or 0
        self._tokens_BT, self._valid_BT = _left_padded(prompts, filler, base.device)
        self._positions_BT = (self._valid_BT.cumsum(1) - 1).clamp(min=0) + start
        self._cache, before_BP = _prefilled(base, prefix)
        self._mask = None
        if before_BP is not None:
            self._mask = _mask(before_BP, self._valid_BT, base.dtype)

    def logits(self) -> Tensor:
        """Read what comes next, give the logits (B, V) of the token after it."""
        mask = self._mask
        with nullcontext() if mask is None else any_shape():  # without memory: as it is
            output = self._base.model(
                input_ids=self._tokens_BT,
                position_ids=self._positions_BT,
                attention_mask=self._valid_BT.long() if mask is None else mask,
                past_key_values=self._cache,
                use_cache=True,
                logits_to_keep=1,
            )
        logits_BV: Tensor = output.logits[:, -1]
        return logits_BV

    def read(self, tokens_B: Tensor) -> None:
        """What comes next is a token of each row."""
        rows = len(tokens_B)
        self._tokens_BT = tokens_B[:, None]
        self._positions_BT = self._positions_BT[:, -1:] + 1
        self._valid_BT = torch.cat([self._valid_BT, self._valid_BT.new_ones(rows, 1)], dim=1)
        if self._mask is not None:  # the new token sees what the last one saw, and itself
            seen = self._mask[:, :, -1:]
            self._mask = torch.cat([seen, seen.new_zeros(rows, 1, 1, 1)], dim=-1)


def _left_padded(
    prompts: Sequence[Sequence[int]], filler: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    longest = max(len(prompt) for prompt in prompts)
    tokens = [[filler] * (longest - len(prompt)) + list(prompt) for prompt in prompts]
    valid = [[False] * (longest - len(prompt)) + [True] * len(prompt) for prompt in prompts]
    return torch.tensor(tokens, device=device), torch.tensor(valid, device=device)


def _prefilled(base: BaseModel, prefix: Prefix | None) -> tuple[DynamicCache, Tensor | None]:
    """A cache that holds sink and prefix, and the log-weights (B, P) of its places."""
    cache = DynamicCache()
    if prefix is None:
        return cache, None
    rows = len(prefix.memories)
    memories = prefix.memories.to(device=base.device, dtype=base.dtype)
    sink = base.sink_memory.expand(rows, -1, -1, -1, -1, -1)
    before = torch.cat([sink, memories], dim=4)  # of all layers at once
    for layer, states in enumerate(before.unbind(1)):
        cache.update(states[:, 0], states[:, 1], layer)
    sink_B1 = torch.zeros(rows, 1, device=base.device)
    return cache, torch.cat([sink_B1, prefix.log_weights_BP.to(base.device)], dim=1)


def _mask(before_BP: Tensor, valid_BT: Tensor, dtype: torch.dtype) -> Tensor:
    """Additive mask (B, 1, T, P + T) of prompts after their prefixes."""
    T = valid_BT.shape[1]
    lowest = torch.finfo(dtype).min
    causal_TT = torch.ones(T, T, dtype=torch.bool, device=valid_BT.device).tril()
    own = torch.zeros(len(valid_BT), T, T, dtype=dtype, device=valid_BT.device)
    own = own.masked_fill(~(causal_TT & valid_BT[:, None]), lowest)
    before = before_BP.to(dtype).clamp(min=lowest)[:, None].expand(-1, T, -1)
    return torch.cat([before, own], dim=-1)[:, None]
