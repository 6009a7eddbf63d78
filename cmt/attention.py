"""Packed attention: many segments, and the memories before them, in one row of tokens.

Documents and questions differ in length; padded to a rectangle, half the work of every
linear layer would be spent on nothing. Here all tokens of a pass lie in one row, and only
inside attention are they laid out as a rectangle, segment by segment. It is registered
with transformers as the attention implementation ``"cmt"``. A forward pass without the
keyword ``packed`` runs transformers' own ``sdpa``, to the bit.

Shape legend: N packed tokens, B segments of a group, T longest segment, M memories read by
a segment, K tokens of a memory, D documents compressed, H query heads, G key/value heads,
E head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

IMPLEMENTATION = "cmt"

LayerKV = tuple[Tensor, Tensor]
"""Keys and values of one layer."""


def any_shape() -> AbstractContextManager[None]:
    """Leave cuDNN's attention out: it builds a plan for each new shape, which takes longer."""
    return sdpa_kernel(
        [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    )


@dataclass(kw_only=True, slots=True)
class Group:
    """Segments attended together, laid out as a (B, T) rectangle, padded on the right.

    Attributes:
        index_BT: Packed position of each token; padding repeats the segment's first token.
        valid_BT: False at padding.
        memories_BM: Which memories each segment reads; None: it reads none.
        weights_BM: Logarithm of each memory's weight, added to its attention scores.
    """

    index_BT: Tensor
    valid_BT: Tensor
    memories_BM: Tensor | None = None
    weights_BM: Tensor | None = None


@dataclass(kw_only=True, slots=True)
class Packing:
    """How a row of N tokens falls into groups; `inverse_N` leads back from rectangles to it."""

    groups: tuple[Group, ...]
    inverse_N: Tensor

    def rectangles(self) -> tuple[Tensor, Tensor]:
        """`index_BT` and `valid_BT` of all groups, each in one row."""
        index = torch.cat([group.index_BT.flatten() for group in self.groups])
        return index, torch.cat([group.valid_BT.flatten() for group in self.groups])


def pack(lengths: Sequence[Sequence[int]], device: torch.device | str = "cpu") -> Packing:
    """Lay out segments of the given lengths, one sequence of lengths a group, in packed order."""
    groups, inverse = [], []
    start, offset = 0, 0
    for group in lengths:
        if not group:
            continue
        lengths_B = torch.tensor(group)
        longest = int(lengths_B.max())
        starts_B = start + lengths_B.cumsum(0) - lengths_B
        places_T = torch.arange(longest)
        valid_BT = places_T[None] < lengths_B[:, None]
        index_BT = starts_B[:, None] + torch.where(valid_BT, places_T[None], 0)
        rows_BT = offset + torch.arange(valid_BT.numel()).view_as(valid_BT)
        inverse.append(rows_BT[valid_BT])
        groups.append(Group(index_BT=index_BT.to(device), valid_BT=valid_BT.to(device)))
        start += int(lengths_B.sum())
        offset += valid_BT.numel()
    return Packing(groups=tuple(groups), inverse_N=torch.cat(inverse).to(device))


@dataclass
class LayerPass:
    """What the attention of one layer needs in a packed pass, and what it hands back.

    Attributes:
        index, valid: `Packing.rectangles()`.
        choices: For each group, which memory (a column) each place (a row) takes, as ones and
            zeros; None where it reads none, or no gradient is wanted.
        prefix: Memories to read, each of shape (D, K, G, E).
        sink: Attention sink put before everything, each of shape (1, G, E).
        capture: Packed positions whose keys and values are wanted.
        captured: Those keys and values after the pass, each (len(capture), G, E).
    """

    packing: Packing
    index: Tensor
    valid: Tensor
    masks: tuple[Tensor | None, ...]
    choices: tuple[Tensor | None, ...]
    prefix: LayerKV | None = None
    sink: LayerKV | None = None
    capture: Tensor | None = None
    captured: LayerKV | None = None


@dataclass(kw_only=True)
class PackedPass:
    """One packed forward pass through every layer of a model.

    Attributes:
        prefix: A layer's memories, keys and values each (D, K, G, E), for every layer.
        sink: A layer's attention sink, each (1, G, E), for every layer.
        capture: Packed positions whose keys and values every layer hands back.
    """

    packing: Packing
    prefix: Sequence[LayerKV] | None = None
    sink: Sequence[LayerKV] | None = None
    capture: Tensor | None = None
    layers: list[LayerPass] = field(default_factory=list)

    def start(self, layers: int, dtype: torch.dtype) -> None:
        """Make ready for a pass: the masks once, shared by all layers."""
        masks = tuple(
            _mask(group, self._prefix_tokens(), self.sink is not None, dtype)
            if self.prefix is not None or self.sink is not None
            else None
            for group in self.packing.groups
        )
        index, valid = self.packing.rectangles()
        choices = tuple(self._choice(group, dtype) for group in self.packing.groups)
        self.layers = [
            LayerPass(
                self.packing,
                index,
                valid,
                masks,
                choices,
                prefix=None if self.prefix is None else self.prefix[i],
                sink=None if self.sink is None else self.sink[i],
                capture=self.capture,
            )
            for i in range(layers)
        ]

    def _choice(self, group: Group, dtype: torch.dtype) -> Tensor | None:
        if self.prefix is None or group.memories_BM is None or not torch.is_grad_enabled():
            return None
        return functional.one_hot(group.memories_BM.flatten(), len(self.prefix[0][0])).to(dtype)

    def _prefix_tokens(self) -> int:
        return 0 if self.prefix is None else self.prefix[0][0].shape[1]

    @property
    def captured(self) -> list[LayerKV]:
        """Keys and values at `capture`, a pair for every layer."""
        pairs = [layer.captured for layer in self.layers]
        assert all(pair is not None for pair in pairs), "the pass has not run"
        return [pair for pair in pairs if pair is not None]


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
        summed = choice.to(gradient.dtype).T @ gradient.flatten(1)
        return summed.unflatten(1, gradient.shape[1:]), None, None


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


def packed_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    packed: LayerPass | None = None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention of a transformers model; `query` (1, H, N, E), `key` and `value` (1, G, N, E).

    Returns:
        Output of shape (1, N, H, E), and None for the attention weights.
    """
    if packed is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **kwargs
        )
    rows = [states[0].transpose(0, 1) for states in (query, key, value)]
    if packed.capture is not None:
        packed.captured = rows[1][packed.capture], rows[2][packed.capture]
    packing = packed.packing
    flat: list[Tensor] = [
        _ToRectangle.apply(row, packed.index, packing.inverse_N)  # type: ignore[no-untyped-call]
        for row in rows
    ]
    outputs, offset = [], 0
    for number, group in enumerate(packing.groups):
        B, T = group.index_BT.shape
        part = [states[offset : offset + B * T].unflatten(0, (B, T)) for states in flat]
        outputs.append(_attend(module, part, number, packed, scaling).flatten(0, 1))
        offset += B * T
    row: Tensor = _ToRow.apply(  # type: ignore[no-untyped-call]
        torch.cat(outputs), packing.inverse_N, packed.index, packed.valid
    )
    return row[None], None


def _choose(memories: Tensor, chosen: Tensor, choice: Tensor | None) -> Tensor:
    """Rows of `memories` by number."""
    if choice is None:
        return memories[chosen]
    rows: Tensor = _Choose.apply(memories, chosen, choice)  # type: ignore[no-untyped-call]
    return rows


def _attend(
    module: torch.nn.Module,
    part: list[Tensor],
    number: int,
    packed: LayerPass,
    scaling: float | None,
) -> Tensor:
    """Attention of one group: queries (B, T, H, E) to a (B, T, H, E) output."""
    group, mask = packed.packing.groups[number], packed.masks[number]
    query, key, value = part
    before: list[list[Tensor]] = []
    if packed.sink is not None:
        before.append([s[None].expand(query.shape[0], -1, -1, -1) for s in packed.sink])
    if packed.prefix is not None and group.memories_BM is not None:
        memories = group.memories_BM
        rows, choice = memories.flatten(), packed.choices[number]
        chosen = [_choose(p.to(key.dtype), rows, choice) for p in packed.prefix]
        before.append([c.unflatten(0, memories.shape).flatten(1, 2) for c in chosen])
    if before:
        key = torch.cat([*(pair[0].to(key.dtype) for pair in before), key], dim=1)
        value = torch.cat([*(pair[1].to(key.dtype) for pair in before), value], dim=1)
    groups = getattr(module, "num_key_value_groups", 1)
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


AttentionInterface.register(IMPLEMENTATION, packed_attention)
AttentionMaskInterface.register(IMPLEMENTATION, sdpa_mask)
