"""Eight bits: how far off, and the same again when done twice."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cmt.quantization import dequantize, quantize


def random(seed: int, scale: float = 1.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    heads = torch.rand(3, 2, 2, 1, 1, generator=generator) * scale
    return torch.randn(3, 2, 2, 4, 8, generator=generator) * heads


@given(st.integers(0, 10**6), st.sampled_from([1e-6, 1.0, 300.0]))
@settings(max_examples=50, deadline=None)
def test_a_number_is_off_by_half_a_step_at_most(seed, scale):
    memory = random(seed, scale)
    values, steps = quantize(memory)
    off = (dequantize(values, steps) - memory).abs()
    assert bool((off <= steps[..., None, None] * 0.5001).all())
    assert bool((steps * 127 >= memory.abs().amax(dim=(3, 4)) * 0.9999).all())


@given(st.integers(0, 10**6), st.sampled_from([1e-6, 1.0, 300.0]))
@settings(max_examples=50, deadline=None)
def test_the_second_time_changes_nothing(seed, scale):
    values, steps = quantize(random(seed, scale).bfloat16())
    again, steps_again = quantize(dequantize(values, steps))
    assert torch.equal(again, values)
    torch.testing.assert_close(steps_again, steps, rtol=1e-6, atol=0)


def test_a_head_of_zeros_stays_zeros():
    memory = torch.zeros(1, 2, 1, 2, 2)
    memory[0, 1, 0, 0, 0] = -2.0
    values, steps = quantize(memory)
    assert torch.equal(dequantize(values, steps), memory)
    assert values.dtype == torch.int8
    assert values[0, 1, 0, 0, 0] == -127
    assert steps.shape == (1, 2, 1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_any_dtype_is_taken(dtype):
    memory = random(1).to(dtype)
    values, steps = quantize(memory)
    assert (values.shape, steps.dtype) == (memory.shape, torch.float32)
