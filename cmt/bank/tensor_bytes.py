"""Tensors as raw bytes and back, bit for bit, and the checksums that guard stored bytes."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
import xxhash

from cmt.errors import InputError
from cmt.quantization import dequantize, dequantize4, quantize, quantize4

Tier = Literal["bf16", "int8", "int4"]
TIERS: tuple[Tier, ...] = get_args(Tier)

DTYPES: dict[str, torch.dtype] = {
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float32": torch.float32,
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_CHECKSUM_BYTES = 16
_XXH3 = b"\x01"  # begins a checksum of XXH3, in 17 bytes


def dtype_name(dtype: torch.dtype) -> str:
    """The name a dtype is stored under.

    Raises:
        InputError: The dtype is none of `DTYPES`.
    """
    if dtype not in _NAMES:
        raise InputError(f"expected a tensor of {', '.join(DTYPES)}, got {dtype}")
    return _NAMES[dtype]


def tensor_to_bytes(tensor: torch.Tensor) -> bytes:
    """The tensor's elements in row-major order, each in the machine's (little-endian) form."""
    flat = tensor.detach().cpu().contiguous().flatten()
    return flat.view(torch.uint8).numpy().tobytes()


def tensor_from_bytes(data: bytes, shape: Sequence[int], dtype: str) -> torch.Tensor:
    """The tensor that `tensor_to_bytes` took apart; writable, with memory of its own.

    Raises:
        ValueError: The dtype is unknown, or the bytes are more or fewer than shape and dtype say.
    """
    if dtype not in DTYPES:
        raise ValueError(f"expected a dtype of {', '.join(DTYPES)}, got {dtype!r}")
    expected = math.prod(shape) * DTYPES[dtype].itemsize
    if len(data) != expected:
        raise ValueError(f"expected {expected} bytes for {dtype} {list(shape)}, got {len(data)}")
    return torch.frombuffer(bytearray(data), dtype=DTYPES[dtype]).reshape(tuple(shape))


def memory_to_bytes(memory: torch.Tensor, tier: Tier) -> tuple[str, bytes]:
    """The name to store a memory's dtype under, and its bytes; in fewer bits the steps go first.

    Raises:
        InputError: The dtype is none of `DTYPES`.
    """
    name = dtype_name(memory.dtype)
    if tier == "bf16":
        return name, tensor_to_bytes(memory)
    if tier == "int4":
        packed, key_steps, value_steps = quantize4(memory)
        parts = (key_steps, value_steps, packed)
        return "int4", b"".join(tensor_to_bytes(part) for part in parts)
    values, steps = quantize(memory)
    return "int8", tensor_to_bytes(steps) + tensor_to_bytes(values)


def memory_from_bytes(data: bytes, shape: Sequence[int], dtype: str) -> torch.Tensor:
    """The memory (L, 2, G, K, E) of `memory_to_bytes`, float32 where it was in fewer bits.

    Raises:
        ValueError: As `tensor_from_bytes`.
    """
    if dtype == "int4":
        return _from_four_bits(data, shape)
    if dtype != "int8":
        return tensor_from_bytes(data, shape, dtype)
    heads = math.prod(shape[:3])
    expected = 4 * heads + math.prod(shape)
    if len(data) != expected:
        raise ValueError(f"expected {expected} bytes for int8 {list(shape)}, got {len(data)}")
    steps = tensor_from_bytes(data[: 4 * heads], shape[:3], "float32")
    values = torch.frombuffer(bytearray(data[4 * heads :]), dtype=torch.int8)
    return dequantize(values.reshape(tuple(shape)), steps)


def _from_four_bits(data: bytes, shape: Sequence[int]) -> torch.Tensor:
    layers, _, heads, tokens, size = shape
    key_bytes, value_bytes = 2 * layers * heads * size, 2 * layers * heads * tokens
    steps = key_bytes + value_bytes
    expected = steps + math.prod(shape) // 2
    if len(data) != expected:
        raise ValueError(f"expected {expected} bytes for int4 {list(shape)}, got {len(data)}")
    return dequantize4(
        torch.frombuffer(bytearray(data[steps:]), dtype=torch.uint8),
        tensor_from_bytes(data[:key_bytes], (layers, heads, size), "bfloat16"),
        tensor_from_bytes(data[key_bytes:steps], (layers, heads, tokens), "bfloat16"),
    )


def checksum(fields: Sequence[object], *buffers: bytes) -> bytes:
    """BLAKE2b over plain fields and byte strings; moving a byte from one to the next changes it."""
    digest = hashlib.blake2b(digest_size=_CHECKSUM_BYTES)
    _update(digest, fields, buffers)
    return digest.digest()


def fast_checksum(fields: Sequence[object], *buffers: bytes) -> bytes:
    """The same by XXH3 in 128 bits, for large buffers: it finds damage, not forgery."""
    digest = xxhash.xxh3_128()
    _update(digest, fields, buffers)
    return _XXH3 + digest.digest()


def is_checksum(stored: object, fields: Sequence[object], *buffers: bytes) -> bool:
    """Whether `stored` is the checksum of these, of either kind: banks of before have the first."""
    if not isinstance(stored, bytes):
        return False
    made = checksum if len(stored) == _CHECKSUM_BYTES else fast_checksum
    return made(fields, *buffers) == stored


def _update(digest: Any, fields: Sequence[object], buffers: Sequence[bytes]) -> None:
    digest.update(json.dumps(list(fields), default=repr).encode())
    for buffer in buffers:
        digest.update(len(buffer).to_bytes(8, "little"))
        digest.update(buffer)


def text_hash(text: str) -> str:
    """Hex digest that stands for a text: equal texts, equal hash."""
    return hashlib.blake2b(text.encode(), digest_size=32).hexdigest()
