"""A lock that goes to whoever has waited longest.

`threading.Lock` goes to whoever comes first, which is nearly always the thread that has just
let it go: a long ingest would starve the questions. With turns, a batch of questions waits for
one pass of the compressor at most, and a pass for one batch.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Turns:
    """``with turns():`` waits for its turn and holds it."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._next_ticket = 0
        self._served = 0

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Tickets are served in the order in which they were drawn."""
        with self._changed:
            ticket = self._next_ticket
            self._next_ticket += 1
            self._changed.wait_for(lambda: self._served == ticket)
        try:
            yield
        finally:
            with self._changed:
                self._served += 1
                self._changed.notify_all()

    @property
    def waiting(self) -> int:
        """How many wait or hold it now."""
        with self._changed:
            return self._next_ticket - self._served
