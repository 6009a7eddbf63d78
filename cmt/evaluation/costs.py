"""What a step costs: seconds and peak memory, measured around the whole of it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch


@dataclass(kw_only=True, slots=True)
class Cost:
    """Of one step, or of several; filled in when they are over.

    Attributes:
        seconds: Wall-clock, the device's work included.
        peak_bytes: Most device memory in use at once, above what was in use before the first;
            None on a CPU, where it isn't measured.
        before_bytes: Device memory in use before the first.
    """

    seconds: float = 0.0
    peak_bytes: int | None = None
    before_bytes: int | None = None


@contextmanager
def metered(device: torch.device, cost: Cost | None = None) -> Iterator[Cost]:
    """Measure what runs inside, on `device` and on the CPU; added to `cost`, if there is one."""
    cost = cost or Cost()
    on_cuda = device.type == "cuda"
    if on_cuda:
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        if cost.before_bytes is None:
            cost.before_bytes = torch.cuda.memory_allocated(device)
    began = time.perf_counter()
    yield cost
    if on_cuda:
        torch.cuda.synchronize(device)
        peak = torch.cuda.max_memory_allocated(device) - (cost.before_bytes or 0)
        cost.peak_bytes = max(cost.peak_bytes or 0, peak)
    cost.seconds += time.perf_counter() - began
