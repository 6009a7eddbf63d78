"""Clocks for `inference.py`: work in alternating rounds, the device's matrix rate, a profile."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from cmt.evaluation.costs import metered

TOP = 20
SYNCHRONISING = ("aten::_local_scalar_dense", "cudaStreamSynchronize", "cudaDeviceSynchronize")


def seconds(device: torch.device, work: Callable[[], object]) -> float:
    """Wall-clock of some work, the device's part included."""
    with metered(device) as cost:
        work()
    return cost.seconds


def rounds(
    device: torch.device,
    variants: Mapping[str, Callable[[int], object]],
    how_many: int,
    each: int,
    warm: bool = True,
) -> dict[str, list[float]]:
    """Seconds of every variant, `each` times a round; a round begins with another variant.

    A variant is given the number of its repeat, from 0, the same for all of them. With `warm`
    one round more, the first, is not counted.
    """
    names = list(variants)
    times: dict[str, list[float]] = {name: [] for name in names}
    for number in range(-1 if warm else 0, how_many):
        shift = max(number, 0) % len(names)
        for name in names[shift:] + names[:shift]:
            for repeat in range(each):
                which = max(number, 0) * each + repeat
                took = seconds(device, lambda: variants[name](which))  # noqa: B023 - called at once
                if number >= 0:
                    times[name].append(took)
    return times


def spread(times: Sequence[float]) -> dict[str, float]:
    """Median and 95th percentile of seconds."""
    return {"median": statistics.median(times), "p95": float(np.percentile(times, 95))}


def paired_ratio(of: Sequence[float], to: Sequence[float]) -> float:
    """Median over repeats of the ratio of two variants' seconds, taken side by side."""
    return statistics.median(a / b for a, b in zip(of, to, strict=True))


def matrix_rate(device: torch.device, dtype: torch.dtype, size: int) -> float:
    """Floating-point operations a second of a size³ matrix product, the best of five."""
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    seconds(device, lambda: a @ b)
    return 2 * size**3 / min(seconds(device, lambda: a @ b) for _ in range(5))


def profiled(device: torch.device, work: Callable[[], object]) -> dict[str, Any]:
    """The dearest operators of some work, and how long the device was busy with it.

    The profiler slows the host down, not the device: the share is of the time without it.
    """
    seconds(device, work)
    plain = statistics.median(seconds(device, work) for _ in range(3))
    on_cuda = device.type == "cuda"
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * on_cuda
    with profile(activities=activities) as made:
        seconds(device, work)
    # the device's time is told by operator: its kernels have rows of their own
    operators = [row for row in made.key_averages() if row.device_type == DeviceType.CPU]
    key = "self_device_time_total" if on_cuda else "self_cpu_time_total"
    dearest = sorted(operators, key=lambda row: -getattr(row, key))[:TOP]
    slowest = sorted(operators, key=lambda row: -row.self_cpu_time_total)[:TOP]
    result: dict[str, Any] = {
        "seconds": plain,
        "operators": [
            {"name": row.key[:80], "calls": row.count, "milliseconds": getattr(row, key) / 1e3}
            for row in dearest
        ],
        "on_the_host": [
            {
                "name": row.key[:80],
                "calls": row.count,
                "milliseconds": row.self_cpu_time_total / 1e3,
            }
            for row in slowest
        ],
        "synchronising_calls": {
            row.key: row.count for row in operators if row.key in SYNCHRONISING
        },
    }
    if on_cuda:
        spans = [
            (event.time_range.start, event.time_range.end)
            for event in made.events()
            if event.device_type == DeviceType.CUDA
            and not getattr(event, "is_user_annotation", False)
        ]
        busy = covered(spans) / 1e6
        result |= {"kernels": len(spans), "busy_seconds": busy, "busy_share": busy / plain}
    return result


def covered(spans: Sequence[tuple[float, float]]) -> float:
    """Length of the union of intervals."""
    total, until = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, until))
        until = max(until, end)
    return total
