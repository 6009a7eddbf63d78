"""The bank's documents over HTTP: add, list, get, patch, forget, search."""

from __future__ import annotations

import io
import logging
import re
import time
from collections.abc import AsyncGenerator, Iterable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import replace
from itertools import islice
from typing import Annotated, Any, cast

from fastapi import APIRouter, Path, Query, Request
from fastapi.responses import StreamingResponse

from cmt.dates import checked_span, known_from, today
from cmt.errors import CorruptRecordError, InputError, UnknownIdError
from cmt.learning import changed_document, with_options
from cmt.readers import READERS, read_stdin
from cmt.records import DEFAULT_NAMESPACE, AddReport, Document, Failure, StoredDocument
from cmt.selection import select
from cmt.server.errors import ServiceError, StoppingError, public
from cmt.server.events import event_stream
from cmt.server.jobs import Found, Wish
from cmt.server.learning import NOTHING, last
from cmt.server.responses import (
    AddResponse,
    Deleted,
    DocumentHistory,
    DocumentList,
    DocumentOut,
    DocumentSummary,
    SearchResponse,
    SourceOut,
)
from cmt.server.schemas import LONGEST_ID, AddRequest, FileQuery, Name, PatchRequest, SearchRequest
from cmt.server.service import Current, Service, unless_left

router = APIRouter(prefix="/v1/memories", tags=["Memories"])
Id = Annotated[str, Path(min_length=1, max_length=LONGEST_ID)]
Namespace = Annotated[Name, Query()]
_logger = logging.getLogger(__name__)
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_STREAMED: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {}}}}


@router.post("", response_model=AddResponse, responses=_STREAMED)
async def add(
    asked: AddRequest, request: Request, service: Current
) -> AddResponse | StreamingResponse:
    """Learn documents. What the response names is on disk.

    One that can't be learned is named under `failed` and the others are kept. With `stream`,
    reports that grow come as server-sent events.
    """
    most = service.settings.max_documents
    if len(asked.documents) > most:
        message = f"expected at most {most} documents, got {len(asked.documents)}"
        raise ServiceError(413, "too_large", message, param="documents")
    documents = [document.document() for document in asked.documents]
    return await _learn(service, request, _fitting(service, documents), stream=asked.stream)


@router.post(
    "/file",
    response_model=AddResponse,
    responses=_STREAMED,
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                "application/octet-stream": {"schema": {"type": "string", "format": "binary"}}
            },
        }
    },
)
async def add_file(
    asked: Annotated[FileQuery, Query()], request: Request, service: Current
) -> AddResponse | StreamingResponse:
    """Learn a file: its bytes are the request's body.

    With an `id`, a file that is posted again replaces what was learned from it, or with
    `supersede` keeps that as history. A file of several records can't have one.
    """
    read = _documents(await request.body(), asked.kind, asked.name)
    named = _dated(_identified(read, asked.id), asked.date)
    documents = cast(Iterable[Document | Failure], with_options(named, asked.options()))
    return await _learn(service, request, _fitting(service, documents), stream=asked.stream)


@router.get("")
def list_documents(
    service: Current,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    offset: Annotated[int, Query(ge=0, le=2**62)] = 0,
    namespace: Annotated[Name | None, Query(description="default: all of them")] = None,
    tag: Annotated[list[Name] | None, Query(description="documents that have all of these")] = None,
) -> DocumentList:
    """The documents, each in its latest version; `total` counts those asked for.

    They come in the order they were added, expired ones and those dated ahead too, unless a
    namespace or tag is given: then what holds now. Damaged ones are passed over; the server's log
    names them.
    """
    bank = service.memory.bank
    asked = namespace is not None or tag
    selection = select(namespace=namespace, tags=tag or ()) if asked else None
    total = bank.count_documents(selection)
    found = bank.documents(limit=limit, offset=offset, selection=selection, on_damage=_warn)
    return DocumentList(
        data=[DocumentSummary.of(stored) for stored in found],
        total=total,
        limit=limit,
        offset=offset,
        has_more=offset + limit < total,
    )


def _warn(error: CorruptRecordError) -> None:
    _logger.warning("a document is left out of a list: %s", error)


@router.post("/search")
async def search(asked: SearchRequest, request: Request, service: Current) -> SearchResponse:
    """The memories that a question finds, best first."""
    service.check_question(asked.query, "query")
    wish = replace(asked.wish(service.settings.wish), top_k=asked.top_k, search=True)
    service.check_counts(wish.top_k, wish.rerank)
    return await unless_left(request, _found(service, asked.query, wish))


@router.get("/{document_id:path}")
def get(
    document_id: Id,
    service: Current,
    namespace: Namespace = DEFAULT_NAMESPACE,
    history: Annotated[bool, Query(description="every version, as they follow in time")] = False,
) -> DocumentOut | DocumentHistory:
    """A document with its text, in its latest version: maybe one that is dated ahead."""
    if history:
        return DocumentHistory.of(service.memory.history(document_id, namespace=namespace))
    return DocumentOut.of(service.memory.get(document_id, namespace=namespace))


