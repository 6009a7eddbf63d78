"""Attention of short segments, in Triton: tiles as small as questions are.

Flash attention's kernels take queries and keys 128 at a time; its backward pass keeps sums of
128 rows a segment. A question has about 18 tokens and reads a memory of 32, so most of that is
padding. Here a program takes one segment and one key/value head: the queries of all heads that
share the keys stand in one tile, token by token, and a program of the backward pass owns its
keys, so nothing is added atomically and gradients are the same each time. A bias of each key is
added to its scores in float32.

Imported where it runs: Triton comes with torch's CUDA builds. With TRITON_INTERPRET=1 it runs on
a CPU, for the tests.

Shape legend: N packed tokens, S keys of all segments in a row, B segments, H query heads,
G key/value heads, E head size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cmt.attention import short_kernels as kernels

LONGEST = 128
"""Most tokens of a segment that these kernels take: longer ones fill flash attention's tiles."""
SIZES = (16, 32, 64, 128)
"""Head sizes that they take."""
_TILE_M, _TILE_N = 64, 32  # queries and keys at a time
_WARPS = 4


def short_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bounds: tuple[Tensor, Tensor],
    longest: tuple[int, int],
    scaling: float,
    biases_S: Tensor | None = None,
) -> Tensor:
    """Causal attention of segments, aligned at the end, as `varlen_attn` computes it.

    Args:
        query: (N, H, E), of one float type with `key` and `value`, (S, G, E).
        bounds: Where each segment begins among queries and among keys, and where the last one
            ends: each (B + 1,), int32.
        longest: Most queries and most keys of a segment.
        scaling: What scores are multiplied by.
        biases_S: Added to the scores of each key, float32; takes a gradient.

    Returns:
        (N, H, E), contiguous.
    """
    output: Tensor = _ShortAttention.apply(  # type: ignore[no-untyped-call]
        query, key, value, biases_S, bounds, longest, scaling
    )
    return output


class _ShortAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        biases_S: Tensor | None,
        bounds: tuple[Tensor, Tensor],
        longest: tuple[int, int],
        scaling: float,
    ) -> Tensor:
        query, key, value = (_rows(part) for part in (query, key, value))
        (N, H, E), G = query.shape, key.shape[1]
        output = query.new_empty(N, H, E)
        sums_NH = query.new_empty(N, H, dtype=torch.float32)
        grid = (len(bounds[0]) - 1, G, _tiles(longest[0] * (H // G), _TILE_M))
        kernels.forward[grid](
            query, key, value, biases_S, output, sums_NH, *bounds, *_strides(query, key, value),
            scaling, **_sizes(query, key, biases_S),
        )  # fmt: skip
        ctx.save_for_backward(query, key, value, biases_S, output, sums_NH, *bounds)
        ctx.longest, ctx.scaling = longest, scaling
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, biases_S, output, sums_NH, *bounds = ctx.saved_tensors
        (N, H, E), (S, G, _) = query.shape, key.shape
        gradient = gradient.contiguous()
        query_gradient = query.new_empty(N, H, E)
        key_gradient, value_gradient = key.new_empty(S, G, E), key.new_empty(S, G, E)
        biases_SG = None if biases_S is None else biases_S.new_empty(S, G)
        sizes = _sizes(query, key, biases_S)
        given = (query, key, value, biases_S, output, gradient, sums_NH)
        rest = (*bounds, *_strides(query, key, value), ctx.scaling)
        segments = len(bounds[0]) - 1
        kernels.backward_queries[segments, G, _tiles(ctx.longest[0] * (H // G), _TILE_M)](
            *given, query_gradient, *rest, **sizes
        )
        kernels.backward_keys[segments, G, _tiles(ctx.longest[1], _TILE_N)](
            *given, key_gradient, value_gradient, biases_SG, *rest, **sizes
        )
        biases = None if biases_SG is None else biases_SG.sum(1)
        return query_gradient, key_gradient, value_gradient, biases, None, None, None


def _sizes(query: Tensor, key: Tensor, biases_S: Tensor | None) -> dict[str, int]:
    """What the kernels are compiled for."""
    _, H, E = query.shape
    return {
        "H": H, "SHARED": H // key.shape[1], "E": E, "BIASED": biases_S is not None,
        "TILE_M": _TILE_M, "TILE_N": _TILE_N, "num_warps": _WARPS,
    }  # fmt: skip


def _tiles(rows: int, size: int) -> int:
    return -(-rows // size)


def _rows(states: Tensor) -> Tensor:
    return states if states.stride(-1) == 1 else states.contiguous()


def _strides(*parts: Tensor) -> list[int]:
    return [stride for part in parts for stride in part.stride()[:2]]
