"""Prefixes of several memories: places, weights, padding."""

from __future__ import annotations

import math

import pytest
import torch

from cmt.aggregation import aggregate, aggregate_resident, matching_weights
from cmt.errors import InputError


def memory(tokens: int, fill: float = 0.0) -> torch.Tensor:
    """(L, 2, G, K, E) with L = 2, G = 3, E = 5."""
    return torch.randn(2, 2, 3, tokens, 5) + fill


def test_matching_weights_by_hand() -> None:
    weights = matching_weights([0.9, 0.4], 10.0)
    share = 1 / (1 + math.exp(10 * (0.4 - 0.9)))
    assert weights.tolist() == pytest.approx([share, 1 - share])
    assert matching_weights([0.3], 20.0).tolist() == [1.0]
    rows = matching_weights(torch.tensor([[0.9, 0.4], [0.1, 0.1]]), 10.0)
    assert rows[1].tolist() == [0.5, 0.5]


def test_ragged_numbers_and_lengths() -> None:
    a, b, c = memory(4), memory(2), memory(7)
    prefix = aggregate([[a, b], [c], [b]], [[0.25, 0.75], torch.tensor([1.0]), [0.5]])
    assert prefix.memories.shape == (3, 2, 2, 3, 7, 5)
    assert prefix.tokens == (6, 7, 2)
    assert torch.equal(prefix.memories[0, ..., :4, :], a)
    assert torch.equal(prefix.memories[0, ..., 4:6, :], b)
    assert torch.equal(prefix.memories[1], c)
    assert torch.equal(prefix.memories[2, ..., :2, :], b)
    logs = prefix.log_weights_BP.tolist()
    nothing = -math.inf
    assert logs[0] == pytest.approx([math.log(0.25)] * 4 + [math.log(0.75)] * 2 + [nothing])
    assert logs[1] == [0.0] * 7
    assert logs[2] == pytest.approx([math.log(0.5)] * 2 + [nothing] * 5)


def test_a_weight_of_0_masks_its_memory() -> None:
    prefix = aggregate([[memory(2), memory(3)]], [[1.0, 0.0]])
    assert prefix.log_weights_BP.tolist() == [[0.0] * 2 + [-math.inf] * 3]


def test_resident_equals_aggregate() -> None:
    memories = torch.randn(6, 2, 2, 3, 4, 5)
    chosen = torch.tensor([[5, 0, 2], [1, 1, 3]])
    weights = torch.tensor([[0.5, 0.3, 0.2], [0.6, 0.4, 0.0]])
    resident = aggregate_resident(memories, chosen, weights)
    ragged = aggregate([[memories[i] for i in row] for row in chosen.tolist()], list(weights))
    assert torch.equal(resident.memories, ragged.memories)
    assert torch.equal(resident.log_weights_BP, ragged.log_weights_BP)
    assert resident.tokens == ragged.tokens == (12, 12)


def test_dtype_is_kept() -> None:
    prefix = aggregate([[memory(2).bfloat16()], [memory(3).bfloat16()]], [[1.0], [1.0]])
    assert prefix.memories.dtype == torch.bfloat16
    assert prefix.log_weights_BP.dtype == torch.float32


@pytest.mark.parametrize(
    ("memories", "weights", "message"),
    [
        ([], [], "at least one question, got 0 of memories and 0 of weights"),
        ([[memory(2)]], [], "at least one question, got 1 of memories and 0 of weights"),
        ([[]], [[]], "at least one memory, got 0 memories and 0 weights"),
        ([[memory(2)]], [[0.5, 0.5]], "at least one memory, got 1 memories and 2 weights"),
        ([[memory(2)]], [[-0.5]], r"weights of at least 0, got \[-0.5\]"),
        ([[memory(2)]], [[math.nan]], r"weights of at least 0, got \[nan\]"),
    ],
)
def test_mistakes(
    memories: list[list[torch.Tensor]], weights: list[list[float]], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        aggregate(memories, weights)
