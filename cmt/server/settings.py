"""What a service may be set to; every bound has a default that holds on a small machine."""

from __future__ import annotations

import ipaddress
import math
from dataclasses import dataclass

from cmt.errors import InputError
from cmt.selection import select
from cmt.server.jobs import DEFAULT_WISH, Wish

LEAST_TOKEN_CHARS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How the service listens, what it accepts and how it shares the model.

    Attributes:
        host: Address to listen on; any but a loopback address needs a token.
        port: 0 takes a free one.
        token: What clients must send as ``Authorization: Bearer …``; None asks for nothing.
        model_name: How /v1/models calls the model; None takes the base model's own name.
        wish: How a question is answered where its request doesn't say otherwise.
        batch_size: Most questions answered together.
        batch_wait_seconds: How long a question waits for others to join its batch.
        waiting_questions: Questions that may wait; the next one is refused with 503.
        waiting_requests: The same for requests that bring documents.
        pass_tokens: Most tokens compressed between two batches, a longer piece aside.
        max_new_tokens: Longest answer, whatever a client asks for.
        max_question_chars: Longest question.
        max_memories: Most memories read for a question (top_k) and re-ranked for it.
        max_body_bytes: Largest request.
        max_document_chars: Largest text of a document.
        max_documents: Most documents in a request.
        requests_per_second: A client address's steady rate; 0 sets no bound.
        burst: Requests it may send at once.
        question_seconds: A question not answered by then is given up with 504.
        learning_seconds: The same for documents; those on disk by then are kept.
        purge_every_seconds: How often what has expired is purged, at the start first; 0: never.
        head_seconds: A connection must begin a request by then.
        body_seconds: A request's body must have arrived by then.
        connections: Most at a time.
        shutdown_seconds: How long requests in flight may go on after a signal to stop; then they
            are told that the service stops.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    token: str | None = None
    model_name: str | None = None
    wish: Wish = DEFAULT_WISH
    batch_size: int = 16
    batch_wait_seconds: float = 0.005
    waiting_questions: int = 256
    waiting_requests: int = 64
    pass_tokens: int = 512
    max_new_tokens: int = 128
    max_question_chars: int = 4_000
    max_memories: int = 16
    max_body_bytes: int = 4_000_000
    max_document_chars: int = 200_000
    max_documents: int = 1_000
    requests_per_second: float = 50.0
    burst: int = 200
    question_seconds: float = 120.0
    learning_seconds: float = 900.0
    purge_every_seconds: float = 0.0
    head_seconds: float = 10.0
    body_seconds: float = 30.0
    connections: int = 512
    shutdown_seconds: float = 30.0

    def __post_init__(self) -> None:
        """Refuse an open door, and numbers without meaning."""
        if self.token is not None and len(self.token) < LEAST_TOKEN_CHARS:
            raise InputError(
                f"expected a token of at least {LEAST_TOKEN_CHARS} characters, "
                f"got one of {len(self.token)}"
            )
        if self.token is not None and not (self.token.isascii() and self.token.isprintable()):
            raise InputError("expected a token of printable ASCII, got other characters in it")
        if not self.loopback and self.token is None:
            raise InputError(
                f"expected a token for a service that others can reach, got the address "
                f"{self.host!r} and none: give --token-file or set $CMT_TOKEN"
            )
        if not 0 <= self.port <= 65535:
            raise InputError(f"expected a port from 0 to 65535, got {self.port}")
        self._check_numbers()
        self._check_wish()

    def _check_numbers(self) -> None:
        may_be_zero = (
            "port",
            "batch_wait_seconds",
            "requests_per_second",
            "purge_every_seconds",
        )
        for name in self.__slots__:
            value = getattr(self, name)
            if isinstance(value, int | float) and name not in may_be_zero and not value > 0:
                raise InputError(f"expected {name} above 0, got {value}")
            if name in may_be_zero and not value >= 0:
                raise InputError(f"expected {name} of at least 0, got {value}")
            if value == math.inf:
                raise InputError(f"expected a finite {name}, got {value}")

    def _check_wish(self) -> None:
        for name, value in (("top_k", self.wish.top_k), ("rerank", self.wish.rerank)):
            if value > self.max_memories:
                raise InputError(
                    f"expected {name} of at most {self.max_memories} (max_memories), got {value}"
                )
        select(**self.wish.filters)  # refuses what are no dates, namespaces and tags

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach the address."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:  # a name, which may lead anywhere
            return False
