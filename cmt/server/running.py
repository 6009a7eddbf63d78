"""The application under uvicorn."""

from __future__ import annotations

import asyncio
import math
import socket

import uvicorn
from fastapi import FastAPI

from cmt.server.connections import protocol
from cmt.server.service import Service
from cmt.server.settings import Settings

LAST_SECONDS = 10
"""For documents in hand once time is up, and for clients to read what they are told."""


def make_server(app: FastAPI, settings: Settings) -> uvicorn.Server:
    """A server for the application; `run` it.

    SIGINT and SIGTERM end it in order: no new connection, requests in flight have up to
    `shutdown_seconds`. Those that aren't done by then are told so (`StoppingError`), with what was
    learned of their documents; whoever is left `LAST_SECONDS` later is told without.
    """
    return _Server(
        app.state.service,
        settings.shutdown_seconds,
        uvicorn.Config(
            app,
            host=settings.host,
            port=settings.port,
            http=protocol(settings.head_seconds),
            log_level="info",
            access_log=False,  # questions are nobody's business; /metrics counts requests
            server_header=False,
            proxy_headers=False,
            limit_concurrency=settings.connections,
            timeout_graceful_shutdown=math.ceil(settings.shutdown_seconds) + LAST_SECONDS,
            ws="none",
        ),
    )


class _Server(uvicorn.Server):
    """Tells the service when time is up; uvicorn itself would cancel the requests, unanswered."""

    def __init__(self, service: Service, seconds: float, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._service = service
        self._seconds = seconds

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        loop = asyncio.get_running_loop()
        time_is_up = loop.call_later(self._seconds, self._service.give_up)
        await super().shutdown(sockets)
        time_is_up.cancel()
