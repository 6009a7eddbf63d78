"""Packed attention in padded rectangles: every group laid out as (B, T), then one product each.

Works on any device and in any float type; `varlen.py` is faster where it can be had.

Shape legend: N packed tokens, B segments of a group, T longest segment, M memories read by
a segment, K tokens of a memory, D documents compressed, H query heads, G key/value heads,
E head size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from cmt.attention.packing import Group, Packing

_KV = tuple[Tensor, Tensor]


class Rectangles:
    """One packed pass, padded; what all its layers share.

    Attributes:
        masks: For each group what is added to attention scores, or None: plainly causal.
    """

    def __init__(
        self, packing: Packing, memories: Tensor | None, sink: bool, dtype: torch.dtype
    ) -> None:
        """Make the masks.

        Args:
            packing: The layout.
            memories: One layer's keys (D, K, G, E), for their shape; None: none are read.
            sink: Whether an attention sink stands before everything.
            dtype: Of the queries.
        """
        self._groups, self._inverse_N = packing.groups, packing.inverse_N
        self._index, self._valid = packing.rectangles()
        tokens = 0 if memories is None else memories.shape[1]
        self.masks = tuple(
            _mask(group, tokens, sink, dtype) if memories is not None or sink else None
            for group in self._groups
        )
        self._choices = tuple(_choice(group, memories, dtype) for group in self._groups)

    def attend(
        self,
        rows: tuple[Tensor, Tensor, Tensor],
        prefix: _KV | None,
        sink: _KV | None,
        scaling: float,
    ) -> Tensor:
        """Output (N, H, E) of queries (N, H, E), keys and values (N, G, E)."""
        flat: list[Tensor] = [
            _ToRectangle.apply(row, self._index, self._inverse_N)  # type: ignore[no-untyped-call]
            for row in rows
        ]
        outputs, offset = [], 0
        for number, group in enumerate(self._groups):
            B, T = group.index_BT.shape
            part = [states[offset : offset + B * T].unflatten(0, (B, T)) for states in flat]
            outputs.append(self._attend(number, part, prefix, sink, scaling).flatten(0, 1))
            offset += B * T
        row: Tensor = _ToRow.apply(  # type: ignore[no-untyped-call]
            torch.cat(outputs), self._inverse_N, self._index, self._valid
        )
        return row

    def _attend(
        self, number: int, part: list[Tensor], prefix: _KV | None, sink: _KV | None, scaling: float
    ) -> Tensor:
        """Attention of one group: queries (B, T, H, E) to a (B, T, H, E) output."""
        group, mask = self._groups[number], self.masks[number]
        query, key, value = part
        before: list[list[Tensor]] = []
        if sink is not None:
            before.append([s[None].expand(query.shape[0], -1, -1, -1) for s in sink])
        if prefix is not None and group.memories_BM is not None:
            memories = group.memories_BM
            rows, choice = memories.flatten(), self._choices[number]
            chosen = [_choose(p.to(key.dtype), rows, choice) for p in prefix]
            before.append([c.unflatten(0, memories.shape).flatten(1, 2) for c in chosen])
        if before:
            key = torch.cat([*(pair[0].to(key.dtype) for pair in before), key], dim=1)
            value = torch.cat([*(pair[1].to(key.dtype) for pair in before), value], dim=1)
        groups = query.shape[2] // key.shape[2]
        if mask is not None and groups > 1:  # kernels that take a mask want every head spelt out
            key, value = key.repeat_interleave(groups, 2), value.repeat_interleave(groups, 2)
            groups = 1
        output = functional.scaled_dot_product_attention(
            query.transpose(1, 2),
            key.transpose(1, 2),
            value.transpose(1, 2),
            attn_mask=mask,
            is_causal=mask is None,
            scale=scaling,
            enable_gqa=groups > 1,
        )
        return output.transpose(1, 2)


def _mask(group: Group, memory_tokens: int, sink: bool, dtype: torch.dtype) -> Tensor:
    """Additive mask (B, 1, T, sink + M·K + T): memories weighted, own tokens causal."""
    B, T = group.index_BT.shape
    device = group.index_BT.device
    lowest = torch.finfo(dtype).min
    causal_TT = torch.full((T, T), lowest, dtype=dtype, device=device).triu(1)
    parts = [causal_TT.expand(B, T, T)]
    if group.memories_BM is not None:
        M = group.memories_BM.shape[1]
        weights_BM = group.weights_BM
        if weights_BM is None:
            weights_BM = torch.zeros(B, M, device=device)
        tokens = weights_BM.to(dtype).clamp(min=lowest).repeat_interleave(memory_tokens, 1)
        parts.insert(0, tokens[:, None].expand(B, T, M * memory_tokens))
    if sink:
        parts.insert(0, torch.zeros(B, T, 1, dtype=dtype, device=device))
    return torch.cat(parts, dim=-1)[:, None]


def _choice(group: Group, memories: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """Which memory (a column) each place (a row) takes, as ones and zeros, for a gradient."""
    if memories is None or group.memories_BM is None or not torch.is_grad_enabled():
        return None
    return functional.one_hot(group.memories_BM.flatten(), len(memories)).to(dtype)


def _choose(memories: Tensor, chosen: Tensor, choice: Tensor | None) -> Tensor:
    """Rows of `memories` by number."""
    if choice is None:
        return memories[chosen]
    rows: Tensor = _Choose.apply(memories, chosen, choice)  # type: ignore[no-untyped-call]
    return rows


class _ToRectangle(torch.autograd.Function):
    """Packed rows to a padded rectangle. Its gradient is a gather too, never a scatter."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, index: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(inverse)
        return rows[index]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (inverse,) = ctx.saved_tensors
        return gradient[inverse], None, None


class _Choose(torch.autograd.Function):
    """Rows of `memories` by number. Its gradient is one product with the choice, no scatter.

    Hundreds of questions read the same few memories; a scatter would take them one by one.
    """

    @staticmethod
    def forward(ctx: Any, memories: Tensor, chosen: Tensor, choice: Tensor) -> Tensor:
        ctx.save_for_backward(choice)
        return memories[chosen]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (choice,) = ctx.saved_tensors
        return summed(gradient, choice), None, None


def summed(gradient: Tensor, choice: Tensor) -> Tensor:
    """Gradients of chosen rows, added up for each row that they were chosen from."""
    total: Tensor = choice.to(gradient.dtype).T @ gradient.flatten(1)
    return total.view(len(total), *gradient.shape[1:])


class _ToRow(torch.autograd.Function):
    """A padded rectangle back to packed rows; padding gets a zero gradient."""

    @staticmethod
    def forward(ctx: Any, flat: Tensor, inverse: Tensor, index: Tensor, valid: Tensor) -> Tensor:
        ctx.save_for_backward(index, valid)
        return flat[inverse]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        index, valid = ctx.saved_tensors
        return gradient[index] * valid[:, None, None], None, None, None
