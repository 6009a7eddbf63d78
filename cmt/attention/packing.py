"""How segments of different lengths lie in one row of tokens: the layout of a packed pass.

Documents and questions differ in length; padded to a rectangle, half the work of every
linear layer would be spent on nothing. Here all tokens of a pass lie in one row, group by
group, segment by segment.

Shape legend: N packed tokens, B segments of a group, T longest segment, M memories read by
a segment.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(kw_only=True, slots=True)
class Group:
    """Segments that read equally many memories.

    Attributes:
        index_BT: Packed position of each token; padding repeats the segment's first token.
        valid_BT: False at padding.
        tokens: Of all its segments.
        memories_BM: Which memories each segment reads; None: it reads none.
        weights_BM: Logarithm of each memory's weight, added to its attention scores.
    """

    index_BT: Tensor
    valid_BT: Tensor
    tokens: int
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
        groups.append(
            Group(index_BT=index_BT.to(device), valid_BT=valid_BT.to(device), tokens=sum(group))
        )
        start += sum(group)
        offset += valid_BT.numel()
    return Packing(groups=tuple(groups), inverse_N=torch.cat(inverse).to(device))
