"""Which documents a question, a search or a listing is about: namespace, tags, dates, as-of.

A document holds from its date on, or from when it was added where it has none, until a later
version supersedes it or it expires. With `as_of`, what held at that moment is selected; without,
what holds when the question comes: a version dated ahead waits for its day, and the one before it
goes on until then.

Shape legend: N memories in the bank.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypedDict

import numpy as np

from cmt.dates import checked_span, today
from cmt.errors import InputError
from cmt.records import DEFAULT_NAMESPACE

FOREVER = float("inf")


class Filters(TypedDict, total=False):
    """Keywords that select documents, the same wherever documents are selected.

    Attributes:
        namespace: One collection, "default" unless named; None takes all.
        tags: Labels that a document must have, all of them.
        since, until: ISO 8601; a document's date (when it was added, without one) lies between,
            both included: until="2026-01" takes in all of January.
        as_of: ISO 8601; what was known at the end of this day (month, year), or at this moment.
    """

    namespace: str | None
    tags: Sequence[str]
    since: str | None
    until: str | None
    as_of: str | None


class Fields(NamedTuple):
    """What a memory is selected by, of its document; moments in seconds since 1970.

    Attributes:
        document: The document's number in the bank; a version has one of its own.
        starts: When it began to hold.
        superseded, expires: When it ceases to; infinity where it doesn't.
    """

    document: int
    namespace: str
    tags: tuple[str, ...]
    starts: float
    superseded: float
    expires: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """`Filters`, checked; make one with `select`. `at` is None for what holds now."""

    namespace: str | None = DEFAULT_NAMESPACE
    tags: tuple[str, ...] = ()
    since: float = -FOREVER
    until: float = FOREVER
    at: float | None = None

    def takes(self, fields: Fields) -> bool:
        """Whether a document with these fields is selected."""
        if self.namespace is not None and fields.namespace != self.namespace:
            return False
        if not self.since <= fields.starts <= self.until:
            return False
        if not set(self.tags) <= set(fields.tags):
            return False
        return bool(self.holds(fields.starts, fields.superseded, fields.expires))

    def holds(self, starts: Any, superseded: Any, expires: Any) -> Any:
        """Whether what began and ceased at these moments is asked about; floats or arrays (N,)."""
        at, day = self.moments()
        begun = (starts <= at) | (starts == day)
        return begun & (superseded > at) & (superseded != day) & (expires > at)

    def moments(self) -> tuple[float, float]:
        """The moment asked about, and one that counts as begun: `today`, if that is now."""
        return (time.time(), today()) if self.at is None else (self.at, self.at)


def select(
    *,
    namespace: str | None = DEFAULT_NAMESPACE,
    tags: Sequence[str] = (),
    since: str | None = None,
    until: str | None = None,
    as_of: str | None = None,
) -> Selection:
    """The selection that `Filters` describe.

    Raises:
        InputError: A date is none, or a namespace or tag is no text.
    """
    if namespace is not None:
        check_label(namespace, "namespace")
    return Selection(
        namespace=namespace,
        tags=check_tags(tags),
        since=-FOREVER if since is None else checked_span(since, "since")[0],
        until=FOREVER if until is None else checked_span(until, "until")[1],
        at=None if as_of is None else checked_span(as_of, "as_of")[1],
    )


def check_label(label: object, what: str) -> str:
    """A namespace or tag as it may be stored.

    Raises:
        InputError: It is no text, blank, or has white space around it or a line end in it.
    """
    if not isinstance(label, str) or label != label.strip() or not label.isprintable() or not label:
        raise InputError(f"expected {what} to be a word or a few on one line, got {label!r}")
    return label


def check_tags(tags: object) -> tuple[str, ...]:
    """Tags sorted, each once.

    Raises:
        InputError: They are no sequence of texts.
    """
    if isinstance(tags, str) or not isinstance(tags, Sequence | set | frozenset):
        raise InputError(f"expected tags to be a list of str, got {tags!r}")
    return tuple(sorted({check_label(tag, "a tag") for tag in tags}))


class FieldColumns:
    """The fields of every memory of an index as columns, a row each, to be filtered at once."""

    def __init__(self) -> None:
        self._size = 0
        self._codes: dict[tuple[str, tuple[str, ...]], int] = {}  # namespace and tags
        self._codes_N = np.empty(0, np.int32)
        self._moments_N3 = np.empty((0, 3))  # starts, superseded, expires
        self._documents_N = np.empty(0, np.int64)

    def reserve(self, rows: int) -> None:
        """Room for so many rows."""
        codes_N, moments_N3 = np.empty(rows, np.int32), np.empty((rows, 3))
        documents_N = np.empty(rows, np.int64)
        codes_N[: self._size] = self._codes_N[: self._size]
        moments_N3[: self._size] = self._moments_N3[: self._size]
        documents_N[: self._size] = self._documents_N[: self._size]
        self._codes_N, self._moments_N3, self._documents_N = codes_N, moments_N3, documents_N

    def append(self, fields: Sequence[Fields]) -> None:
        """Rows at the end; `reserve` them first."""
        if not fields:
            return
        rows = slice(self._size, self._size + len(fields))
        self._codes_N[rows] = [self._code(own) for own in fields]
        self._moments_N3[rows] = [(own.starts, own.superseded, own.expires) for own in fields]
        self._documents_N[rows] = [own.document for own in fields]
        self._size += len(fields)

    def put(self, row: int, fields: Fields) -> None:
        """Write one row."""
        self._codes_N[row] = self._code(fields)
        self._moments_N3[row] = (fields.starts, fields.superseded, fields.expires)
        self._documents_N[row] = fields.document

    def _code(self, fields: Fields) -> int:
        return self._codes.setdefault((fields.namespace, fields.tags), len(self._codes))

    def remove(self, row: int) -> None:
        """Drop a row and move the last one into its place."""
        self._size -= 1
        for column in (self._codes_N, self._moments_N3, self._documents_N):
            column[row] = column[self._size]

    def starts(self, row: int) -> float:
        """When the document of a row began to hold."""
        return float(self._moments_N3[row, 0])

    def document(self, row: int) -> int:
        """The number of a row's document."""
        return int(self._documents_N[row])

    def selected(self, selection: Selection) -> np.ndarray | None:
        """The rows that a selection takes, ascending; None where it takes all of them."""
        starts_N, superseded_N, expires_N = self._moments_N3[: self._size].T
        fitting = [
            (selection.namespace is None or namespace == selection.namespace)
            and set(selection.tags) <= set(tags)
            for namespace, tags in self._codes
        ]
        chosen_N = np.ones(self._size, bool)
        if not all(fitting):
            chosen_N &= np.array(fitting)[self._codes_N[: self._size]]
        if selection.since > -FOREVER:
            chosen_N &= starts_N >= selection.since
        if selection.until < FOREVER:
            chosen_N &= starts_N <= selection.until
        chosen_N &= selection.holds(starts_N, superseded_N, expires_N)
        return None if chosen_N.all() else np.flatnonzero(chosen_N)
