"""Attention of variable lengths against padded rectangles.

The kernels run on a GPU alone; elsewhere a loop over the segments stands for them, so that what
is tested is how keys, memories, sink and weights are laid out, forward and backward.
"""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Iterator, Sequence
from types import ModuleType

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from cmt.attention import Packing, pack, varlen
from cmt.attention.rectangles import Rectangles
from cmt.attention.varlen import VariableLength

cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
H, G, E, K = 4, 2, 8, 3


def loop(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    queries: Tensor,
    keys: Tensor,
    longest_query: int,
    longest_key: int,
    *,
    scale: float,
    window_size: tuple[int, int],
    enable_gqa: bool = True,
) -> Tensor:
    """What the kernels compute, a segment at a time: causal, aligned at the end."""
    assert window_size == (-1, 0)
    assert enable_gqa
    assert int(queries.diff().max()) == longest_query
    assert int(keys.diff().max()) == longest_key
    return by_segment(query, key, value, (queries, keys), scale)


def by_segment(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bounds: Sequence[Tensor],
    scale: float,
    biases: Tensor | None = None,
) -> Tensor:
    """Causal attention, aligned at the end, a segment at a time."""
    queries, keys = bounds
    shared = query.shape[1] // key.shape[1]
    outputs = []
    for place in range(len(queries) - 1):
        own = slice(keys[place], keys[place + 1])
        q = query[queries[place] : queries[place + 1]].transpose(0, 1)
        k, v = (part[own].transpose(0, 1).repeat_interleave(shared, 0) for part in (key, value))
        hidden = torch.ones(q.shape[1], k.shape[1], dtype=torch.bool)
        hidden = hidden.triu(k.shape[1] - q.shape[1] + 1)
        scores = q @ k.transpose(1, 2) * scale
        if biases is not None:
            scores = scores + biases[own]
        outputs.append((scores.masked_fill(hidden, -torch.inf).softmax(-1) @ v).transpose(0, 1))
    return torch.cat(outputs)


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(varlen, "varlen_attn", loop)
    yield


def states(
    packing: Packing, memories: int, sink: bool, device: str = "cpu", width: int = E
) -> tuple[list[Tensor], list[Tensor] | None, list[Tensor] | None]:
    """Rows, one layer's memories, its sink: rows and memories take gradients."""
    random = torch.Generator().manual_seed(3)

    def some(*shape: int) -> Tensor:
        return torch.randn(*shape, width, generator=random).to(device)

    N = len(packing.inverse_N)
    rows = [some(N, heads).requires_grad_() for heads in (H, G, G)]
    prefix = [some(memories, K, G).requires_grad_() for _ in range(2)] if memories else None
    return rows, prefix, [some(1, G) for _ in range(2)] if sink else None


def layouts() -> Iterator[tuple[str, Packing, int, bool]]:
    """Name, layout, memories in all, whether there is a sink."""
    yield "documents and questions", pack([[5, 9], [1, 4, 2]]), 0, False
    yield "a sink alone", pack([[5, 9], [1]]), 0, True
    read = pack([[2, 3, 7], [1, 4]])
    read.groups[0].memories_BM = torch.tensor([[1], [0], [1]])
    read.groups[1].memories_BM = torch.tensor([[3], [1]])
    yield "one memory each", read, 4, True
    weighed = pack([[2, 3], [6, 1], [4]])
    weighed.groups[0].memories_BM = torch.tensor([[1], [2]])
    weighed.groups[1].memories_BM = torch.tensor([[0, 2, 1], [2, 1, 0]])
    weights = torch.tensor([[0.6, 0.4, 0.0], [0.05, 0.05, 0.9]]).log()
    weighed.groups[1].weights_BM = weights.requires_grad_()
    yield "weighted memories, and a group without one", weighed, 3, True
    bare = pack([[2, 3]])
    bare.groups[0].memories_BM = torch.tensor([[0, 1], [1, 0]])
    yield "no sink", bare, 2, False


@pytest.mark.parametrize(
    ("packing", "memories", "sink"),
    [pytest.param(*rest, id=name) for name, *rest in layouts()],
)
def test_equals_rectangles_forward_and_backward(
    kernels: None, packing: Packing, memories: int, sink: bool
) -> None:
    outputs = compared(packing, memories, sink)
    for ours, theirs in zip(*outputs, strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-4)


