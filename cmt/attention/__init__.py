"""Packed attention: many segments of different lengths, and the memories before them, in one row.

`packing.py` is the layout, `packed.py` what a pass through the model hands its layers;
`rectangles.py` and `varlen.py` are two ways that give the same. `asked.py` spares the last layer
the tokens that nobody asks for.
"""

from cmt.attention.asked import Asked
from cmt.attention.packed import (
    IMPLEMENTATION,
    LayerKV,
    LayerPass,
    PackedPass,
    any_shape,
    packed_attention,
)
from cmt.attention.packing import Group, Packing, pack

__all__ = [
    "IMPLEMENTATION",
    "Asked",
    "Group",
    "LayerKV",
    "LayerPass",
    "PackedPass",
    "Packing",
    "any_shape",
    "pack",
    "packed_attention",
]
