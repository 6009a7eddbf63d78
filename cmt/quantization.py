"""Memories in eight bits: a scale for each head, as plain functions.

Shape legend: L layers, G key/value heads, K memory tokens, E head size.
"""

from __future__ import annotations

import torch
from torch import Tensor

_STEPS = 127  # from 0 to the largest number of a head, either way


def quantize(memory: Tensor) -> tuple[Tensor, Tensor]:
    """A memory as whole numbers of steps, each head's largest number being 127 of them.

    A number is off by at most half a step. What `dequantize` gives comes back as it was.

    Args:
        memory: Finite numbers, (L, 2, G, K, E).

    Returns:
        The numbers, int8 of the same shape, and the size of a step, float32 (L, 2, G).
    """
    exact = memory.detach().float()
    largest = exact.abs().amax(dim=(3, 4))
    steps = torch.where(largest > 0, largest / _STEPS, torch.ones_like(largest))
    values = (exact / steps[..., None, None]).round().clamp(-_STEPS, _STEPS)
    return values.to(torch.int8), steps


def dequantize(values: Tensor, steps: Tensor) -> Tensor:
    """The memory, float32 (L, 2, G, K, E), from what `quantize` returned."""
    return values.float() * steps[..., None, None]
