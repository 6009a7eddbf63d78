"""Packed attention in kernels for segments of variable length: nothing is padded.

A segment's keys are `[sink; its memories; its own]`, all segments one after another in a row
that one gather lays out. Kernels align causality at the end, so that a segment's queries see
everything before its own tokens. Groups of short segments run in kernels of our own (`short.py`),
the others in flash attention for variable lengths. A memory's weight w is a bias log w on its
scores; flash attention takes no bias, so there it rides in eight further places of the head:
q·k + log w = [q; 1; 1; 0…]·[k; hi; lo; 0…], hi + lo = log w in two half-precision numbers.

Shape legend: N packed tokens, S keys of all segments in a row, B segments of a group, T longest
segment, M memories read by a segment, K tokens of a memory, D documents compressed, H query
heads, G key/value heads, E head size.

(Past 300 lines: the layout, forward and backward, and who attends over it, each meaningless alone.)
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention.varlen import varlen_attn

from cmt.attention.packing import Group, Packing
from cmt.attention.rectangles import summed

_KV = tuple[Tensor, Tensor]

FURTHER = 8
"""Places of the head that a bias takes: kernels want a multiple of eight."""
WIDEST = 256
"""Largest head of the kernels."""
LOWEST = -1e4
"""What stands for the logarithm of a weight of 0."""

# grouped heads are asked for by name in newer versions of torch and understood in older ones
_GROUPED: Any = (
    {"enable_gqa": True} if "enable_gqa" in inspect.signature(varlen_attn).parameters else {}
)


@dataclass(kw_only=True, slots=True)
class _Stretch:
    """Groups side by side that the same kernels take.

    Attributes:
        tokens, keys: How many in all.
        bounds: Where each segment begins in them, and where the last one ends.
        longest: Most tokens and most keys of a segment.
        short: Whether the kernels for short segments take them, if they take such heads.
        weighed: Whether some memory has a weight.
        columns: The weights, as flash attention takes them; made by the first layer.
    """

    tokens: int
    keys: int
    bounds: tuple[Tensor, Tensor]
    longest: tuple[int, int]
    short: bool
    weighed: bool
    columns: Tensor | None = None


class VariableLength:
    """One packed pass without padding; what all its layers share."""

    def __init__(
        self, packing: Packing, memories: Tensor | None, sink: bool, dtype: torch.dtype
    ) -> None:
        """Lay out the keys.

        Args:
            packing: The layout of the queries.
            memories: One layer's keys (D, K, G, E), for their shape; None: none are read.
            sink: Whether an attention sink stands before everything.
            dtype: Of the queries.
        """
        groups, inverse_N = packing.groups, packing.inverse_N
        device, N = inverse_N.device, len(inverse_N)
        self._plain = memories is None and not sink
        D, K = (0, 0) if memories is None else memories.shape[:2]
        before = [int(sink) + _read(group, memories) * K for group in groups]
        lengths = torch.cat([group.valid_BT.sum(1) for group in groups])
        more = torch.cat([
            torch.full((len(g.index_BT),), b, device=device)
            for g, b in zip(groups, before, strict=True)
        ])  # fmt: skip
        self._keys = _bounds(lengths + more)
        self._stretches = _stretches(groups, before, (_bounds(lengths), self._keys))
        self._log_weights_S: Tensor | None = None
        if self._plain:
            return
        S = N + sum(len(g.index_BT) * b for g, b in zip(groups, before, strict=True))
        self._lay_out(groups, inverse_N, before, (int(sink), D, K, S))
        chosen = [g.memories_BM.flatten() for g in groups if D and g.memories_BM is not None]
        self._choice: Tensor | None = None
        if chosen and torch.is_grad_enabled():
            self._choice = functional.one_hot(torch.cat(chosen), D).to(half(dtype))

    def _lay_out(
        self,
        groups: tuple[Group, ...],
        inverse_N: Tensor,
        before: list[int],
        sizes: tuple[int, int, int, int],
    ) -> None:
        """Where each key of the row comes from, and where own tokens and memories lie in it."""
        sink, D, K, S = sizes
        device, N = inverse_N.device, len(inverse_N)
        source_S = torch.zeros(S, dtype=torch.long, device=device)  # the sink's row is the first
        own: list[Tensor] = []
        memory_places, weighed_places, log_weights = [], [], []
        first = 0
        for group, more in zip(groups, before, strict=True):
            B, T = group.index_BT.shape
            starts_B1 = self._keys[first : first + B, None].long()
            first += B
            own.append((starts_B1 + more + torch.arange(T, device=device)).flatten())
            if not D or group.memories_BM is None:
                continue
            M = group.memories_BM.shape[1]
            places_BP = starts_B1 + sink + torch.arange(M * K, device=device)
            tokens_BMK = group.memories_BM[..., None] * K + torch.arange(K, device=device)
            source_S[places_BP.flatten()] = sink + tokens_BMK.flatten()
            memory_places.append(places_BP.flatten())
            if group.weights_BM is not None:
                weighed_places.append(places_BP.flatten())
                log_weights.append(group.weights_BM.float().repeat_interleave(K, 1).flatten())
        self._own_N = torch.cat(own)[inverse_N]
        source_S[self._own_N] = sink + D * K + torch.arange(N, device=device)
        self._source_S = source_S
        self._memories_P = torch.cat(memory_places) if memory_places else source_S[:0]
        if weighed_places:
            none_S = torch.zeros(S, device=device)
            weights = torch.cat(log_weights).clamp(min=LOWEST)
            self._log_weights_S = none_S.index_copy(0, torch.cat(weighed_places), weights)

    @staticmethod
    def serves(query: Tensor) -> bool:
        """Whether the kernels take queries (N, H, E) like this one."""
        E = query.shape[-1]
        return query.is_cuda and half(query.dtype).itemsize == 2 and not E % 8 and E < WIDEST

    def attend(
        self,
        rows: tuple[Tensor, Tensor, Tensor],
        prefix: _KV | None,
        sink: _KV | None,
        scaling: float,
    ) -> Tensor:
        """Output (N, H, E) of queries (N, H, E), keys and values (N, G, E)."""
        dtype = half(rows[0].dtype)
        query, key, value = (row.to(dtype) for row in rows)
        if not self._plain:
            key, value = (
                self._laid_out(own, prefix and prefix[i], sink and sink[i])
                for i, own in enumerate((key, value))
            )
        return self.attended(self._stretches, (query, key, value), self._log_weights_S, scaling)

    @classmethod
    def attended(
        cls,
        stretches: Sequence[_Stretch],
        rows: tuple[Tensor, Tensor, Tensor],
        log_weights_S: Tensor | None,
        scaling: float,
    ) -> Tensor:
        """Attention of stretches that lie side by side in `rows`."""
        if len(stretches) == 1:
            return cls._attended(stretches[0], rows, log_weights_S, scaling)
        query, key, value = rows
        sizes = [stretch.tokens for stretch in stretches]
        key_sizes = [stretch.keys for stretch in stretches]
        weights: Sequence[Tensor | None] = [None] * len(sizes)
        if log_weights_S is not None:
            weights = log_weights_S.split(key_sizes)
        parts = zip(query.split(sizes), key.split(key_sizes), value.split(key_sizes), strict=True)
        return torch.cat([
            cls._attended(stretch, part, own, scaling)
            for stretch, part, own in zip(stretches, parts, weights, strict=True)
        ])  # fmt: skip

    @staticmethod
    def _attended(
        stretch: _Stretch,
        rows: tuple[Tensor, Tensor, Tensor],
        log_weights_S: Tensor | None,
        scaling: float,
    ) -> Tensor:
        """Attention of some groups, each of `rows` their own."""
        if not stretch.weighed:
            log_weights_S = None
        E = rows[0].shape[-1]
        short = short_kernels() if stretch.short else None
        if short and E in short.SIZES:
            output: Tensor = short.short_attention(
                *rows, stretch.bounds, stretch.longest, scaling, log_weights_S
            )
            return output
        if log_weights_S is None:
            return _flash(stretch, rows, scaling)
        if stretch.columns is None:
            stretch.columns = _columns(log_weights_S / scaling, rows[0].dtype)
        query, key, value = rows
        ones = functional.pad(query.new_ones(2), (0, FURTHER - 2))
        query = torch.cat([query, ones.expand(*query.shape[:2], -1)], dim=-1)
        columns_SG = stretch.columns[:, None].expand(-1, key.shape[1], -1)
        key = torch.cat([key, columns_SG], dim=-1)
        return _flash(stretch, (query, key, functional.pad(value, (0, FURTHER))), scaling)[..., :E]

    def _laid_out(self, own: Tensor, memories: Tensor | None, sink: Tensor | None) -> Tensor:
        """Keys or values (N, G, E) of the segments, with what they read before them: (S, G, E)."""
        if memories is not None:
            memories = memories.to(own.dtype)
        laid: Tensor = _LayOut.apply(  # type: ignore[no-untyped-call]
            own, memories, None if sink is None else sink.to(own.dtype),
            self._source_S, self._own_N, self._memories_P, self._choice,
        )  # fmt: skip
        return laid


def _flash(stretch: _Stretch, rows: tuple[Tensor, Tensor, Tensor], scaling: float) -> Tensor:
    query, key, value = (part.contiguous() for part in rows)
    output = varlen_attn(
        query,
        key,
        value,
        stretch.bounds[0],
        stretch.bounds[1],
        stretch.longest[0],
        stretch.longest[1],
        scale=scaling,
        window_size=(-1, 0),  # causal
        **_GROUPED,
    )
    assert isinstance(output, Tensor)
    return output


def half(dtype: torch.dtype) -> torch.dtype:
    """The type that attention computes in: autocast's where it is on, else the queries' own."""
    return torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else dtype


def _stretches(
    groups: Sequence[Group], before: Sequence[int], bounds: tuple[Tensor, Tensor]
) -> list[_Stretch]:
    """Groups side by side, long ones and short ones apart; `before` are keys before their own."""
    short = short_kernels()
    longest = short.LONGEST if short else 0
    made, segment = [], 0
    pairs = zip(groups, before, strict=True)
    for is_short, some in groupby(pairs, lambda pair: pair[0].index_BT.shape[1] <= longest):
        own = list(some)
        segments = sum(len(group.index_BT) for group, _ in own)
        place = slice(segment, segment + segments + 1)
        lengths = [(group.index_BT.shape[1], more) for group, more in own]
        made.append(_Stretch(
            tokens=sum(group.tokens for group, _ in own),
            keys=sum(group.tokens + len(group.index_BT) * more for group, more in own),
            bounds=(
                bounds[0][place] - bounds[0][segment], bounds[1][place] - bounds[1][segment]
            ),
            longest=(max(n for n, _ in lengths), max(n + more for n, more in lengths)),
            short=is_short,
            weighed=any(group.weights_BM is not None for group, _ in own),
        ))  # fmt: skip
        segment += segments
    return made


def asked_stretch(asked: Group, group: Group) -> _Stretch:
    """One group of which each segment's last tokens, laid out by `asked`, are the queries."""
    short, longest = short_kernels(), group.index_BT.shape[1]
    return _Stretch(
        tokens=asked.tokens,
        keys=group.tokens,
        bounds=(_bounds(asked.valid_BT.sum(1)), _bounds(group.valid_BT.sum(1))),
        longest=(asked.index_BT.shape[1], longest),
        short=short is not None and longest <= short.LONGEST,
        weighed=False,
    )


