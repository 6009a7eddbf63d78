"""The search for damage in the bank while questions go on being answered."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress

from cmt.bank import Bank, Problem
from cmt.server.errors import ServiceError, StoppingError


class Verifying:
    """One search at a time, on a thread of its own.

    SQLite's check of the pages, the first part, can't be broken off. Its thread is a daemon: a
    process that ends doesn't wait for it, and it only reads.
    """

    def __init__(self, bank: Bank) -> None:
        self._bank = bank
        self._running: Future[list[Problem]] | None = None
        self._stopping = False

    async def verify(self) -> list[Problem]:
        """Every damage in the bank; leaving earlier ends the search after the record in hand.

        Raises:
            ServiceError: Another is going on.
            StoppingError: The service is being shut down.
            BankError: The bank can't be opened.
        """
        if self._stopping:
            raise StoppingError
        if self._running is not None and self._running.running():
            raise ServiceError(
                409, "verifying", "the bank is being verified already: ask again when that is done"
            )
        found: Future[list[Problem]] = Future()
        found.set_running_or_notify_cancel()  # from now on leaving doesn't make it done
        left = threading.Event()
        self._running = found
        threading.Thread(
            target=self._search, args=(found, left), name="cmt-verifies", daemon=True
        ).start()
        try:
            return await asyncio.wrap_future(found)
        finally:
            left.set()

    def give_up(self) -> None:
        """Refuse what is new, and tell who waits: time is up."""
        self._stopping = True
        if self._running is not None:
            with suppress(InvalidStateError):  # it is done
                self._running.set_exception(StoppingError())

    # On the searching thread from here on.

    def _search(self, found: Future[list[Problem]], left: threading.Event) -> None:
        def go_on() -> None:
            if left.is_set():
                raise StoppingError

        with suppress(InvalidStateError):  # given up
            try:
                found.set_result(self._bank.verify(go_on))
            except Exception as error:  # whatever it is, who waits is told
                found.set_exception(error)
