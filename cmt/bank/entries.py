"""Documents and their compressed pieces checked and turned to bytes, ready to be stored."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch

from cmt.bank.rows import memory_checksum
from cmt.bank.tensor_bytes import Tier, dtype_name, memory_to_bytes, tensor_to_bytes, text_hash
from cmt.dates import checked_span
from cmt.errors import CorruptRecordError, DocumentError, InputError
from cmt.records import Document, EncodedPiece
from cmt.selection import check_label, check_tags

UNIT_TOLERANCE = 0.01  # how far a key's length may be from 1
DEEPEST_METADATA = 64  # objects and lists in each other; few JSON libraries take hundreds


class Layout(NamedTuple):
    """What all memories of one bank share; the number of memory tokens K is free."""

    layers: int
    kv_heads: int
    head_size: int
    key_size: int
    vector_size: int = 0

    def __str__(self) -> str:
        vectors = f" and vectors of {self.vector_size}" if self.vector_size else ""
        return (
            f"(L={self.layers}, 2, G={self.kv_heads}, K, E={self.head_size}) "
            f"with keys of {self.key_size}{vectors}"
        )

    @classmethod
    def parse(cls, stored: object) -> Layout:
        """The layout that a bank's JSON says.

        Raises:
            CorruptRecordError: It says none.
        """
        try:
            layout = cls(*json.loads(str(stored)))
            if all(isinstance(size, int) for size in layout):
                return layout
        except (TypeError, ValueError):
            pass
        raise CorruptRecordError(
            f"expected the sizes of the bank's memories, got {stored!r}: restore a copy of the bank"
        )

    @classmethod
    def of(cls, piece: EncodedPiece) -> Layout:
        """The layout of a piece's memory, of shape (L, 2, G, K, E)."""
        shape, vectors = piece.memory.shape, piece.vectors
        size = 0 if vectors is None else vectors.shape[1]
        return cls(shape[0], shape[2], shape[4], piece.key.shape[0], size)


@dataclass(frozen=True, slots=True)
class MemoryEntry:
    """A memory as the bank writes it; tensors are raw bytes, `shape` a JSON list."""

    start: int
    end: int
    tokens: int
    dtype: str
    shape: str
    checksum: bytes
    key: bytes
    data: bytes
    vectors: bytes | None


class MemoryEntries(Protocol):
    """A document's memories, in memory or in a file (preparing.py)."""

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[MemoryEntry]: ...


@dataclass(frozen=True, slots=True)
class DocumentEntry:
    """A document as the bank writes it; `metadata` and `tags` are JSON.

    Attributes:
        layouts: Those that its memories have, each once.
        memory_bytes: Bytes of its memories' tensors, as stored.
    """

    id: str | None
    title: str
    date: str | None
    source: str
    metadata: str
    namespace: str
    tags: str
    expires_at: str | None
    supersede: bool
    stamped: bool
    content_hash: str
    text: str
    memories: MemoryEntries = ()
    layouts: tuple[Layout, ...] = ()
    memory_bytes: int = 0

    @property
    def name(self) -> str:
        """How messages call it."""
        return _name(self.id, self.text)


def document_entry(
    document: Document,
    pieces: Iterable[EncodedPiece] = (),
    tier: Tier = "bf16",
    *,
    keep: Callable[[Iterable[MemoryEntry]], MemoryEntries] = tuple,
) -> DocumentEntry:
    """Check a document and its pieces and turn them to bytes; `keep` takes these as they come.

    Its date is checked where the bank's are at hand (`write.check_date`).

    Raises:
        InputError: Something in it can't be stored; says what, and of which document.
    """
    _check_text_fields(document)
    _check_life(document)
    content_hash = text_hash(document.text)
    layouts: dict[Layout, None] = {}
    memory_bytes = 0

    def memories() -> Iterator[MemoryEntry]:
        nonlocal memory_bytes
        for piece in pieces:
            memory = _memory_entry(document, piece, content_hash, tier)
            layouts[Layout.of(piece)] = None
            memory_bytes += len(memory.data)
            yield memory

    kept = keep(memories())
    return DocumentEntry(
        id=document.id,
        title=document.title,
        date=document.date,
        source=document.source,
        metadata=_metadata_json(document),
        namespace=document.namespace,
        tags=json.dumps(list(check_tags(document.tags)), ensure_ascii=False),
        expires_at=document.expires_at,
        supersede=document.supersede,
        stamped=document.stamped,
        content_hash=content_hash,
        text=document.text,
        memories=kept,
        layouts=tuple(layouts),
        memory_bytes=memory_bytes,
    )


def _name(document_id: str | None, text: str) -> str:
    return f"document {document_id!r}" if document_id is not None else f"document {text[:40]!r}…"


