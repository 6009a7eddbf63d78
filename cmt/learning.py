"""Documents on their way into the bank: checked, split, gathered into windows, counted.

A window is what fills one batch of the compressor, or one document that takes several, and one
transaction of the bank. Only one is held at a time, of a long document's memories those of a batch
(the others wait in a file, bank/preparing.py): any number of documents of any length can be
learned in the memory that a batch and the longest text with its tokens take.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from itertools import islice
from typing import Any, TypedDict

import torch

from cmt.bank import Bank, Outcome
from cmt.compressor import Compressor, Encoded
from cmt.dates import after, checked_span
from cmt.errors import InputError
from cmt.memory_records import Progress
from cmt.records import AddReport, Document, EncodedPiece, Failure, StoredDocument
from cmt.selection import check_label, check_tags
from cmt.splitting import Piece, split

MOST_DOCUMENTS = 256  # in a window, however short they are


class AddOptions(TypedDict, total=False):
    """Keywords of `Memory.add` that change every document.

    Attributes:
        namespace: In place of the document's own.
        tags: Beside the document's own.
        expires_at: ISO 8601, for documents that have none.
        ttl: The same as a time to live, from now on.
        supersede: True keeps versions that are replaced as history.
    """

    namespace: str
    tags: Sequence[str]
    expires_at: str
    ttl: timedelta
    supersede: bool


class DocumentChanges(TypedDict, total=False):
    """Keywords of `Memory.update`; None clears a date or an expiry."""

    text: str
    title: str
    date: str | None
    source: str
    metadata: Mapping[str, Any]
    tags: Sequence[str]
    expires_at: str | None


@dataclass(slots=True)
class Draft:
    """A document ready to be compressed; without pieces the bank has its memories already."""

    document: Document
    name: str
    pieces: Sequence[Piece]


@dataclass(slots=True)
class Tally:
    """What has become of the documents so far."""

    added: list[str] = field(default_factory=list)
    updated: list[str] = field(default_factory=list)
    unchanged: list[str] = field(default_factory=list)
    failed: list[Failure] = field(default_factory=list)
    memories: int = 0
    memory_bytes: int = 0
    tokens: int = 0

    def stored(self, outcome: Outcome, pieces: Sequence[Piece]) -> None:
        """Count a document that the bank has taken, and the pieces of it that were compressed."""
        lists = {"added": self.added, "updated": self.updated, "unchanged": self.unchanged}
        lists[outcome.status].append(outcome.id)
        self.tokens += sum(len(piece.token_ids) for piece in pieces)
        self.memories += outcome.memories
        self.memory_bytes += outcome.memory_bytes

    def progress(self, in_hand: int = 0) -> Progress:
        """The figures for whoever watches, with the tokens of a document that is in hand."""
        learned = len(self.added) + len(self.updated) + len(self.unchanged)
        return Progress(
            documents=learned + len(self.failed),
            tokens=self.tokens + in_hand,
            memory_bytes=self.memory_bytes,
        )

    def report(self, seconds: float) -> AddReport:
        """The result of the whole call."""
        return AddReport(
            added=tuple(self.added),
            updated=tuple(self.updated),
            unchanged=tuple(self.unchanged),
            failed=tuple(self.failed),
            memories=self.memories,
            memory_bytes=self.memory_bytes,
            tokens=self.tokens,
            seconds=seconds,
        )


def as_items(
    documents: Document | str | Iterable[Document | str | Failure],
) -> Iterable[Document | str | Failure]:
    """One document or many as an iterable.

    Raises:
        InputError: It is neither.
    """
    if isinstance(documents, Document | str):
        return [documents]
    if not isinstance(documents, Iterable) or isinstance(documents, Mapping | bytes | bytearray):
        raise InputError(
            f"expected a Document, a str or an iterable of them, got {type(documents).__name__}"
        )
    return documents


def with_options(
    items: Iterable[Document | str | Failure], options: AddOptions
) -> Iterable[Document | str | Failure]:
    """The documents with what `AddOptions` say.

    Raises:
        InputError: An option that is none, or can't be.
    """
    if not options:
        return items
    _check_names(options, AddOptions)
    namespace = options.get("namespace")
    tags = check_tags(options.get("tags", ()))
    expires_at = options.get("expires_at")
    if namespace is not None:
        check_label(namespace, "namespace")
    if expires_at is not None:
        checked_span(expires_at, "expires_at")
    if "ttl" in options:
        if expires_at is not None:
            raise InputError("expected expires_at or ttl, got both")
        expires_at = after(options["ttl"])
    supersede = options.get("supersede", False)

    def changed(item: Document | str | Failure) -> Document | str | Failure:
        if not isinstance(item, Document | str):
            return item
        document = Document(text=item) if isinstance(item, str) else item
        return replace(
            document,
            namespace=document.namespace if namespace is None else namespace,
            tags=_joined(document.tags, tags),
            expires_at=document.expires_at or expires_at,
            supersede=document.supersede or supersede,
        )

    return map(changed, items)


def _joined(own: object, more: Sequence[str]) -> Any:
    """Both together; what are no tags stays as it is, for the bank to say so."""
    return (*own, *more) if isinstance(own, Sequence) and not isinstance(own, str) else own


def changed_document(
    stored: StoredDocument, changes: DocumentChanges, *, supersede: bool = False
) -> Document:
    """A stored document with changes, to be added again.

    Where a new text supersedes, and no date is given, it holds from now on: with the old one's
    date, the old version would have held on no day. Without a new text nothing is superseded, and
    the version's date may be moved.

    Raises:
        InputError: A change of what can't be changed.
    """
    _check_names(changes, DocumentChanges)
    changed = replace(stored.document(), **changes)
    if not supersede or changed.text == stored.text:
        return changed
    return replace(changed, supersede=True, date=changes.get("date"))


def _check_names(given: Mapping[str, Any], expected: type) -> None:
    names = list(expected.__annotations__)
    unknown = [name for name in given if name not in names]
    if unknown:
        raise InputError(f"expected keywords out of {', '.join(names)}, got {unknown[0]!r}")


def drafts(
    documents: Iterable[object], bank: Bank, compressor: Compressor
) -> Iterator[Draft | Failure]:
    """Each document split into pieces, or why that can't be; a reader's failures pass through."""
    for position, item in enumerate(documents, start=1):
        if isinstance(item, Failure):
            yield item
            continue
        if not isinstance(item, Document | str):
            reason = f"expected a Document or a str, got {type(item).__name__}"
            yield Failure(document=f"document {position}", reason=reason)
            continue
        document = Document(text=item) if isinstance(item, str) else item
        name = str(document.id or document.source or f"document {position}")
        try:
            known = bank.status_of(document) == "unchanged"
            pieces = [] if known else split_for(compressor, document.text)
        except InputError as error:
            yield Failure(document=name, reason=str(error))
            continue
        yield Draft(document, name, pieces)


def split_for(compressor: Compressor, text: str) -> list[Piece]:
    """A text in pieces that this compressor can take.

    Raises:
        DocumentError: It can't be split.
    """
    config = compressor.config
    return split(
        text,
        compressor.base.tokenizer,
        max_tokens=config.max_piece_tokens,
        overlap_tokens=config.overlap_tokens,
    )


def as_encoded(
    passes: Iterable[tuple[list[int], Encoded]], pieces: Sequence[Piece]
) -> Iterator[EncodedPiece]:
    """What `encode_documents` gives for these pieces, as the bank takes it: bfloat16 on the CPU."""
    for batch, encoded in passes:
        memories = encoded.stacked().to("cpu", torch.bfloat16)
        keys, vectors = encoded.document_keys_DC.cpu(), encoded.document_vectors_DKV
        for place, i in enumerate(batch):
            piece = pieces[i]
            yield EncodedPiece(
                start=piece.start,
                end=piece.end,
                tokens=len(piece.token_ids),
                key=keys[place],
                memory=memories[place],
                vectors=None if vectors is None else vectors[place].to("cpu", torch.bfloat16),
            )


def shared_out(
    encoded: Iterator[EncodedPiece], numbers: Sequence[int]
) -> list[Iterable[EncodedPiece]]:
    """Each document's pieces, so many; a single one's, maybe of several passes, as they come."""
    if len(numbers) == 1:
        return [encoded]
    return [list(islice(encoded, number)) for number in numbers]


def told(
    passes: Iterable[tuple[list[int], Encoded]],
    pieces: Sequence[Piece],
    tell: Callable[[int], object],
) -> Iterator[tuple[list[int], Encoded]]:
    """The same passes; after each but the last, which its document ends, tells the tokens so far.

    A pass is over when the next is asked for.
    """
    tokens = 0
    for batch, encoded in passes:
        yield batch, encoded
        tokens += sum(len(pieces[i].token_ids) for i in batch)
        if batch[-1] + 1 < len(pieces):
            tell(tokens)


def windows(
    items: Iterable[Draft | Failure], more: int, most_tokens: int
) -> Iterator[tuple[list[Draft], list[Failure]]]:
    """Gather items until their pieces fill a batch of the compressor, or one goes beyond it.

    Args:
        items: What `drafts` gives.
        more: Tokens that the compressor adds to each piece.
        most_tokens: A batch's size.
    """
    window: list[Draft] = []
    failed: list[Failure] = []
    tokens = 0
    for item in items:
        if isinstance(item, Failure):
            failed.append(item)
            size = 0
        else:
            size = sum(len(piece.token_ids) + more for piece in item.pieces)
            if window and tokens + size > most_tokens:
                yield window, failed
                window, failed, tokens = [], [], 0
            window.append(item)
        tokens += size
        if len(window) + len(failed) == MOST_DOCUMENTS:
            yield window, failed
            window, failed, tokens = [], [], 0
    if window or failed:
        yield window, failed
