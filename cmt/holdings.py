"""What is in a memory's bank, and its clearing up: the part of `Memory` that needs no model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Unpack

from cmt.bank import Bank, Counts
from cmt.records import DEFAULT_NAMESPACE, StoredDocument
from cmt.selection import Filters, select


class Holdings:
    """Documents of a bank looked up, listed and forgotten.

    Attributes:
        bank: The durable store.
    """

    bank: Bank

    def forget(self, document_id: str, *, namespace: str = DEFAULT_NAMESPACE) -> bool:
        """Delete a document, its history and memories; False when there is none with this id.

        Their bytes are gone from the file, and from its log unless someone is reading there.
        """
        was_there = self.bank.delete(document_id, namespace=namespace)
        self.bank.wipe_log()
        return was_there

    def purge(self, *, history: bool = False) -> list[str]:
        """Delete what has expired, with `history` what was superseded; gives their ids."""
        purged = self.bank.purge(history=history)
        self.bank.wipe_log()
        return purged

    def get(self, document_id: str, *, namespace: str = DEFAULT_NAMESPACE) -> StoredDocument:
        """The document with this id, its latest version; `UnknownIdError` when there is none."""
        return self.bank.get(document_id, namespace=namespace)

    def history(
        self, document_id: str, *, namespace: str = DEFAULT_NAMESPACE
    ) -> list[StoredDocument]:
        """Its versions as they follow in time, the latest last; `UnknownIdError` without any."""
        return self.bank.history(document_id, namespace=namespace)

    def documents(
        self, *, limit: int | None = None, offset: int = 0, **filters: Unpack[Filters]
    ) -> Iterator[StoredDocument]:
        """The documents in the order they were added, skipping `offset`, at most `limit`.

        Args:
            limit: Most documents; None: all.
            offset: So many are passed over first.
            filters: `Filters`, of every namespace unless one is named; without any filter,
                the latest version of each, expired ones and those still to come included.

        Raises:
            InputError: A negative number, or a filter that can't be.
        """
        selection = None
        if filters:
            filters.setdefault("namespace", None)
            selection = select(**filters)
        return self.bank.documents(limit=limit, offset=offset, selection=selection)

    def count(self) -> Counts:
        """How many documents and memories there are."""
        return self.bank.count()
