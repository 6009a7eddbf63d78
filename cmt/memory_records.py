"""What `Memory` tells about itself and its work, beside the records of `cmt.records`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cmt.bank.records import Stats
from cmt.records import Fingerprint


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far `Memory.add` is; documents that it counts as done are on disk.

    Attributes:
        documents: Documents that are done, unchanged and failed ones included.
        tokens: Text tokens compressed, of a long document that isn't done yet too.
        memory_bytes: Bytes of memory tensor written, of documents that are done.
    """

    documents: int
    tokens: int
    memory_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryStats:
    """What a memory holds, what that costs, and what made it.

    Attributes:
        bank: How much is stored and where the bytes are.
        bytes_per_document: Bytes of memory tensor, on average; 0 for an empty bank.
        memory_tokens: Places that a memory takes in the frozen model's cache: how many memories
            there are of each size.
        base_model: The frozen model's name.
        fingerprint: The weights of base model and compressor.
    """

    bank: Stats
    bytes_per_document: float
    memory_tokens: Mapping[int, int]
    base_model: str
    fingerprint: Fingerprint