@cache
def short_kernels() -> ModuleType | None:
    """Kernels for short segments; None where there is no Triton."""
    try:
        from cmt.attention import short
    except ImportError:
        return None
    return short


def _read(group: Group, memories: Tensor | None) -> int:
    """How many memories a segment of the group reads."""
    return 0 if memories is None or group.memories_BM is None else group.memories_BM.shape[1]


def _bounds(lengths: Tensor) -> Tensor:
    """Where each segment begins, and where the last one ends."""
    return functional.pad(lengths.cumsum(0), (1, 0)).int()


def _columns(biases_S: Tensor, dtype: torch.dtype) -> Tensor:
    """The further places of keys (S, 8) that add a bias to their scores."""
    high_S = biases_S.to(dtype)
    low_S = (biases_S - high_S.float()).to(dtype)
    return functional.pad(torch.stack([high_S, low_S], dim=1), (0, FURTHER - 2))


class _LayOut(torch.autograd.Function):
    """`[sink; memories; own]` by number; a row of its own but the sink's and the memories'.

    The gradient of own rows is a gather, that of memories one product with the choice, so
    nothing is scattered. The sink, of the frozen model, takes none.
    """

    @staticmethod
    def forward(
        ctx: Any,
        own: Tensor,
        memories: Tensor | None,
        sink: Tensor | None,
        source: Tensor,
        own_places: Tensor,
        memory_places: Tensor,
        choice: Tensor | None,
    ) -> Tensor:
        ctx.save_for_backward(own_places, memory_places, choice)
        ctx.memories = None if memories is None else memories.shape
        read = [] if memories is None else [memories.flatten(0, 1)]
        return torch.cat([*([] if sink is None else [sink]), *read, own])[source]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        own_places, memory_places, choice = ctx.saved_tensors
        memories = None
        if ctx.needs_input_grad[1]:
            _, K, *_ = ctx.memories
            read = gradient[memory_places].unflatten(0, (-1, K))
            memories = summed(read, choice)
        return gradient[own_places], memories, None, None, None, None, None
