"""What a step costs: seconds and peak memory, measured around the whole of it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch


@dataclass(kw_only=True, slots=True)
class Cost:
    """Of one step, filled in when it is over.

    Attributes:
        seconds: Wall-clock, the device's work included.
        peak_bytes: Most device memory in use at once, above what was in use before; None on a
            CPU, where it isn't measured.
    """

    seconds: float = 0.0
    peak_bytes: int | None = None


@contextmanager
def metered(device: torch.device) -> Iterator[Cost]:
    """Measure what runs inside, on `device` and on the CPU."""
    cost = Cost()
    on_cuda = device.type == "cuda"
    before = 0
    if on_cuda:
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
    began = time.perf_counter()
    yield cost
    if on_cuda:
        torch.cuda.synchronize(device)
        cost.peak_bytes = torch.cuda.max_memory_allocated(device) - before
    cost.seconds = time.perf_counter() - began
