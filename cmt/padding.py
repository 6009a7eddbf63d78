"""Texts of different lengths in one rectangle, padded on the left: where each is, who sees what.

Shape legend: B rows, T tokens of a row, P places before them, X texts, t tokens of all texts.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def left_padded(
    prompts: Sequence[Sequence[int]], filler: int, device: torch.device, width: int = 0
) -> tuple[Tensor, Tensor]:
    """Token ids (B, T) that end at the right, and False at padding; T is at least `width`."""
    longest = max(width, *(len(prompt) for prompt in prompts))
    tokens = [[filler] * (longest - len(prompt)) + list(prompt) for prompt in prompts]
    valid = [[False] * (longest - len(prompt)) + [True] * len(prompt) for prompt in prompts]
    return torch.tensor(tokens, device=device), torch.tensor(valid, device=device)


def counted(lengths_X: Tensor) -> tuple[Tensor, Tensor]:
    """Of each token of all texts the text, and its place in it: two of shape (t,)."""
    owners_t = torch.arange(len(lengths_X)).repeat_interleave(lengths_X)
    starts_X = lengths_X.cumsum(0) - lengths_X
    return owners_t, torch.arange(len(owners_t)) - starts_X[owners_t]


def last_places(lengths: Sequence[int], width: int, *, after: int = 0) -> tuple[Tensor, Tensor]:
    """Places in the flattened rectangle of so many last tokens of each row, and their rows.

    `width` is the rectangle's, and `after` so many tokens follow them in every row.
    """
    lengths_B = torch.tensor(lengths)
    owners_t, places_t = counted(lengths_B)
    return (owners_t + 1) * width - after - lengths_B[owners_t] + places_t, owners_t


def padded_positions(valid_BT: Tensor, start: int) -> Tensor:
    """Positions (B, T) whose first that is no padding is `start`."""
    return (valid_BT.cumsum(1) - 1).clamp(min=0) + start


def additive_mask(before_BP: Tensor, valid_BT: Tensor, dtype: torch.dtype) -> Tensor:
    """Mask (B, 1, T, P + T) added to attention scores: tokens see what is before them.

    `before_BP` is added to the scores of the places before all tokens, such as log-weights.
    """
    T = valid_BT.shape[1]
    lowest = torch.finfo(dtype).min
    causal_TT = torch.ones(T, T, dtype=torch.bool, device=valid_BT.device).tril()
    own = torch.zeros(len(valid_BT), T, T, dtype=dtype, device=valid_BT.device)
    own = own.masked_fill(~(causal_TT & valid_BT[:, None]), lowest)
    before = before_BP.to(dtype).clamp(min=lowest)[:, None].expand(-1, T, -1)
    return torch.cat([before, own], dim=-1)[:, None]
