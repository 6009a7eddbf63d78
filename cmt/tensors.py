"""Moving nests of tensors between devices."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor


def move(batch: Any, device: torch.device | str) -> Any:
    """A copy of a dataclass of tensors (nested in tuples or dataclasses) on another device."""
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, tuple | list):
        return type(batch)(move(part, device) for part in batch)
    if is_dataclass(batch) and not isinstance(batch, type):
        values = {f.name: move(getattr(batch, f.name), device) for f in fields(batch)}
        return type(batch)(**values)
    return batch
