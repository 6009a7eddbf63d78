"""Eight and four bits: how far off, and the same again when done twice."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cmt.quantization import dequantize, dequantize4, quantize, quantize4


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


@given(st.integers(0, 10**6), st.sampled_from([1e-6, 1.0, 300.0]))
@settings(max_examples=50, deadline=None)
def test_in_four_bits_a_number_is_off_by_half_its_step(seed, scale):
    memory = random(seed, scale)
    packed, key_steps, value_steps = quantize4(memory)
    assert packed.shape == (memory.numel() // 2,)
    back = dequantize4(packed, key_steps, value_steps)
    keys = (back - memory)[:, 0].abs() <= key_steps.float()[:, :, None] * 0.53
    values = (back - memory)[:, 1].abs() <= value_steps.float()[..., None] * 0.53
    assert bool(keys.all()), "half a step, and the rounding of a bfloat16 step"
    assert bool(values.all())


@given(st.integers(0, 10**6), st.sampled_from([1e-6, 1.0, 300.0]))
@settings(max_examples=50, deadline=None)
def test_four_bits_a_second_time_change_nothing(seed, scale):
    first = quantize4(random(seed, scale))
    for one, again in zip(first, quantize4(dequantize4(*first)), strict=True):
        assert torch.equal(one, again)


def test_four_bits_by_hand():
    memory = torch.tensor([[7.0, -14.0], [3.0, 2.0]]).repeat(1, 2, 1, 1, 1)  # (1, 2, 1, 2, 2)
    packed, key_steps, value_steps = quantize4(memory)
    assert key_steps.tolist() == [[[1.0, 2.0]]], "of each channel"
    assert value_steps.float().tolist() == [[[2.0, torch.tensor(3 / 7).bfloat16().item()]]]
    numbers = [byte for pair in packed.tolist() for byte in (pair & 15, pair >> 4)]
    assert numbers == [15, 1, 11, 9, 12, 1, 15, 13]
