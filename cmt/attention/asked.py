"""The last layer for the tokens whose final hidden states are asked for, on keys of all tokens.

Five of six tokens that the compressor reads are a document's own. In the last layer they serve
as keys and values alone: their attention output, its projection and the MLP lead nowhere. So the
layer is run over all tokens but left (`KeysTaken`) as soon as it hands over keys and values, then
run over the asked ones, which attend to those. No layer needs to know of it: what it is called
with is cut down to the asked rows, what it returns is put in their places, zeros in the others.

Without gradients only, and where nothing is read before the tokens.

Shape legend: N packed tokens, A asked ones, B segments of a group, T longest segment, U most
asked tokens of a segment, W hidden size, H query heads, G key/value heads, E head size.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from cmt.attention.packing import Packing
from cmt.attention.varlen import VariableLength, asked_stretch, half

if TYPE_CHECKING:
    from cmt.attention.packed import LayerPass

_KV = tuple[Tensor, Tensor]


@dataclass(kw_only=True, slots=True)
class Asked:
    """Rows of a packed pass, ascending: the last ones of every segment, and how they lie."""

    rows_A: Tensor
    packing: Packing


class KeysTaken(Exception):  # noqa: N818 (no error: the way out of a layer)
    """Keys and values (N, G, E) of all tokens are there: the rest of the layer isn't wanted."""

    def __init__(self, rows: _KV) -> None:
        super().__init__()
        self.rows = rows


def cut_down(
    layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], packed: LayerPass, asked: Asked
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What the layer is to be called with to give the asked rows, after a run for all keys."""
    tokens = len(packed.run.packing.inverse_N)
    try:
        layer.forward(*args, **{**kwargs, "packed": replace(packed, leaves=True)})
    except KeysTaken as taken:
        packed = replace(packed, rows=taken.rows)
    assert packed.rows is not None, "the layer attends in its own way"

    def part(given: Any) -> Any:
        if isinstance(given, tuple):
            return tuple(part(one) for one in given)
        if isinstance(given, Tensor) and given.shape[:2] == (1, tokens):
            return given[:, asked.rows_A]
        return given

    kwargs = {name: part(given) for name, given in kwargs.items()}
    return part(args), {**kwargs, "packed": packed}


def put_back(output: Any, tokens: int, asked: Asked) -> Tensor:
    """Hidden states (1, N, W) of a layer that gave (1, A, W), alone or first of a tuple."""
    hidden_1AW: Tensor = output[0] if isinstance(output, tuple) else output
    if hidden_1AW.shape[1] == tokens:  # two base models over one model: the first did it
        return hidden_1AW
    whole_1NW = hidden_1AW.new_zeros(1, tokens, hidden_1AW.shape[2])
    return whole_1NW.index_copy_(1, asked.rows_A, hidden_1AW)


def attend(packing: Packing, asked: Asked, query: Tensor, rows: _KV, scaling: float) -> Tensor:
    """Output (A, H, E) of the asked queries (A, H, E) over keys and values (N, G, E) of all."""
    if VariableLength.serves(query):
        return _in_kernels(packing, asked, query, rows, scaling)
    shared = query.shape[1] // rows[0].shape[1]  # masked kernels want every head spelt out
    outputs = []
    for own, group in zip(asked.packing.groups, packing.groups, strict=True):
        query_BUHE = query[own.index_BT]
        key, value = (states[group.index_BT].repeat_interleave(shared, 2) for states in rows)
        places_BU = asked.rows_A[own.index_BT]
        seen_BUT = (group.index_BT[:, None] <= places_BU[..., None]) & group.valid_BT[:, None]
        output = functional.scaled_dot_product_attention(
            query_BUHE.transpose(1, 2),
            key.transpose(1, 2),
            value.transpose(1, 2),
            attn_mask=seen_BUT[:, None],
            scale=scaling,
        )
        outputs.append(output.transpose(1, 2).flatten(0, 1))
    return torch.cat(outputs)[asked.packing.inverse_N]


def _in_kernels(packing: Packing, asked: Asked, query: Tensor, rows: _KV, scaling: float) -> Tensor:
    """The same without padding: kernels align causality at the end of a segment."""
    query, key, value = (states.to(half(query.dtype)) for states in (query, *rows))
    stretches = [
        asked_stretch(own, group)
        for own, group in zip(asked.packing.groups, packing.groups, strict=True)
    ]
    return VariableLength.attended(stretches, (query, key, value), None, scaling)
