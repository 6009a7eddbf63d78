"""The Triton kernels of `short.py`: forward, and backward for queries and for keys.

Every program takes one segment and one key/value head, and a tile of its queries or keys. Rows of
a tile of queries are token by token, in each the heads that share the keys. Pointers are named for
what they point at.

Shape legend: M rows of a tile of queries, N keys of a tile, E head size, H query heads, G key/value
heads.
"""

# ruff: noqa: ANN001, ANN201, ANN202, PLR0913, PLR0917
# mypy: disable-error-code="no-untyped-def, untyped-decorator, import-not-found, import-untyped"

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _rows(states, row_X, row_stride, head, head_stride, inside_X, E: tl.constexpr):
    """Some rows of `states` (rows, heads, E), each at a head of its own or all at one: (X, E)."""
    places_X = row_X.to(tl.int64) * row_stride + head * head_stride
    places_XE = places_X[:, None] + tl.arange(0, E)[None, :]
    return tl.load(states + places_XE, mask=inside_X[:, None], other=0.0)


@triton.jit
def _scores(
    query_ME, key, biases, first, j_N, tokens, more, t_M, valid_M, scaling,
    key_row, key_head, g, E: tl.constexpr, BIASED: tl.constexpr,
):  # fmt: skip
    """Scores of a tile, −∞ where a query doesn't see a key; and the keys."""
    inside_N = j_N < more + tokens
    key_NE = _rows(key, first + j_N, key_row, g, key_head, inside_N, E)
    scores_MN = tl.dot(query_ME, tl.trans(key_NE), input_precision="ieee") * scaling
    if BIASED:
        scores_MN += tl.load(biases + first + j_N, mask=inside_N, other=0.0)[None, :]
    seen_MN = (j_N[None, :] <= more + t_M[:, None]) & valid_M[:, None]
    return tl.where(seen_MN, scores_MN, float("-inf")), key_NE


