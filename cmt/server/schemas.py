"""What requests look like; FastAPI checks them and writes the OpenAPI document.

Only text comes in: a field that is not named here, a memory tensor say, is refused.
"""

from __future__ import annotations

import math
from dataclasses import fields, replace
from typing import Annotated, Any, Literal, cast

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, JsonValue

from cmt.learning import AddOptions, DocumentChanges
from cmt.records import DEFAULT_NAMESPACE, Document
from cmt.server.jobs import Wish

LONGEST_ID = 512  # characters


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
    str, Field(min_length=1, max_length=LONGEST_ID, pattern=r"^[^\x00-\x1f\x7f]*[^\x00-\x20\x7f]$")
]


Name = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]*$")]
Tags = Annotated[list[Name], Field(max_length=64)]
Kind = Literal["txt", "md", "markdown", "html", "htm", "pdf", "jsonl", "ndjson", "csv", "tsv"]
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
    supersede: bool = Field(False, description="keep the version it replaces for its time")

    def document(self) -> Document:
        """As the library has it."""
        return Document(**self.model_dump())


_WISHES = frozenset(field.name for field in fields(Wish))
_NULLABLE = frozenset({"seed", "min_score", "namespace", "since", "until", "as_of"})


class Selecting(BaseModel):
    """Which documents a question is about (`cmt.selection.Filters`), and how memories are found.

    What isn't given is as `Settings.wish` has it.
    """

    rerank: int | None = Field(None, ge=0, description="memories found and re-ranked; 0: none")
    lexical: float | None = Field(
        None, ge=0, allow_inf_nan=False, description="weight of BM25 beside the logit of matching"
    )
    prefer_later: bool | None = Field(
        None, description="of memories on one subject that match about as well, the later"
    )
    namespace: Name | None = Field(None, description="null, if given: all of them")
    tags: Tags | None = None
    since: Date | None = None
    until: Date | None = None
    as_of: Date | None = None

    def wish(self, default: Wish) -> Wish:
        """`default`, changed as this request says.

        Null says nothing, but for fields where it has a meaning: no seed, no least score, no
        filter.
        """
        given = {name: getattr(self, name) for name in self.model_fields_set & _WISHES}
        if given.get("tags") is not None:
            given["tags"] = tuple(given["tags"])
        said = {name: v for name, v in given.items() if v is not None or name in _NULLABLE}
        return replace(default, **said)


class AddRequest(Strict):
    """Documents to learn; with `stream`, progress comes as server-sent events."""

    documents: list[DocumentIn] = Field(min_length=1)
    stream: bool = False


class FileQuery(BaseModel):
    """What a file's URL says of it; of its records where they don't say it themselves."""

    model_config = ConfigDict(extra="forbid")  # not strict: a URL is text

    kind: Kind = Field("txt", description="how to read it")
    name: Name = Field("upload", description="shown as title and source")
    id: DocumentId | None = Field(None, description="of the one document in it")
    date: Date | None = None
    namespace: Name | None = Field(None, description="in place of the records' own")
    tags: Tags = Field([], description="beside the records' own; repeat it for several")
    expires_at: Date | None = None
    supersede: bool = Field(False, description="keep the version it replaces as history")
    stream: bool = False

    def options(self) -> AddOptions:
        """What `Memory.add` would take."""
        options: AddOptions = {"tags": self.tags, "supersede": self.supersede}
        if self.namespace is not None:
            options["namespace"] = self.namespace
        if self.expires_at is not None:
            options["expires_at"] = self.expires_at
        return options


class PatchRequest(Strict):
    """What to change of a document; a new text replaces the old with its memories."""

    text: str | None = Field(None, min_length=1, pattern=r"\S")
    title: str | None = Field(None, max_length=1000)
    date: Date | None = None
    source: str | None = Field(None, max_length=2000)
    metadata: Metadata | None = None
    tags: Tags | None = None
    expires_at: Date | None = None
    supersede: bool = Field(False, description="keep the version before a new text for its time")

    def changes(self) -> DocumentChanges:
        """What is to change; null clears a date or an expiry and leaves other fields alone."""
        given = self.model_dump(exclude_unset=True, exclude={"supersede"})
        clearable = ("date", "expires_at")
        changes = {name: v for name, v in given.items() if v is not None or name in clearable}
        return cast(DocumentChanges, changes)


class PurgeRequest(Strict):
    """What to purge."""

    history: bool = Field(False, description="versions that were superseded, too")


class SearchRequest(Selecting, Strict):
    """A question whose memories are wanted."""

    query: str = Field(min_length=1, pattern=r"\S")
    top_k: int = Field(5, ge=1)
