"""Packed attention against attention computed alone, by transformers, and by hand."""

from __future__ import annotations

import gc
import math
import weakref

import pytest
import torch
from torch import Tensor, nn

from cmt.attention import LayerPass, PackedPass, Packing, pack, packed_attention
from cmt.attention.rectangles import Rectangles, _ToRectangle, _ToRow
from tests import small, tiny

families = pytest.mark.parametrize("family", tiny.FAMILIES)
CLOSE = {"atol": 1e-6, "rtol": 1e-5}


class Module(nn.Module):
    """What attention asks of a transformers layer: two query heads share a key/value head."""

    num_key_value_groups = 2


def states(tokens: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Queries (1, 4, N, 8), keys and values (1, 2, N, 8)."""
    random = torch.Generator().manual_seed(seed)
    return (
        torch.randn(1, 4, tokens, 8, generator=random),
        torch.randn(1, 2, tokens, 8, generator=random),
        torch.randn(1, 2, tokens, 8, generator=random),
    )


def run(packed: PackedPass, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Output of one layer, (N, H, E)."""
    packed.start(1)
    output, _ = packed_attention(
        Module(), query, key, value, None, packed=LayerPass(run=packed, place=0)
    )
    return output[0]


def by_hand(query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
    """softmax(q·k/√E + bias)·v in a loop over heads; (T, H, E) from rows (T, H, E), (S, G, E)."""
    heads = []
    for head in range(query.shape[1]):
        scores = query[:, head] @ key[:, head // 2].T / math.sqrt(query.shape[2])
        heads.append((scores + bias).softmax(-1) @ value[:, head // 2])
    return torch.stack(heads, dim=1)


def causal(tokens: int) -> Tensor:
    return torch.full((tokens, tokens), -torch.inf).triu(1)


def rows(*parts: Tensor) -> list[Tensor]:
    return [part[0].transpose(0, 1) for part in parts]


def test_pack_lays_out_rectangles_and_leads_back() -> None:
    packing = pack([[2, 3], [], [1]])
    first, second = packing.groups
    assert first.index_BT.tolist() == [[0, 1, 0], [2, 3, 4]]
    assert first.valid_BT.tolist() == [[True, True, False], [True, True, True]]
    assert second.index_BT.tolist() == [[5]]
    assert packing.inverse_N.tolist() == [0, 1, 3, 4, 5, 6]
    flat = torch.cat([group.index_BT.flatten() for group in packing.groups])
    assert flat[packing.inverse_N].tolist() == list(range(6))


def test_segments_of_a_batch_equal_each_alone() -> None:
    lengths = [[4, 7], [1, 5, 2]]
    query, key, value = states(19)
    together = run(PackedPass(packing=pack(lengths)), query, key, value)
    start = 0
    for length in [n for group in lengths for n in group]:
        place = slice(start, start + length)
        part = [tensor[:, :, place] for tensor in (query, key, value)]
        alone = run(PackedPass(packing=pack([[length]])), *part)
        torch.testing.assert_close(together[place], alone, **CLOSE)
        expected = by_hand(*rows(*part), causal(length))
        torch.testing.assert_close(alone, expected, **CLOSE)
        start += length


@families
def test_packed_segments_equal_transformers_causal_attention(family: str) -> None:
    base, plain = tiny.base_model(family), tiny.model(family, "sdpa")
    segments = small.tokens(5, 12, 1, 8)
    row = torch.tensor([token for segment in segments for token in segment])
    places = torch.cat([torch.arange(len(segment)) for segment in segments])
    packing = pack([[5, 12], [1, 8]])
    with torch.no_grad():
        ours = base.logits(base.run_packed(base.embed(row), places, PackedPass(packing=packing)))
        theirs = torch.cat([plain(torch.tensor([segment])).logits[0] for segment in segments])
    # float32 sums in another order, hence not to the bit
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def test_gather_gradients_equal_plain_indexing() -> None:
    packing = pack([[2, 4], [3]])
    index = torch.cat([group.index_BT.flatten() for group in packing.groups])
    valid = torch.cat([group.valid_BT.flatten() for group in packing.groups])
    row = torch.randn(9, 2, 3, requires_grad=True)
    weight = torch.randn(len(index), 2, 3) * valid[:, None, None]  # padding is never looked at
    ours = _ToRectangle.apply(row, index, packing.inverse_N)
    assert torch.equal(ours, row[index])
    (gradient,) = torch.autograd.grad((ours * weight).sum(), row)
    (expected,) = torch.autograd.grad((row[index] * weight).sum(), row)
    torch.testing.assert_close(gradient, expected)

    flat = torch.randn(len(index), 2, 3, requires_grad=True)
    weight = torch.randn(9, 2, 3)
    back = _ToRow.apply(flat, packing.inverse_N, index, valid)
    assert torch.equal(back, flat[packing.inverse_N])
    (gradient,) = torch.autograd.grad((back * weight).sum(), flat)
    (expected,) = torch.autograd.grad((flat[packing.inverse_N] * weight).sum(), flat)
    assert torch.equal(gradient, expected)
    assert not gradient[~valid].any()


@pytest.mark.parametrize("memories", [False, True])
def test_gradients_of_attention_equal_those_by_hand(memories: bool) -> None:
    lengths = [3, 5]
    inputs = [part.requires_grad_() for part in states(8)]
    prefix = [torch.randn(2, 4, 2, 8, requires_grad=True) for _ in range(2)]
    weight = torch.randn(8, 4, 8)
    packed = PackedPass(packing=pack([lengths]), prefix=[tuple(prefix)] if memories else None)
    if memories:
        packed.packing.groups[0].memories_BM = torch.tensor([[1, 0], [0, 0]])
    ours = (run(packed, *inputs) * weight).sum()

    query, key, value = rows(*inputs)
    expected, start = [], 0
    for length, chosen in zip(lengths, ([1, 0], [0, 0]), strict=True):
        place = slice(start, start + length)
        own_key, own_value, bias = key[place], value[place], causal(length)
        if memories:
            own_key = torch.cat([*(prefix[0][i] for i in chosen), own_key])
            own_value = torch.cat([*(prefix[1][i] for i in chosen), own_value])
            bias = torch.cat([torch.zeros(length, 8), bias], dim=1)
        expected.append(by_hand(query[place], own_key, own_value, bias))
        start += length
    theirs = (torch.cat(expected) * weight).sum()
    leaves = [*inputs, *prefix] if memories else inputs
    for mine, other in zip(
        torch.autograd.grad(ours, leaves), torch.autograd.grad(theirs, leaves), strict=True
    ):
        torch.testing.assert_close(mine, other, atol=1e-5, rtol=1e-4)


def with_memories(
    choice: list[list[int]],
    weights: list[list[float]] | None,
    prefix: tuple[Tensor, Tensor] | None,
    sink: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Two segments of 3 and 5 tokens read memories."""
    packing = pack([[3, 5]])
    packing.groups[0].memories_BM = torch.tensor(choice)
    if weights is not None:
        packing.groups[0].weights_BM = torch.tensor(weights).log()
    packed = PackedPass(
        packing=packing,
        prefix=None if prefix is None else [prefix],
        sink=None if sink is None else [sink],
    )
    return run(packed, *states(8))


def memories(count: int = 3, tokens: int = 4) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(9)
    shape = (count, tokens, 2, 8)
    return torch.randn(shape, generator=random), torch.randn(shape, generator=random)


def test_two_weighted_memories_equal_attention_by_hand() -> None:
    prefix, sink = memories(), memories(1, 1)
    sink = sink[0][0], sink[1][0]
    choice, weights = [[2, 0], [1, 2]], [[0.7, 0.3], [0.2, 0.8]]
    ours = with_memories(choice, weights, prefix, sink)
    query, key, value = rows(*states(8))
    start = 0
    for length, chosen, shares in zip((3, 5), choice, weights, strict=True):
        place = slice(start, start + length)
        keys = torch.cat([sink[0], *(prefix[0][i] for i in chosen), key[place]])
        values = torch.cat([sink[1], *(prefix[1][i] for i in chosen), value[place]])
        logs = torch.tensor([0.0] + [math.log(w) for w in shares for _ in range(4)])
        bias = torch.cat([logs.expand(length, -1), causal(length)], dim=1)
        torch.testing.assert_close(ours[place], by_hand(query[place], keys, values, bias), **CLOSE)
        start += length


def test_a_memory_of_weight_0_is_as_none() -> None:
    prefix = memories()
    one = with_memories([[2], [1]], None, prefix)
    two = with_memories([[2, 0], [1, 0]], [[1.0, 0.0], [1.0, 0.0]], prefix)
    torch.testing.assert_close(two, one, **CLOSE)
    other = prefix[0].clone(), prefix[1].clone()
    other[0][0] += 100
    other[1][0] += 100
    assert torch.equal(with_memories([[2, 0], [1, 0]], [[1.0, 0.0]] * 2, other), two)
    none = with_memories([[2], [1]], [[0.0], [0.0]], prefix)
    torch.testing.assert_close(none, with_memories([[2], [1]], None, None), **CLOSE)


@pytest.mark.parametrize("count", [2, 4])
def test_equal_memories_of_equal_weight_are_as_one(count: int) -> None:
    prefix = memories()
    one = with_memories([[2], [1]], [[1.0], [1.0]], prefix)
    several = with_memories([[2] * count, [1] * count], [[1 / count] * count] * 2, prefix)
    torch.testing.assert_close(several, one, **CLOSE)


def test_a_group_without_memories_reads_only_the_sink() -> None:
    sink = memories(1, 1)
    sink = sink[0][0], sink[1][0]
    packing = pack([[3], [5]])
    packing.groups[0].memories_BM = torch.tensor([[1]])
    ours = run(PackedPass(packing=packing, prefix=[memories()], sink=[sink]), *states(8))
    query, key, value = rows(*(part[:, :, 3:] for part in states(8)))
    bias = torch.cat([torch.zeros(5, 1), causal(5)], dim=1)
    expected = by_hand(query, torch.cat([sink[0], key]), torch.cat([sink[1], value]), bias)
    torch.testing.assert_close(ours[3:], expected, **CLOSE)
    alone = PackedPass(packing=pack([[5]]), sink=[sink])
    parts = [part[:, :, 3:] for part in states(8)]
    torch.testing.assert_close(run(alone, *parts), expected, **CLOSE)


def test_captured_keys_and_values_are_the_layers_own() -> None:
    query, key, value = states(8)
    packed = PackedPass(packing=pack([[3, 5]]), capture=torch.tensor([4, 0]))
    run(packed, query, key, value)
    [(keys, values)] = packed.captured
    assert torch.equal(keys, key[0, :, [4, 0]].transpose(0, 1))
    assert torch.equal(values, value[0, :, [4, 0]].transpose(0, 1))


def test_without_a_packed_pass_it_is_sdpa() -> None:
    query, key, value = states(6)
    output, weights = packed_attention(Module(), query, key, value, None)
    expected = by_hand(*rows(query, key, value), causal(6))
    torch.testing.assert_close(output[0], expected, **CLOSE)
    assert weights is None


def test_bfloat16_masks_are_finite() -> None:
    prefix = tuple(part.bfloat16() for part in memories())
    packing: Packing = pack([[3, 5]])
    packing.groups[0].memories_BM = torch.tensor([[2, 0], [1, 2]])
    packing.groups[0].weights_BM = torch.tensor([[0.0, -torch.inf], [-1.0, -2.0]])
    packed = PackedPass(packing=packing, prefix=[prefix])  # type: ignore[list-item]
    output = run(packed, *(part.bfloat16() for part in states(8)))
    assert output.isfinite().all()
    way = packed.way(states(8)[0])
    assert isinstance(way, Rectangles)
    assert all(mask is not None and mask.isfinite().all() for mask in way.masks)


def test_what_a_pass_captured_is_gone_with_it() -> None:
    base, places = tiny.base_model(), torch.arange(3)
    gc.collect()
    gc.disable()  # nothing may have to wait for it
    try:
        over = PackedPass(packing=pack([[3]]), capture=places)
        base.run_packed(base.embed(places), places, over)
        captured = weakref.ref(over.captured[0][0])
        assert captured() is not None
        del over
        assert captured() is None
    finally:
        gc.enable()
