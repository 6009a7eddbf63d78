"""What responses look like: the library's records as JSON, without tensors."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Literal

from pydantic import BaseModel

from cmt.memory_records import MemoryStats
from cmt.records import AddReport, Match, StoredDocument

EXCERPT_CHARS = 300


class FailureOut(BaseModel):
    """A document that could not be learned, and why."""

    document: str
    reason: str


class AddResponse(BaseModel):
    """What became of the documents; everything named here is on disk.

    `updated` were replaced under the same id, `unchanged` known already, `failed` not learned.
    """

    object: Literal["memory.report"] = "memory.report"
    added: list[str]
    updated: list[str]
    unchanged: list[str]
    failed: list[FailureOut]
    memories: int
    memory_bytes: int
    tokens: int
    seconds: float

    @classmethod
    def of(cls, report: AddReport) -> AddResponse:
        """From the library's report."""
        return cls(
            added=list(report.added),
            updated=list(report.updated),
            unchanged=list(report.unchanged),
            failed=[FailureOut(document=f.document, reason=f.reason) for f in report.failed],
            memories=report.memories,
            memory_bytes=report.memory_bytes,
            tokens=report.tokens,
            seconds=report.seconds,
        )


class DocumentSummary(BaseModel):
    """A document in a list: its beginning instead of its text."""

    object: Literal["memory"] = "memory"
    id: str
    title: str
    date: str | None
    source: str
    metadata: dict[str, Any]
    namespace: str
    tags: list[str]
    added_at: str
    expires_at: str | None
    superseded_at: str | None
    memories: int
    memory_bytes: int
    characters: int
    excerpt: str

    @classmethod
    def of(cls, stored: StoredDocument) -> DocumentSummary:
        """From the bank's record."""
        return cls(**_fields(stored))


class DocumentOut(DocumentSummary):
    """A document with its text."""

    text: str

    @classmethod
    def of(cls, stored: StoredDocument) -> DocumentOut:
        """From the bank's record."""
        return cls(**_fields(stored), text=stored.text)


def _fields(stored: StoredDocument) -> dict[str, Any]:
    return {
        "id": stored.id,
        "title": stored.title,
        "date": stored.date,
        "source": stored.source,
        "metadata": dict(stored.metadata),
        "namespace": stored.namespace,
        "tags": list(stored.tags),
        "added_at": stored.added_at,
        "expires_at": stored.expires_at,
        "superseded_at": stored.superseded_at,
        "memories": stored.memories,
        "memory_bytes": stored.memory_bytes,
        "characters": len(stored.text),
        "excerpt": stored.text[:EXCERPT_CHARS],
    }


class DocumentList(BaseModel):
    """A page of documents in the order they were added."""

    object: Literal["list"] = "list"
    data: list[DocumentSummary]
    total: int
    limit: int
    offset: int
    has_more: bool


class DocumentHistory(BaseModel):
    """A document's versions as they follow in time, the latest last."""

    object: Literal["list"] = "list"
    data: list[DocumentOut]

    @classmethod
    def of(cls, versions: list[StoredDocument]) -> DocumentHistory:
        """From the bank's records."""
        return cls(data=[DocumentOut.of(version) for version in versions])


class Deleted(BaseModel):
    """A document that is forgotten."""

    object: Literal["memory.deleted"] = "memory.deleted"
    id: str
    deleted: Literal[True] = True


class SourceOut(BaseModel):
    """A memory that was read for an answer, or found for a query.

    `score` is the cosine of question and memory, `weight` its share in the prefix,
    `log_likelihood` how likely the frozen model finds the question after it, `late_score` what
    late interaction added to the scaled score (0 without).
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
    log_likelihood: float | None
    late_score: float
    namespace: str
    excerpt: str

    @classmethod
    def of(cls, match: Match) -> SourceOut:
        """From the library's match."""
        return cls(**{name: getattr(match, name) for name in cls.model_fields})


class SearchResponse(BaseModel):
    """The memories found, best first."""

    object: Literal["list"] = "list"
    data: list[SourceOut]


class ModelOut(BaseModel):
    """A model that can be asked."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "cmt"


class ModelList(BaseModel):
    """The models that can be asked: one."""

    object: Literal["list"] = "list"
    data: list[ModelOut]


class MapPoint(BaseModel):
    """A memory on the map of the bank's keys."""

    memory_id: int
    document_id: str
    title: str
    date: str | None
    added_at: str
    namespace: str
    tags: list[str]
    x: float
    y: float
    excerpt: str


class MapResponse(BaseModel):
    """The keys' first two principal components, each scaled to [-1, 1].

    `explained` is the share of the keys' variance that each of the two shows.
    """

    points: list[MapPoint]
    total: int
    explained: tuple[float, float]


class StatsResponse(BaseModel):
    """How much was learned, where the bytes are, and which weights made it; as `cmt stats`.

    `memory_tokens` is how many memories there are of each size; `superseded` and `expired` are
    kept until they are purged. `base_model` and `compressor` are fingerprints.
    """

    object: Literal["memory.stats"] = "memory.stats"
    documents: int
    memories: int
    memory_bytes: int
    memory_bytes_per_document: float
    key_bytes: int
    text_bytes: int
    file_bytes: int
    superseded: int
    expired: int
    namespaces: list[str]
    memory_tokens: dict[int, int]
    tier: str
    base_model: str
    compressor: str

    @classmethod
    def of(cls, stats: MemoryStats, tier: str) -> StatsResponse:
        """From the library's record."""
        return cls(
            **asdict(stats.bank),
            memory_bytes_per_document=stats.bytes_per_document,
            tier=tier,
            **asdict(stats.fingerprint),
        )


class PurgeResponse(BaseModel):
    """The ids of what was purged, each as often as it had versions that went."""

    object: Literal["memory.purge"] = "memory.purge"
    purged: list[str]


class ProblemOut(BaseModel):
    """A damage; the ids are null where it belongs to no record."""

    document_id: str | None
    memory_id: int | None
    reason: str


class VerifyResponse(BaseModel):
    """The damages found in the bank's file; none in a sound one."""

    object: Literal["memory.verification"] = "memory.verification"
    sound: bool
    problems: list[ProblemOut]


class Health(BaseModel):
    """The service answers."""

    status: Literal["ok"] = "ok"
    version: str


class ErrorDetail(BaseModel):
    """What was wrong with a request, as OpenAI's API says it."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """Every response with status 400 and above.

    `report`, with the code `stopping`: which documents of the request were kept.
    """

    error: ErrorDetail
    report: AddResponse | None = None
