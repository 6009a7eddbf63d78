"""The plain data that passes between the parts: documents in, answers out.

Shape legend: L layers, G key/value heads, K memory tokens, E head size, C key size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

DEFAULT_NAMESPACE = "default"
ABSTENTION = "I don't know."


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """A text to learn.

    Attributes:
        text: What is learned. Must hold at least one non-space character.
        id: The caller's name for it, unique in a namespace; None derives one from the text.
        title: Shown with answers; not learned.
        date: ISO 8601 date or date-time from which on it holds, or None: when it is added.
        source: Where it came from (a path, a URL); shown with answers.
        metadata: Any JSON-serialisable mapping, stored and returned unchanged.
        namespace: The collection it belongs to; a bank holds any number of them.
        tags: Labels to filter by; kept sorted, each once.
        expires_at: ISO 8601 date or date-time from which on it is not matched any more, or None.
        supersede: Where another text is held under the id, keep that as history; or, where that
            is dated later, this one.
        stamped: Whether the date is only a file's time stamp. A text that supersedes then holds
            from now on where its date is no later than that of the text that holds; one that
            doesn't keeps the date held where another version is no earlier.
    """

    text: str
    id: str | None = None
    title: str = ""
    date: str | None = None
    source: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    namespace: str = DEFAULT_NAMESPACE
    tags: Sequence[str] = ()
    expires_at: str | None = None
    supersede: bool = False
    stamped: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Fingerprint:
    """Which weights made a memory: hex digests of the frozen model and of the compressor."""

    base_model: str
    compressor: str

    def __str__(self) -> str:
        return f"base model {self.base_model[:16]}, compressor {self.compressor[:16]}"


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedPiece:
    """One compressed piece of a document, on its way into the bank.

    Attributes:
        start, end: Character offsets of the piece in the document's text.
        tokens: Number of text tokens compressed.
        key: Unit vector, float32, shape (C,).
        memory: Keys and values at the memory positions, shape (L, 2, G, K, E).
        vectors: A unit vector of each memory token for late interaction, bfloat16, shape
            (K, V); None without.
        stored: Where `memory` was read from fewer bits: the tier and the bytes it is stored as,
            which a bank of that tier takes over as they are.
    """

    start: int
    end: int
    tokens: int
    key: torch.Tensor
    memory: torch.Tensor
    vectors: torch.Tensor | None = None
    stored: tuple[str, bytes] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredDocument:
    """A document as the bank holds it; `added_at` is ISO 8601 UTC, `memories` counts its pieces.

    Attributes:
        superseded_at: From when on a later version holds; None for the latest version.
    """

    id: str
    text: str
    title: str
    date: str | None
    source: str
    metadata: Mapping[str, Any]
    added_at: str
    memories: int
    memory_bytes: int
    namespace: str = DEFAULT_NAMESPACE
    tags: tuple[str, ...] = ()
    expires_at: str | None = None
    superseded_at: str | None = None

    def document(self) -> Document:
        """The same as it may be added again."""
        return Document(
            text=self.text,
            id=self.id,
            title=self.title,
            date=self.date,
            source=self.source,
            metadata=self.metadata,
            namespace=self.namespace,
            tags=self.tags,
            expires_at=self.expires_at,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredMemory:
    """One memory read back from the bank, checksum verified; shapes as in `EncodedPiece`."""

    memory_id: int
    document_id: str
    start: int
    end: int
    tokens: int
    memory: torch.Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """A memory that self-matching found for a question.

    Attributes:
        score: Cosine similarity of the question's key and the memory's key, in [-1, 1].
        weight: Its share in the aggregated prefix; the weights of an answer sum to 1.
        excerpt: The piece of text the memory was compressed from.
        log_likelihood: log P(question | memory) by the frozen model, where candidates were
            re-ranked.
        late_score: What late interaction added to the scaled score; 0 without.
        lexical_score: What BM25 added to it; 0 unless it was asked for.
    """

    memory_id: int
    document_id: str
    title: str
    date: str | None
    source: str
    start: int
    end: int
    score: float
    weight: float
    excerpt: str
    log_likelihood: float | None = None
    late_score: float = 0.0
    lexical_score: float = 0.0
    namespace: str = DEFAULT_NAMESPACE


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """An answer with its sources and what it cost.

    Attributes:
        text: What the frozen model says; `ABSTENTION` when abstained.
        matches: Best first; empty when the frozen model answered without memory.
        prompt_tokens: Tokens of text the frozen model read (question and template).
        memory_tokens: Memory positions put before them.
        generated_tokens: Tokens generated, the end token not counted.
        seconds: Wall-clock time of the batch the question was in, matching included.
        abstained: Nothing was read and generated, because no memory fitted the question.
        older: Memories that were not read because a later one on their subject was
            (freshness.py); their weight is 0.
    """

    question: str
    text: str
    matches: tuple[Match, ...]
    prompt_tokens: int
    memory_tokens: int
    generated_tokens: int
    seconds: float
    abstained: bool = False
    older: tuple[Match, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A document that could not be learned: which one (id, path or position) and why."""

    document: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AddReport:
    """What became of a batch of documents; ids are the bank's.

    Attributes:
        memories, memory_bytes: What was written, in records and bytes of memory tensor.
        tokens: Text tokens compressed.
        seconds: Wall-clock time of the whole call.
    """

    added: tuple[str, ...]
    updated: tuple[str, ...]
    unchanged: tuple[str, ...]
    failed: tuple[Failure, ...]
    memories: int
    memory_bytes: int
    tokens: int
    seconds: float