@router.patch("/{document_id:path}")
async def patch(
    document_id: Id,
    asked: PatchRequest,
    request: Request,
    service: Current,
    namespace: Namespace = DEFAULT_NAMESPACE,
) -> DocumentOut:
    """Change fields of a document; a new text is compressed and replaces the old at once.

    With `supersede` the old text holds until the new one's date (until now, without one); one dated
    earlier than the old text is its history. The version changed is given back.
    """
    written: list[Document] = []

    def changed() -> Iterator[Document]:  # runs where nothing else is added meanwhile
        stored = service.memory.get(document_id, namespace=namespace)
        document = changed_document(stored, asked.changes(), supersede=asked.supersede)
        written.append(document)
        yield document

    documents = _fitting(service, changed())
    learning = service.learning.learn(documents, known_only=True)
    report = await unless_left(request, last(learning))
    if report.failed:
        service.memory.get(document_id, namespace=namespace)  # forgotten meanwhile?
        raise ServiceError(400, "invalid_value", public(report.failed[0].reason, service.secrets))
    versions = service.memory.history(document_id, namespace=namespace)
    return DocumentOut.of(_written(versions, written[-1]))


def _written(versions: Sequence[StoredDocument], document: Document) -> StoredDocument:
    """The version that a document has become; one that superseded without a date holds now."""
    own = [version for version in versions if version.text == document.text]
    if document.supersede and document.date is None:
        at = max(time.time(), today())
        own = [version for version in own if known_from(version.date, version.added_at) <= at]
    else:
        own = [version for version in own if version.date == document.date]
    return (own or versions)[-1]


@router.delete("/{document_id:path}")
def forget(document_id: Id, service: Current, namespace: Namespace = DEFAULT_NAMESPACE) -> Deleted:
    """Forget a document, its history and memories."""
    if not service.memory.forget(document_id, namespace=namespace):
        raise UnknownIdError(f"no document with id {document_id!r} is in the bank")
    return Deleted(id=document_id)


async def _found(service: Service, query: str, wish: Wish) -> SearchResponse:
    async with aclosing(service.asking.ask(query, wish, 1)) as events:
        async for event in events:
            if isinstance(event, Found):
                found = event
    return SearchResponse(data=[SourceOut.of(match) for match in found.matches])


async def _learn(
    service: Service, request: Request, documents: Iterable[Document | Failure], *, stream: bool
) -> AddResponse | StreamingResponse:
    reports = service.learning.learn(documents)
    if stream:
        return event_stream(_progress(service, reports), service.secrets)
    return await unless_left(request, _whole(service, reports))


async def _whole(service: Service, reports: AsyncGenerator[AddReport]) -> AddResponse:
    whole = NOTHING
    try:
        async with aclosing(reports):
            async for report in reports:
                whole = report
    except StoppingError as error:
        raise StoppingError(_told(service, whole).model_dump()) from error
    return _told(service, whole)


async def _progress(
    service: Service, reports: AsyncGenerator[AddReport]
) -> AsyncGenerator[dict[str, Any]]:
    async with aclosing(reports):
        async for report in reports:
            yield _told(service, report).model_dump()


def _told(service: Service, report: AddReport) -> AddResponse:
    """A report without paths of this machine."""
    failed = tuple(
        Failure(
            document=public(failure.document, service.secrets),
            reason=public(failure.reason, service.secrets),
        )
        for failure in report.failed
    )
    return AddResponse.of(replace(report, failed=failed))


def _documents(data: bytes, kind: str, name: str) -> Iterator[Document | Failure]:
    """A file's documents, named after it."""
    assert kind in READERS
    for record in read_stdin(io.BytesIO(data), kind=kind):
        if isinstance(record, Failure):
            yield replace(record, document=record.document.replace("stdin", name, 1))
        else:
            source = record.source.replace("stdin", name, 1)
            yield replace(record, source=source, title=record.title or name)


def _identified(
    records: Iterator[Document | Failure], document_id: str | None
) -> Iterator[Document | Failure]:
    """The records of a file; its one document under this id, where there is one.

    Raises:
        InputError: There is, and several records.
    """
    if document_id is None:
        yield from records
        return
    first_two = list(islice(records, 2))
    if len(first_two) > 1:
        raise InputError(
            f"expected a file of one document for the id {document_id!r}, got several records: "
            "give each an id of its own"
        )
    for record in first_two:
        yield record if isinstance(record, Failure) else replace(record, id=document_id)


def _dated(records: Iterable[Document | Failure], date: str | None) -> Iterator[Document | Failure]:
    """The records; documents without a date with this one.

    Raises:
        InputError: It is none.
    """
    if date is not None:
        checked_span(date, "date")
    return (
        record if isinstance(record, Failure) else replace(record, date=record.date or date)
        for record in records
    )


def _fitting(
    service: Service, documents: Iterable[Document | Failure]
) -> Iterator[Document | Failure]:
    """The documents; those with too long a text, or an id that no URL can name, as failures."""
    most = service.settings.max_document_chars
    for position, document in enumerate(documents, start=1):
        reason = None if isinstance(document, Failure) else _misfit(document, most)
        if isinstance(document, Failure) or reason is None:
            yield document
        else:
            name = str(document.id or document.source or f"document {position}")
            yield Failure(document=name[:LONGEST_ID], reason=reason)


def _misfit(document: Document, most: int) -> str | None:
    """Why a document can't be taken.

    Clients resolve "." and ".." in a URL: forgetting "a/../b" would forget "b".
    """
    if len(document.text) > most:
        return f"expected a text of at most {most} characters, got {len(document.text)}"
    if document.id is not None:
        if len(document.id) > LONGEST_ID:
            return f"expected an id of at most {LONGEST_ID} characters, got {len(document.id)}"
        if _CONTROL.search(document.id) or not {".", ".."}.isdisjoint(document.id.split("/")):
            return (
                "expected an id that a URL can name, without control characters and '.' or '..' "
                f"between slashes, got {document.id!r}"
            )
    return None
