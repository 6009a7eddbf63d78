"""The application under uvicorn."""

from __future__ import annotations

import uvicorn
from fastapi import FastAPI

from cmt.server.connections import protocol
from cmt.server.settings import Settings


def make_server(app: FastAPI, settings: Settings) -> uvicorn.Server:
    """A server for the application; `run` it.

    SIGINT and SIGTERM end it in order: no new connection, requests in flight are answered for
    up to `shutdown_seconds`, what was accepted is finished.
    """
    return uvicorn.Server(
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
            timeout_graceful_shutdown=max(1, round(settings.shutdown_seconds)),
            ws="none",
        )
    )