@triton.jit
def forward(
    query, key, value, biases, output, sums, query_bounds, key_bounds,
    query_row, query_head, key_row, key_head, value_row, value_head, scaling,
    H: tl.constexpr, SHARED: tl.constexpr, E: tl.constexpr, BIASED: tl.constexpr,
    TILE_M: tl.constexpr, TILE_N: tl.constexpr,
):  # fmt: skip
    """Outputs of a tile of queries, and the logarithms of their sums."""
    segment, g, tile = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    begin = tl.load(query_bounds + segment)
    tokens = tl.load(query_bounds + segment + 1) - begin
    if tile * TILE_M >= tokens * SHARED:
        return
    first = tl.load(key_bounds + segment)
    more = tl.load(key_bounds + segment + 1) - first - tokens  # keys before the segment's own
    m_M = tile * TILE_M + tl.arange(0, TILE_M)
    t_M, h_M, valid_M = m_M // SHARED, g * SHARED + m_M % SHARED, m_M < tokens * SHARED
    e_E = tl.arange(0, E)
    row_M = (begin + t_M).to(tl.int64)
    query_ME = _rows(query, row_M, query_row, h_M, query_head, valid_M, E)
    highest_M = tl.full([TILE_M], -1e30, tl.float32)
    sum_M = tl.zeros([TILE_M], tl.float32)
    output_ME = tl.zeros([TILE_M, E], tl.float32)
    last = tl.minimum((tile * TILE_M + TILE_M - 1) // SHARED, tokens - 1)
    for start in range(0, more + last + 1, TILE_N):
        j_N = start + tl.arange(0, TILE_N)
        scores_MN, _ = _scores(
            query_ME, key, biases, first, j_N, tokens, more, t_M, valid_M, scaling,
            key_row, key_head, g, E, BIASED,
        )  # fmt: skip
        value_NE = _rows(value, first + j_N, value_row, g, value_head, j_N < more + tokens, E)
        higher_M = tl.maximum(highest_M, tl.max(scores_MN, 1))
        shares_MN = tl.exp(scores_MN - higher_M[:, None])
        kept_M = tl.exp(highest_M - higher_M)
        sum_M = sum_M * kept_M + tl.sum(shares_MN, 1)
        output_ME = output_ME * kept_M[:, None] + tl.dot(
            shares_MN.to(value_NE.dtype), value_NE, input_precision="ieee"
        )
        highest_M = higher_M
    places_M = row_M * H + h_M
    sum_M = tl.where(valid_M, sum_M, 1.0)
    tl.store(
        output + places_M[:, None] * E + e_E[None, :],
        (output_ME / sum_M[:, None]).to(output.dtype.element_ty), mask=valid_M[:, None],
    )  # fmt: skip
    tl.store(sums + places_M, highest_M + tl.log(sum_M), mask=valid_M)


@triton.jit
def _queries(
    query, output, gradient, sums, begin, tokens, m_M, g, query_row, query_head,
    H: tl.constexpr, SHARED: tl.constexpr, E: tl.constexpr,
):  # fmt: skip
    """What the backward pass needs of a tile of queries."""
    t_M, h_M, valid_M = m_M // SHARED, g * SHARED + m_M % SHARED, m_M < tokens * SHARED
    e_E = tl.arange(0, E)
    row_M = (begin + t_M).to(tl.int64)
    places_M = row_M * H + h_M
    mask, places_ME = valid_M[:, None], places_M[:, None] * E + e_E[None, :]
    query_ME = _rows(query, row_M, query_row, h_M, query_head, valid_M, E)
    gradient_ME = tl.load(gradient + places_ME, mask=mask, other=0.0)
    output_ME = tl.load(output + places_ME, mask=mask, other=0.0)
    along_M = tl.sum(gradient_ME.to(tl.float32) * output_ME.to(tl.float32), 1)
    sums_M = tl.load(sums + places_M, mask=valid_M, other=0.0)
    return t_M, valid_M, places_ME, query_ME, gradient_ME, along_M, sums_M


@triton.jit
def backward_queries(
    query, key, value, biases, output, gradient, sums, query_gradient, query_bounds, key_bounds,
    query_row, query_head, key_row, key_head, value_row, value_head, scaling,
    H: tl.constexpr, SHARED: tl.constexpr, E: tl.constexpr, BIASED: tl.constexpr,
    TILE_M: tl.constexpr, TILE_N: tl.constexpr,
):  # fmt: skip
    """Gradients of a tile of queries."""
    segment, g, tile = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    begin = tl.load(query_bounds + segment)
    tokens = tl.load(query_bounds + segment + 1) - begin
    if tile * TILE_M >= tokens * SHARED:
        return
    first = tl.load(key_bounds + segment)
    more = tl.load(key_bounds + segment + 1) - first - tokens
    t_M, valid_M, places_ME, query_ME, gradient_ME, along_M, sums_M = _queries(
        query, output, gradient, sums, begin, tokens, tile * TILE_M + tl.arange(0, TILE_M), g,
        query_row, query_head, H, SHARED, E,
    )  # fmt: skip
    sum_ME = tl.zeros([TILE_M, E], tl.float32)
    last = tl.minimum((tile * TILE_M + TILE_M - 1) // SHARED, tokens - 1)
    for start in range(0, more + last + 1, TILE_N):
        j_N = start + tl.arange(0, TILE_N)
        scores_MN, key_NE = _scores(
            query_ME, key, biases, first, j_N, tokens, more, t_M, valid_M, scaling,
            key_row, key_head, g, E, BIASED,
        )  # fmt: skip
        value_NE = _rows(value, first + j_N, value_row, g, value_head, j_N < more + tokens, E)
        shares_MN = tl.exp(scores_MN - sums_M[:, None])
        wanted_MN = tl.dot(gradient_ME, tl.trans(value_NE), input_precision="ieee")
        moved_MN = shares_MN * (wanted_MN - along_M[:, None])
        sum_ME += tl.dot(moved_MN.to(key_NE.dtype), key_NE, input_precision="ieee")
    tl.store(
        query_gradient + places_ME, (sum_ME * scaling).to(query_gradient.dtype.element_ty),
        mask=valid_M[:, None],
    )  # fmt: skip


@triton.jit
def backward_keys(
    query, key, value, biases, output, gradient, sums, key_gradient, value_gradient,
    biases_gradient, query_bounds, key_bounds,
    query_row, query_head, key_row, key_head, value_row, value_head, scaling,
    H: tl.constexpr, SHARED: tl.constexpr, E: tl.constexpr, BIASED: tl.constexpr,
    TILE_M: tl.constexpr, TILE_N: tl.constexpr,
):  # fmt: skip
    """Gradients of a tile of keys and values, and of the biases."""
    segment, g, tile = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    first = tl.load(key_bounds + segment)
    keys = tl.load(key_bounds + segment + 1) - first
    if tile * TILE_N >= keys:
        return
    begin = tl.load(query_bounds + segment)
    tokens = tl.load(query_bounds + segment + 1) - begin
    more = keys - tokens
    j_N = tile * TILE_N + tl.arange(0, TILE_N)
    e_E = tl.arange(0, E)
    place_N = first + j_N
    mask = (j_N < keys)[:, None]
    value_NE = _rows(value, place_N, value_row, g, value_head, j_N < keys, E)
    key_sum_NE = tl.zeros([TILE_N, E], tl.float32)
    value_sum_NE = tl.zeros([TILE_N, E], tl.float32)
    bias_sum_N = tl.zeros([TILE_N], tl.float32)
    # queries before the tile's first key see none of it
    earliest = tl.maximum(tile * TILE_N - more, 0) * SHARED // TILE_M * TILE_M
    for start in range(earliest, tokens * SHARED, TILE_M):
        t_M, valid_M, _, query_ME, gradient_ME, along_M, sums_M = _queries(
            query, output, gradient, sums, begin, tokens, start + tl.arange(0, TILE_M), g,
            query_row, query_head, H, SHARED, E,
        )  # fmt: skip
        scores_MN, _ = _scores(
            query_ME, key, biases, first, j_N, tokens, more, t_M, valid_M, scaling,
            key_row, key_head, g, E, BIASED,
        )  # fmt: skip
        shares_MN = tl.exp(scores_MN - sums_M[:, None])
        value_sum_NE += tl.dot(
            tl.trans(shares_MN.to(gradient_ME.dtype)), gradient_ME, input_precision="ieee"
        )
        wanted_MN = tl.dot(gradient_ME, tl.trans(value_NE), input_precision="ieee")
        moved_MN = shares_MN * (wanted_MN - along_M[:, None])
        key_sum_NE += tl.dot(
            tl.trans(moved_MN.to(query_ME.dtype)), query_ME, input_precision="ieee"
        )
        if BIASED:
            bias_sum_N += tl.sum(moved_MN, 0)
    G: tl.constexpr = H // SHARED
    places_NE = (place_N * G + g)[:, None] * E + e_E[None, :]
    tl.store(
        key_gradient + places_NE, (key_sum_NE * scaling).to(key_gradient.dtype.element_ty),
        mask=mask,
    )  # fmt: skip
    tl.store(
        value_gradient + places_NE, value_sum_NE.to(value_gradient.dtype.element_ty), mask=mask
    )
    if BIASED:
        tl.store(biases_gradient + place_N * G + g, bias_sum_N, mask=j_N < keys)
