"""Rows of tokens that the frozen model reads on: prompts after their prefixes, token by token.

In a cache that grows, or on a GPU, where memory is read, in buffers of fixed shape (replaying.py).
Prompts are padded on the left, prefixes masked, so that a question answered in a batch is the
question answered alone.

Shape legend: B rows, b of them that are kept, T longest prompt, P prefix tokens (sink included), V
vocabulary, L layers, G key/value heads, E head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional
from transformers import DynamicCache

from cmt import replaying
from cmt.aggregation import Prefix
from cmt.attention import any_shape
from cmt.base_model import BaseModel
from cmt.padding import additive_mask, left_padded, padded_positions


class Rows(Protocol):
    """Prompts that are read, and what comes next of each."""

    def logits(self) -> Tensor:
        """Read what comes next, give the logits (B, V) of the token after it."""

    def read(self, tokens_B: Tensor) -> None:
        """What comes next is a token of each row."""

    def close(self) -> None:
        """Nothing more is read."""


def rows(
    base: BaseModel,
    prompts: Sequence[Sequence[int]],
    prefix: Prefix | None,
    start: int,
    further: int,
    *,
    replayed: bool | None = None,
) -> Rows:
    """Begin with `prompts`, each after its row of `prefix`.

    Args:
        base: The frozen model.
        prompts: Token ids.
        prefix: Read before each; None: the plain model, to the bit.
        start: Position of a prompt's first token.
        further: Tokens that are read after each prompt, at most.
        replayed: Whether passes may be of fixed shape, where that is faster; None: where a prefix
            is read.
    """
    may = prefix is not None if replayed is None else replayed
    if may and replaying.serves(base, len(prompts)):
        return FixedRows(base, prompts, prefix, start, further)
    return GrowingRows(base, prompts, prefix, start)


class GrowingRows:
    """Rows of any shape: what was read is in a cache of transformers' own."""

    def __init__(
        self,
        base: BaseModel,
        prompts: Sequence[Sequence[int]],
        prefix: Prefix | None,
        start: int,
    ) -> None:
        """As `rows`."""
        self._base = base
        filler = base.tokenizer.eos_token_id or 0
        self._tokens_BT, self._valid_BT = left_padded(prompts, filler, base.device)
        self._positions_BT = padded_positions(self._valid_BT, start)
        self._cache, self._mask = DynamicCache(), None
        if prefix is not None:
            states, log_weights_BP = _with_sink(base, prefix)
            for layer, own in enumerate(states.unbind(1)):
                self._cache.update(own[:, 0], own[:, 1], layer)
            self._mask = additive_mask(log_weights_BP, self._valid_BT, base.dtype)

    def logits(self) -> Tensor:
        """Read what comes next, give the logits (B, V) of the token after it."""
        given = {
            "input_ids": self._tokens_BT,
            "position_ids": self._positions_BT,
            "past_key_values": self._cache,
            "use_cache": True,
        }
        logits_BV: Tensor
        if self._mask is None:  # without memory: the model as it is
            mask = self._valid_BT.long()
            output = self._base.model(attention_mask=mask, logits_to_keep=1, **given)
            logits_BV = output.logits[:, -1]
            return logits_BV
        with any_shape():
            output = self._base.decoder(attention_mask=self._mask, **given)
        return self._base.logits(output.last_hidden_state[:, -1])

    def read(self, tokens_B: Tensor) -> None:
        """What comes next is a token of each row."""
        number = len(tokens_B)
        self._tokens_BT = tokens_B[:, None]
        self._positions_BT = self._positions_BT[:, -1:] + 1
        self._valid_BT = torch.cat([self._valid_BT, self._valid_BT.new_ones(number, 1)], dim=1)
        if self._mask is not None:  # the new token sees what the last one saw, and itself
            seen = self._mask[:, :, -1:]
            self._mask = torch.cat([seen, seen.new_zeros(number, 1, 1, 1)], dim=-1)

    def keep(self, rows_b: Tensor) -> None:
        """Read on of these rows alone, in this order."""
        self._cache.batch_select_indices(rows_b)
        self._tokens_BT, self._valid_BT = self._tokens_BT[rows_b], self._valid_BT[rows_b]
        self._positions_BT = self._positions_BT[rows_b]
        if self._mask is not None:
            self._mask = self._mask[rows_b]

    def close(self) -> None:
        """Nothing to leave to others."""


class FixedRows:
    """Rows of a fixed shape, for a GPU with little to do."""

    def __init__(
        self,
        base: BaseModel,
        prompts: Sequence[Sequence[int]],
        prefix: Prefix | None,
        start: int,
        further: int,
    ) -> None:
        """As `rows`."""
        self._base = base
        states, log_weights_BP = (None, None) if prefix is None else _with_sink(base, prefix)
        self._reading = replaying.FixedReading(
            base,
            prompts,
            start=start,
            prefix=states,
            log_weights_nP=log_weights_BP,
            further=further,
        )
        self._tokens_B: Tensor | None = None

    def logits(self) -> Tensor:
        """Read what comes next, give the logits (B, V) of the token after it."""
        if self._tokens_B is None:
            return self._base.logits(self._reading.hidden()[:, -1])
        return self._base.logits(self._reading.next_hidden(self._tokens_B))

    def read(self, tokens_B: Tensor) -> None:
        """What comes next is a token of each row."""
        self._tokens_B = tokens_B

    def close(self) -> None:
        """Leave the buffers to others."""
        self._reading.close()


def _with_sink(base: BaseModel, prefix: Prefix) -> tuple[Tensor, Tensor]:
    """Sink and prefix of every row, (B, L, 2, G, P, E), and the log-weights (B, P) of both."""
    log_weights_BP = functional.pad(prefix.log_weights_BP.to(base.device), (1, 0))
    return base.after_sink(prefix.memories), log_weights_BP
