"""Packed attention: many segments, and the memories before them, in one row of tokens.

Registered with transformers as the attention implementation ``"cmt"``. A forward pass without
the keyword ``packed`` runs transformers' own ``sdpa``, to the bit. With it, segments attend to
themselves and to their memories in one of two ways that give the same: kernels for segments of
variable length (`varlen.py`, on a GPU in half precision), or padded rectangles
(`rectangles.py`, everywhere else).

Shape legend: N packed tokens, K tokens of a memory, D documents compressed, H query heads,
G key/value heads, E head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from cmt.attention import asked as asking
from cmt.attention.packing import Packing
from cmt.attention.rectangles import Rectangles
from cmt.attention.varlen import VariableLength

IMPLEMENTATION = "cmt"

LayerKV = tuple[Tensor, Tensor]
"""Keys and values of one layer."""


def any_shape() -> AbstractContextManager[None]:
    """Leave cuDNN's attention out: it builds a plan for each new shape, which takes longer."""
    return sdpa_kernel(
        [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    )


class Way(Protocol):
    """How the segments of a pass attend; made once a pass, shared by its layers."""

    def attend(
        self,
        rows: tuple[Tensor, Tensor, Tensor],
        prefix: LayerKV | None,
        sink: LayerKV | None,
        scaling: float,
    ) -> Tensor:
        """Output (N, H, E) of queries (N, H, E), keys and values (N, G, E)."""


@dataclass(kw_only=True)
class PackedPass:
    """One packed forward pass through every layer of a model.

    Attributes:
        prefix: A layer's memories, keys and values each (D, K, G, E), for every layer.
        sink: A layer's attention sink, each (1, G, E), for every layer.
        capture: Packed positions whose keys and values every layer hands back.
        asked: Rows whose final hidden states are wanted; others become zeros. None: all are.
        handed_back: Those captured, each (positions, G, E), by layer; None of a layer that hasn't
            run.
    """

    packing: Packing
    prefix: Sequence[LayerKV] | None = None
    sink: Sequence[LayerKV] | None = None
    capture: Tensor | None = None
    asked: asking.Asked | None = None
    handed_back: list[LayerKV | None] = field(default_factory=list)
    _way: Way | None = None

    def start(self, layers: int) -> None:
        """Make ready for a pass."""
        self._way = None
        self.handed_back = [None] * layers

    def way(self, query: Tensor) -> Way:
        """How queries like this one attend, chosen by the first layer for all of them."""
        if self._way is None:
            memories = None if self.prefix is None else self.prefix[0][0]
            kind = VariableLength if VariableLength.serves(query) else Rectangles
            self._way = kind(self.packing, memories, self.sink is not None, query.dtype)
        return self._way

    @property
    def captured(self) -> list[LayerKV]:
        """Keys and values at `capture`, a pair for every layer."""
        assert None not in self.handed_back, "the pass has not run"
        return [pair for pair in self.handed_back if pair is not None]


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerPass:
    """One layer's part of a pass.

    The pass knows nothing of it: referring to each other, both would stay, with all that was
    captured and its graph, until Python's garbage collector looks at old objects, which it does
    seldom where there are many (a tokenised corpus).

    Attributes:
        leaves: The layer is left once it has handed over keys and values (`asked.py`).
        rows: Those, of all tokens, for the asked ones to attend to; None: to their own.
    """

    run: PackedPass
    place: int
    leaves: bool = False
    rows: LayerKV | None = None


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
    run, place = packed.run, packed.place
    query, key, value = (states[0].transpose(0, 1) for states in (query, key, value))
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    if packed.rows is not None:
        assert run.asked is not None
        output_AHE = asking.attend(run.packing, run.asked, query, packed.rows, scaling)
        return output_AHE[None], None
    if run.capture is not None:
        run.handed_back[place] = key[run.capture], value[run.capture]
    if packed.leaves:
        raise asking.KeysTaken((key, value))
    output_NHE = run.way(query).attend(
        (query, key, value),
        None if run.prefix is None else run.prefix[place],
        None if run.sink is None else run.sink[place],
        scaling,
    )
    return output_NHE[None], None


AttentionInterface.register(IMPLEMENTATION, packed_attention)
AttentionMaskInterface.register(IMPLEMENTATION, sdpa_mask)
