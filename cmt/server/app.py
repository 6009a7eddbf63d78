"""The application: routes, guard, errors and the two queues, put together."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib import metadata, resources
from typing import Annotated, Any

from fastapi import FastAPI, Query, Response
from fastapi.responses import HTMLResponse

from cmt.memory import Memory
from cmt.server import chat, errors, memories, upkeep
from cmt.server.guard import Guard
from cmt.server.key_map import KeyMap
from cmt.server.metrics import CONTENT_TYPE
from cmt.server.responses import (
    ErrorBody,
    Health,
    MapResponse,
)
from cmt.server.service import Service
from cmt.server.settings import Settings

_STATUSES = (400, 401, 403, 404, 405, 408, 409, 413, 429, 499, 500, 503, 504)


def create_app(memory: Memory, settings: Settings | None = None) -> FastAPI:
    """The service over an open memory, which stays its owner's to close.

    An application is started and stopped once.
    """
    settings = settings or Settings()
    service = Service(memory, settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.start()
        try:
            yield
        finally:
            await service.stop()

    app = FastAPI(
        title="cmt",
        version=metadata.version("cmt-memory"),
        description="A frozen language model that learns documents, behind OpenAI's chat API.",
        lifespan=lifespan,
        docs_url=None,  # its pages load scripts from elsewhere
        redoc_url=None,
        responses={status: {"model": ErrorBody} for status in _STATUSES},
    )
    app.state.service = service
    app.add_middleware(Guard, settings=settings, metrics=service.metrics)
    errors.install(app, service.secrets)
    app.include_router(chat.router)
    app.include_router(memories.router)
    app.include_router(upkeep.router)
    _add_own_routes(app, service)
    _document(app, needs_token=settings.token is not None)
    return app


def _add_own_routes(app: FastAPI, service: Service) -> None:
    key_map = KeyMap(service.memory)
    page = (resources.files("cmt.server") / "page.html").read_text(encoding="utf-8")
    policy = _policy(page)

    @app.get("/healthz", tags=["Operations"])
    async def health() -> Health:
        """The service is up."""
        return Health(version=app.version)

    @app.get("/metrics", tags=["Operations"], response_class=Response)
    def metrics() -> Response:
        """Counters for Prometheus."""
        return Response(service.metrics.text(service.memory), media_type=CONTENT_TYPE)

    @app.get("/v1/map", tags=["Memories"])
    def draw_map(limit: Annotated[int, Query(ge=1, le=5000)] = 2000) -> MapResponse:
        """Every memory's key in two dimensions, the newest memories first to be kept."""
        return key_map.draw(limit)

    @app.get("/", include_in_schema=False)
    async def show_page() -> HTMLResponse:
        return HTMLResponse(page, headers={"content-security-policy": policy})


def _policy(page: str) -> str:
    """What the page's browser allows it: its own style and script, by their digests, and us."""
    own = {
        name: base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()
        for name, inside in re.findall(r"<(style|script)>(.*?)</", page, re.DOTALL)
    }
    return (
        f"default-src 'none'; style-src 'sha256-{own['style']}'; "
        f"script-src 'sha256-{own['script']}'; connect-src 'self'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def _document(app: FastAPI, *, needs_token: bool) -> None:
    """The OpenAPI document with our own errors in place of FastAPI's 422, and the token."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = generate()
            for path in schema["paths"].values():
                for operation in path.values():
                    operation["responses"].pop("422", None)
            if needs_token:
                schema["components"]["securitySchemes"] = {
                    "token": {"type": "http", "scheme": "bearer"}
                }
                schema["security"] = [{"token": []}]
            app.openapi_schema = schema
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]