def compared(
    packing: Packing, memories: int, sink: bool, device: str = "cpu", width: int = E
) -> list[list[Tensor]]:
    """Output and every gradient, first of variable lengths, then of rectangles."""
    rows, prefix, first = states(packing, memories, sink, device, width)
    leaves = [*rows, *(prefix or [])]
    leaves += [g.weights_BM for g in packing.groups if g.weights_BM is not None]
    weight = torch.randn(len(packing.inverse_N), H, width, device=device)
    results = []
    for kind in (VariableLength, Rectangles):
        way = kind(packing, None if prefix is None else prefix[0], sink, rows[0].dtype)
        output = way.attend(tuple(rows), prefix, first, 1 / math.sqrt(width))  # type: ignore[arg-type]
        gradients = torch.autograd.grad((output.float() * weight).sum(), leaves)
        results.append([output, *gradients])
    return results


def test_without_gradients_it_is_the_same(kernels: None) -> None:
    *_, (_, packing, memories, sink) = (case for case in layouts() if case[0] != "no sink")
    rows, prefix, first = states(packing, memories, sink)
    results = []
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            way = VariableLength(packing, prefix and prefix[0], sink, torch.float32)
            results.append(way.attend(tuple(rows), prefix, first, 0.3))  # type: ignore[arg-type]
    assert torch.equal(*results)


def test_weights_survive_half_precision() -> None:
    biases = torch.tensor([0.0, -0.37, -5.4321, -1234.5, varlen.LOWEST * 8])
    columns = varlen._columns(biases, torch.bfloat16).float()
    assert columns.shape == (5, varlen.FURTHER)
    torch.testing.assert_close(columns.sum(1), biases, rtol=2e-5, atol=0)


def test_serves_only_what_the_kernels_take() -> None:
    assert not VariableLength.serves(torch.zeros(1, H, 64, dtype=torch.bfloat16))  # no GPU


@cuda
@pytest.mark.parametrize("in_tiles", [True, False])
@pytest.mark.parametrize(
    ("packing", "memories", "sink"),
    [pytest.param(*rest, id=name) for name, *rest in layouts()],
)
def test_the_kernels_equal_rectangles(
    packing: Packing, memories: int, sink: bool, in_tiles: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cmt.tensors import move

    if not in_tiles:
        monkeypatch.setattr(varlen, "short_kernels", lambda: None)
    moved = move(packing, "cuda")
    for group in moved.groups:
        if group.weights_BM is not None:
            group.weights_BM = group.weights_BM.detach().requires_grad_()
    with torch.autocast("cuda", torch.bfloat16):
        ours, theirs = compared(moved, memories, sink, "cuda", 64)
    for mine, other in zip(ours, theirs, strict=True):
        difference = (mine.float() - other.float()).norm() / other.float().norm()
        assert difference < 2e-2


@pytest.fixture
def short() -> ModuleType:
    """The kernels for short segments, interpreted on a CPU (`tests/conftest.py`)."""
    pytest.importorskip("triton", reason="needs Triton")
    if torch.cuda.is_available():  # compiled there: the tests above
        pytest.skip("interpreted where there is no GPU")
    return importlib.import_module("cmt.attention.short")


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("heads", [(6, 2), (4, 4), (9, 3)])
def test_short_kernels_equal_a_loop(
    biased: bool, heads: tuple[int, int], short: ModuleType
) -> None:
    own_heads, shared_heads = heads
    tokens, keys = [5, 18, 40, 1], [5, 51, 90, 33]
    bounds = [
        functional.pad(torch.tensor(lengths).cumsum(0), (1, 0)).int() for lengths in (tokens, keys)
    ]
    random = torch.Generator().manual_seed(0)
    query = torch.randn(own_heads, sum(tokens), 16, generator=random).transpose(0, 1)
    key, value = torch.randn(2, sum(keys), shared_heads, 16, generator=random)
    biases = torch.randn(sum(keys), generator=random) if biased else None
    leaves = [part.requires_grad_() for part in (query, key, value, biases) if part is not None]
    weight = torch.randn(sum(tokens), own_heads, 16, generator=random)
    results = []
    for output in (
        short.short_attention(query, key, value, tuple(bounds), (40, 90), 0.25, biases),
        by_segment(query, key, value, bounds, 0.25, biases),
    ):
        results.append([output, *torch.autograd.grad((output * weight).sum(), leaves)])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("packing", "memories", "sink"),
    [pytest.param(*rest, id=name) for name, *rest in layouts()],
)
def test_short_and_long_groups_in_one_pass(
    kernels: None,
    packing: Packing,
    memories: int,
    sink: bool,
    short: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(varlen, "short_kernels", lambda: short)
    monkeypatch.setattr(short, "LONGEST", 6)
    for ours, theirs in zip(*compared(packing, memories, sink, width=16), strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-4)


def test_without_triton_every_group_is_a_long_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cmt.attention.short", None)
    monkeypatch.delattr("cmt.attention.short", raising=False)
    assert varlen.short_kernels.__wrapped__() is None
