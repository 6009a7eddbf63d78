"""Connections that bring no request are closed; uvicorn itself would keep them for ever.

There may be `Settings.connections` of them at a time: without this, as many clients that connect
and say nothing, or half a header, would keep everyone else out.
"""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol


def protocol(head_seconds: float) -> type[H11Protocol]:
    """Uvicorn's HTTP/1.1, for connections that begin a request at least every `head_seconds`.

    A request that is being read or answered takes as long as it takes: the body and the answer
    have bounds of their own. Looked at once in `head_seconds`, a silent connection is closed
    after at most twice as long.
    """

    class Connection(H11Protocol):
        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._last: object = None  # the request answered at the last look
            self._look = self.loop.call_later(head_seconds, self._look_again)

        def connection_lost(self, exc: Exception | None) -> None:
            self._look.cancel()
            super().connection_lost(exc)

        def _look_again(self) -> None:
            idle = self.cycle is None or self.cycle.response_complete
            if idle and self.cycle is self._last:  # no other request since
                self.timeout_keep_alive_handler()
                return
            self._last = self.cycle if idle else self
            self._look = self.loop.call_later(head_seconds, self._look_again)

    return Connection
