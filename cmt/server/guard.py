"""What a request must pass before anything reads it: host, token, rate, size, time.

Plain ASGI, outside of FastAPI, so that it also holds for requests that no route takes.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import re
import time
from collections import OrderedDict

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cmt.server.errors import ServiceError, StoppingError, response
from cmt.server.metrics import Metrics
from cmt.server.settings import Settings

OPEN_PATHS = ("/", "/healthz")  # nothing of the bank is in them
_HOST = re.compile(r"(\[[0-9a-fA-F:]+\]|[^:\[\]]+)(?::\d+)?")
_MOST_CLIENTS = 10_000  # whose rates are kept


class Guard:
    """Middleware that refuses what `Settings` doesn't allow, and counts what it lets through."""

    def __init__(self, app: ASGIApp, settings: Settings, metrics: Metrics) -> None:
        self._app = app
        self._settings = settings
        self._metrics = metrics
        self._rates = _Rates(settings.requests_per_second, settings.burst)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()
        status = 0

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], *_HEADERS]
            await send(message)

        limited = _Limited(receive, self._settings)
        try:
            self._check(scope)
            await self._app(scope, limited, noting)
        except ServiceError as error:
            if status == 0:
                await response(error)(scope, receive, noting)
        except asyncio.CancelledError:  # by the server that stops
            # raised on, it would be a bug's 500
            if status == 0:
                await response(StoppingError())(scope, receive, noting)
        finally:
            route = getattr(scope.get("route"), "path", "other")
            method = scope["method"] if scope["method"] in _METHODS else "other"
            self._metrics.requests.labels(method, route, str(status)).inc()
            self._metrics.request_seconds.labels(route).observe(time.perf_counter() - began)

    def _check(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        token = self._settings.token
        if token is None:
            _check_local(headers)
        client = scope.get("client")
        if scope["path"] != "/healthz" and (wait := self._rates.wait(client[0] if client else "")):
            raise ServiceError(
                429,
                "rate_limited",
                f"expected at most {self._settings.requests_per_second:g} requests a second, "
                "got more",
                retry_after=max(1, round(wait)),
            )
        if token is not None and scope["path"] not in OPEN_PATHS:
            _check_token(headers, token)  # after the rate, so that guesses are bounded too
        length = headers.get("content-length", "")
        if length.isdecimal() and int(length) > self._settings.max_body_bytes:
            most = self._settings.max_body_bytes
            raise ServiceError(413, "too_large", f"expected at most {most} bytes, got {length}")


# Others are counted as one: a label of a client's choice for each would fill the memory.
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
)


def _check_token(headers: Headers, token: str) -> None:
    scheme, _, given = headers.get("authorization", "").partition(" ")
    right = hmac.compare_digest(given.strip().encode(), token.encode())
    if scheme.lower() != "bearer" or not right:
        raise ServiceError(
            401, "invalid_api_key", "expected the header 'Authorization: Bearer TOKEN'"
        )


def _check_local(headers: Headers) -> None:
    """Without a token: no other site may reach us through its visitor's browser.

    A page of another site can send requests to 127.0.0.1 (they carry its Origin), and its name
    can be made to lead there (they carry its Host).
    """
    host = headers.get("host", "")
    name = _HOST.fullmatch(host)
    if name is None or not _is_local(name[1].strip("[]")):
        raise ServiceError(
            403, "forbidden_host", "expected a Host of this machine, such as localhost"
        )
    origin = headers.get("origin")
    if origin is not None and origin != f"http://{host}":
        raise ServiceError(403, "forbidden_origin", "expected a request of this very site")


def _is_local(name: str) -> bool:
    try:
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _too_large(most: int) -> HTTPException:
    return HTTPException(413, f"expected a body of at most {most} bytes, got more")


class _Limited:
    """`receive` that refuses a body that is too large or too slow."""

    def __init__(self, receive: Receive, settings: Settings) -> None:
        self._receive = receive
        self._most = settings.max_body_bytes
        self._deadline = time.monotonic() + settings.body_seconds
        self._bytes = 0
        self._complete = False

    async def __call__(self) -> Message:
        if self._complete:  # now it tells when the client leaves
            return await self._receive()
        try:
            async with asyncio.timeout(max(0.0, self._deadline - time.monotonic())):
                message = await self._receive()
        except TimeoutError as error:
            raise HTTPException(408, "expected the request's body sooner") from error
        self._bytes += len(message.get("body", b""))
        self._complete = not message.get("more_body", False)
        if self._bytes > self._most:
            raise _too_large(self._most)
        return message


class _Rates:
    """A token bucket for each client address; the longest unseen is forgotten first."""

    def __init__(self, rate: float, burst: int) -> None:
        self._rate = rate
        self._burst = burst
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def wait(self, client: str) -> float:
        """0 where the client may send one more request now, else how long it must wait."""
        if self._rate == 0:
            return 0.0
        now = time.monotonic()
        left, seen = self._buckets.pop(client, (float(self._burst), now))
        left = min(self._burst, left + (now - seen) * self._rate)
        allowed = left >= 1
        self._buckets[client] = (left - 1 if allowed else left, now)
        if len(self._buckets) > _MOST_CLIENTS:
            self._buckets.popitem(last=False)
        return 0.0 if allowed else (1 - left) / self._rate