def _check_text_fields(document: Document) -> None:
    name = _name(document.id, str(document.text))
    for field in ("text", "id", "title", "date", "source"):
        value = getattr(document, field)
        if value is None and field in ("id", "date"):
            continue
        if not isinstance(value, str):
            raise DocumentError(f"{name}: expected {field} to be a str, got {value!r}")
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise DocumentError(f"{name}: {field} is not valid Unicode ({error})") from error
        if field in ("text", "id") and not value.strip():
            raise DocumentError(f"{name}: expected {field} to hold more than spaces, got {value!r}")


def _check_life(document: Document) -> None:
    """Namespace, tags and expiry."""
    try:
        check_label(document.namespace, "namespace")
        check_tags(document.tags)
        if document.expires_at is not None:
            checked_span(document.expires_at, "expires_at")
    except InputError as error:
        raise DocumentError(f"{_name(document.id, document.text)}: {error}") from error


def _metadata_json(document: Document) -> str:
    name = _name(document.id, document.text)
    if not isinstance(document.metadata, Mapping):
        raise DocumentError(f"{name}: expected metadata to be a mapping, got {document.metadata!r}")
    metadata: dict[str, Any] = dict(document.metadata)
    try:
        json.dumps(metadata, ensure_ascii=False).encode()  # whoever reads it must be able to
        encoded = json.dumps(metadata, allow_nan=False)
        decoded = json.loads(encoded)
    except (TypeError, ValueError, RecursionError) as error:
        raise DocumentError(f"{name}: metadata can't be written as JSON ({error})") from error
    if _deeper_than(DEEPEST_METADATA, decoded):
        raise DocumentError(
            f"{name}: expected metadata with at most {DEEPEST_METADATA} objects and lists in each "
            "other, got more"
        )
    if decoded != metadata:
        raise DocumentError(
            f"{name}: metadata would come back from JSON as {decoded!r}, not as {metadata!r}: "
            "use str as keys and lists instead of tuples"
        )
    return encoded


def _deeper_than(most: int, value: object) -> bool:
    level = [value]
    for _ in range(most):
        level = [
            inner
            for one in level
            if isinstance(one, dict | list | tuple)
            for inner in (one.values() if isinstance(one, dict) else one)
        ]
        if not level:
            return False
    return any(isinstance(one, dict | list | tuple) for one in level)


def _memory_entry(
    document: Document, piece: EncodedPiece, content_hash: str, tier: Tier
) -> MemoryEntry:
    name = f"{_name(document.id, document.text)}, piece [{piece.start}:{piece.end}]"
    _check_piece(name, document, piece)
    shape = json.dumps(list(piece.memory.shape))
    key = tensor_to_bytes(piece.key)
    if piece.stored is not None and piece.stored[0] == tier:
        dtype, data = piece.stored
    else:
        dtype, data = memory_to_bytes(piece.memory, tier)
    vectors = None if piece.vectors is None else tensor_to_bytes(piece.vectors)
    return MemoryEntry(
        start=piece.start,
        end=piece.end,
        tokens=piece.tokens,
        dtype=dtype,
        shape=shape,
        checksum=memory_checksum(
            piece.start, piece.end, piece.tokens, dtype, shape, content_hash, key, data, vectors
        ),
        key=key,
        data=data,
        vectors=vectors,
    )


def _check_piece(name: str, document: Document, piece: EncodedPiece) -> None:
    length = len(document.text)
    if not 0 <= piece.start < piece.end <= length:
        raise InputError(f"{name}: expected 0 <= start < end <= {length} (the text's length)")
    if piece.tokens < 1:
        raise InputError(f"{name}: expected at least 1 token, got {piece.tokens}")
    key, memory = piece.key, piece.memory
    if key.ndim != 1 or key.numel() == 0 or key.dtype != torch.float32:
        raise InputError(
            f"{name}: expected a float32 key of shape (C,), got {key.dtype} {tuple(key.shape)}"
        )
    if memory.ndim != 5 or memory.shape[1] != 2 or memory.numel() == 0:
        raise InputError(
            f"{name}: expected a memory of shape (L, 2, G, K, E), got {tuple(memory.shape)}"
        )
    dtype_name(memory.dtype)
    vectors = piece.vectors
    if vectors is not None and (
        vectors.ndim != 2
        or vectors.shape[0] != memory.shape[3]
        or vectors.numel() == 0
        or vectors.dtype != torch.bfloat16
    ):
        raise InputError(
            f"{name}: expected bfloat16 vectors of shape ({memory.shape[3]}, V), "
            f"got {vectors.dtype} {tuple(vectors.shape)}"
        )
    for what, tensor in (("key", key), ("memory", memory), ("vectors", vectors)):
        if tensor is None:
            continue
        lowest, highest = torch.aminmax(tensor.detach())  # NaN if there is one anywhere
        if not (math.isfinite(lowest) and math.isfinite(highest)):
            raise InputError(f"{name}: expected finite numbers, got NaN or infinity in its {what}")
    norm = float(torch.linalg.vector_norm(key))
    if abs(norm - 1.0) > UNIT_TOLERANCE:
        raise InputError(f"{name}: expected a key of length 1, got length {norm:.4g}")
