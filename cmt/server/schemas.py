"""What requests and responses look like; FastAPI checks them and writes the OpenAPI document.

Only text comes in: a field that is not named here, a memory tensor say, is refused.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, cast

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, JsonValue

from cmt.learning import DocumentChanges
from cmt.records import DEFAULT_NAMESPACE, AddReport, Document, Match, StoredDocument

EXCERPT_CHARS = 300


def _finite(value: Any) -> Any:
    """JSON has no NaN, but Python's parser takes it, and could not send it back."""
    stack = [value]
    while stack:
        one = stack.pop()
        if isinstance(one, float) and not math.isfinite(one):
            raise ValueError("expected finite numbers")
        if isinstance(one, dict):
            stack.extend(one.values())
        elif isinstance(one, list):
            stack.extend(one)
    return value


Metadata = Annotated[dict[str, JsonValue], BeforeValidator(_finite)]
DocumentId = Annotated[
    str, Field(min_length=1, max_length=512, pattern=r"^[^\x00-\x1f\x7f]*[^\x00-\x20\x7f]$")
]


Name = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]*$")]
Tags = Annotated[list[Name], Field(max_length=64)]
Date = Annotated[str, Field(max_length=64, description="ISO 8601: 2026-01-31, 2026-01, …")]


class Strict(BaseModel):
    """A request of our own: unknown fields are refused."""

    model_config = ConfigDict(extra="forbid", strict=True)


class DocumentIn(Strict):
    """A document to learn. Its text is compressed; the rest is kept beside it."""

    text: str = Field(min_length=1, pattern=r"\S")
    id: DocumentId | None = None
    title: str = Field("", max_length=1000)
    date: Date | None = None
    source: str = Field("", max_length=2000)
    metadata: Metadata = {}
    namespace: Name = DEFAULT_NAMESPACE
    tags: Tags = []
    expires_at: Date | None = None
    supersede: bool = Field(False, description="keep the version it replaces as history")

    def document(self) -> Document:
        """As the library has it."""
        return Document(**self.model_dump())


class Selecting(BaseModel):
    """Which documents a question is about (`cmt.selection.Filters`), and which come first."""

    prefer_later: bool = Field(
        True, description="of memories on one subject that match about as well, the later"
    )

    namespace: Name | None = Field(DEFAULT_NAMESPACE, description="null: all of them")
    tags: Tags = []
    since: Date | None = None
    until: Date | None = None
    as_of: Date | None = None


class AddRequest(Strict):
    """Documents to learn; with `stream`, progress comes as server-sent events."""

    documents: list[DocumentIn] = Field(min_length=1)
    stream: bool = False


class PatchRequest(Strict):
    """What to change of a document; a new text replaces the old with its memories."""

    text: str | None = Field(None, min_length=1, pattern=r"\S")
    title: str | None = Field(None, max_length=1000)
    date: Date | None = None
    source: str | None = Field(None, max_length=2000)
    metadata: Metadata | None = None
    tags: Tags | None = None
    expires_at: Date | None = None
    supersede: bool = Field(False, description="keep the version before a new text as history")

    def changes(self) -> DocumentChanges:
        """What is to change; null clears a date or an expiry and leaves other fields alone."""
        given = self.model_dump(exclude_unset=True, exclude={"supersede"})
        clearable = ("date", "expires_at")
        changes = {name: v for name, v in given.items() if v is not None or name in clearable}
        return cast(DocumentChanges, changes)


class SearchRequest(Selecting, Strict):
    """A question whose memories are wanted."""

    query: str = Field(min_length=1, pattern=r"\S")
    top_k: int = Field(5, ge=1)
    rerank: int | None = Field(None, ge=0)


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


class Deleted(BaseModel):
    """A document that is forgotten."""

    object: Literal["memory.deleted"] = "memory.deleted"
    id: str
    deleted: Literal[True] = True


class SourceOut(BaseModel):
    """A memory that was read for an answer, or found for a query.

    `score` is the cosine of question and memory, `weight` its share in the prefix,
    `log_likelihood` how likely the frozen model finds the question after it.
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
    """Every response with status 400 and above."""

    error: ErrorDetail
