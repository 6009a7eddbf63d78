"""Memories in eight bits, a step for each head, or in four, as plain functions.

In four bits keys have a step for each channel and values one for each token, as keys have
channels of outliers and values have not (KIVI, arXiv 2402.02750).

Shape legend: L layers, G key/value heads, K memory tokens, E head size.
"""

from __future__ import annotations

import torch
from torch import Tensor

_STEPS = 127  # from 0 to the largest number of a head, either way
_STEPS_4 = 7


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


def quantize4(memory: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A memory in four bits; what `dequantize4` gives comes back as it was.

    Args:
        memory: Finite numbers, (L, 2, G, K, E).

    Returns:
        The numbers from 1 to 15, 8 standing for zero, two in a byte, uint8 (L·G·K·E,); the
        steps of the keys' channels, bfloat16 (L, G, E); those of the values' tokens, bfloat16
        (L, G, K).
    """
    exact = memory.detach().float()
    key_steps, value_steps = _steps4(exact[:, 0], 2), _steps4(exact[:, 1], 3)
    numbers = (exact / _spread4(key_steps, value_steps)).round().clamp(-_STEPS_4, _STEPS_4)
    low, high = (numbers.to(torch.int16) + 8).to(torch.uint8).flatten().view(-1, 2).unbind(1)
    return low | high << 4, key_steps, value_steps


def dequantize4(packed: Tensor, key_steps: Tensor, value_steps: Tensor) -> Tensor:
    """The memory, float32 (L, 2, G, K, E), from what `quantize4` returned."""
    (L, G, E), K = key_steps.shape, value_steps.shape[2]
    numbers = torch.stack([packed & 15, packed >> 4], dim=1).float() - 8
    return numbers.view(L, 2, G, K, E) * _spread4(key_steps, value_steps)


def _steps4(exact: Tensor, dim: int) -> Tensor:
    largest = exact.abs().amax(dim=dim)
    return torch.where(largest > 0, largest / _STEPS_4, torch.ones_like(largest)).bfloat16()


def _spread4(key_steps: Tensor, value_steps: Tensor) -> Tensor:
    """The step of every number, float32 (L, 2, G, K, E)."""
    (L, G, E), K = key_steps.shape, value_steps.shape[2]
    keys = key_steps.float()[:, :, None].expand(L, G, K, E)
    return torch.stack([keys, value_steps.float()[..., None].expand(L, G, K, E)], dim=1)
