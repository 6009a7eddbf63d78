"""Errors as OpenAI's API gives them: ``{"error": {message, type, param, code}}``.

A message is for the client: it never holds a path of this machine, nor what a bug said. Those
go to the log.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from cmt.errors import BankError, CMTError, EmptyBankError, InputError, UnknownIdError

_logger = logging.getLogger(__name__)

# What bugs raise. `Exception` alone would do, but Starlette raises what that handler has answered
# once more, and the server then drops the connection.
_BUGS = (ArithmeticError, AttributeError, LookupError, OSError, RuntimeError, TypeError, ValueError)
_CODES = {404: "not_found", 405: "method_not_allowed", 408: "body_timeout", 413: "too_large"}


class ServiceError(CMTError):
    """The service refuses a request.

    Attributes:
        status: HTTP status.
        code: What a program can compare.
        param: The field to blame, if it is one.
        retry_after: Seconds after which to try again.
        report: What of the request was done, if any of it can have been.
    """

    report: Mapping[str, Any] | None = None

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        param: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.param = param
        self.retry_after = retry_after


class OverloadedError(ServiceError):
    """Too many requests wait already."""

    def __init__(self, what: str, most: int) -> None:
        super().__init__(
            503, "overloaded", f"{most} {what} are waiting already: try again", retry_after=1
        )


class StoppingError(ServiceError):
    """The service is being shut down."""

    def __init__(self, report: Mapping[str, Any] | None = None) -> None:
        super().__init__(503, "stopping", "the service is being shut down", retry_after=5)
        self.report = report


def body(message: str, code: str | None, status: int, param: str | None = None) -> dict[str, Any]:
    """The JSON of an error."""
    kinds = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
    kind = kinds.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def described(error: BaseException, secrets: Sequence[str] = ()) -> ServiceError:
    """Any error as one that may be told.

    Args:
        error: What was raised.
        secrets: Paths that no message may hold.
    """
    if isinstance(error, ServiceError):
        return error
    if isinstance(error, UnknownIdError):
        return ServiceError(404, "not_found", public(str(error), secrets))
    if isinstance(error, InputError):
        return ServiceError(400, "invalid_value", public(str(error), secrets))
    if isinstance(error, EmptyBankError):
        return ServiceError(400, "empty_bank", public(str(error), secrets))
    if isinstance(error, TimeoutError):
        return ServiceError(504, "timeout", "the request took too long and was given up")
    if isinstance(error, BankError):
        _logger.error("the bank failed: %s", error)
        message = "the memory bank can't be read or written now; the server's log says why"
        return ServiceError(503, "bank_error", message)
    return internal(error)


def internal(error: BaseException) -> ServiceError:
    """A bug, or a GPU without memory: logged here, and told without any of it."""
    _logger.error("a request failed", exc_info=error)
    return ServiceError(500, "internal_error", "an internal error; the server's log says more")


def public(message: str, secrets: Sequence[str]) -> str:
    """A message without any of these paths, nor characters that UTF-8 can't carry."""
    for secret in sorted(filter(None, secrets), key=len, reverse=True):
        message = message.replace(secret, "…")
    return message.encode("utf-8", "backslashreplace").decode()


def response(error: ServiceError) -> JSONResponse:
    """An error as a response."""
    headers: Mapping[str, str] = {}
    if error.retry_after is not None:
        headers = {"retry-after": str(error.retry_after)}
    if error.status == 401:
        headers = {"www-authenticate": "Bearer"}
    content = body(str(error), error.code, error.status, error.param)
    if error.report is not None:
        content["report"] = error.report
    return JSONResponse(content, error.status, dict(headers))


def install(app: FastAPI, secrets: Sequence[str]) -> None:
    """Answer every error of this application in OpenAI's form."""

    async def expected(request: Request, error: Exception) -> JSONResponse:
        return response(described(error, secrets))

    async def invalid(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"] if part != "body")
        message = public(f"{place or 'body'}: {first['msg']}"[:500], secrets)
        return response(ServiceError(400, "invalid_value", message, param=public(place, secrets)))

    async def http(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        code = _CODES.get(error.status_code, "invalid_request")
        content = body(public(str(error.detail), secrets), code, error.status_code)
        return JSONResponse(content, error.status_code, dict(error.headers or {}))

    app.add_exception_handler(CMTError, expected)
    app.add_exception_handler(TimeoutError, expected)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http)
    for kind in (*_BUGS, Exception):
        app.add_exception_handler(kind, expected)
