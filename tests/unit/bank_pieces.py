"""Small memories for the tests of the bank and of matching."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn.functional import normalize

from cmt.bank import Bank, Outcome
from cmt.records import Document, EncodedPiece, Fingerprint

FINGERPRINT = Fingerprint(base_model="a" * 64, compressor="b" * 64)
KEY_SIZE = 8


def make_key(seed: int, size: int = KEY_SIZE) -> torch.Tensor:
    """A random unit vector, float32, shape (size,)."""
    return normalize(torch.randn(size, generator=torch.Generator().manual_seed(seed)), dim=0)


def make_piece(
    text: str,
    seed: int = 0,
    *,
    shape: tuple[int, ...] = (2, 2, 1, 3, 4),
    dtype: torch.dtype = torch.bfloat16,
    key: torch.Tensor | None = None,
    start: int = 0,
    end: int | None = None,
    tokens: int = 5,
    vectors: torch.Tensor | None = None,
) -> EncodedPiece:
    """A piece that covers the whole text unless offsets say otherwise."""
    generator = torch.Generator().manual_seed(seed)
    return EncodedPiece(
        start=start,
        end=len(text) if end is None else end,
        tokens=tokens,
        key=make_key(seed) if key is None else key,
        memory=torch.randn(shape, generator=generator).to(dtype),
        vectors=vectors,
    )


def make_vectors(seed: int, tokens: int = 3, size: int = 6) -> torch.Tensor:
    """Random vectors for late interaction, bfloat16, shape (tokens, size)."""
    return torch.randn(tokens, size, generator=torch.Generator().manual_seed(seed)).bfloat16()


def make_entry(text: str, seed: int = 0, **fields: object) -> tuple[Document, list[EncodedPiece]]:
    """A document of one piece; fields are those of `Document`."""
    return Document(text=text, **fields), [make_piece(text, seed)]  # type: ignore[arg-type]


def add(bank: Bank, text: str, seed: int = 0, **fields: object) -> Outcome:
    """Add one text to a bank."""
    return bank.add([make_entry(text, seed, **fields)])[0]


def keys_of(bank: Bank) -> dict[int, np.ndarray]:
    """Every key in a bank by its memory id."""
    changes = bank.key_changes(0)
    return dict(zip(changes.added_ids, changes.added_keys, strict=True))
