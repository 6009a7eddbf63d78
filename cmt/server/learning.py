"""Documents on their way into the bank while questions go on being answered.

Requests take turns, a few documents each, on one thread; within a document, each pass of the
compressor takes its turn with the batches of questions (`turns.py`). What a request is told is
on disk.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field, fields
from typing import TypeVar

from cmt.errors import CMTError
from cmt.memory import Memory
from cmt.records import AddReport, Document, Failure
from cmt.server.errors import StoppingError, internal
from cmt.server.metrics import Metrics
from cmt.server.settings import Settings
from cmt.server.turns import Turns
from cmt.server.worker import Worker

T = TypeVar("T")

DOCUMENTS_AT_ONCE = 8  # before it is another request's turn

NOTHING = AddReport(
    added=(),
    updated=(),
    unchanged=(),
    failed=(),
    memories=0,
    memory_bytes=0,
    tokens=0,
    seconds=0.0,
)


@dataclass(eq=False, slots=True)
class _Request:
    documents: Iterator[Document | Failure]
    known_only: bool = False
    report: AddReport = NOTHING
    left: bool = False
    events: asyncio.Queue[AddReport | BaseException | None] = field(default_factory=asyncio.Queue)


class Learning(Worker[_Request]):
    """The requests that bring documents, and the thread that learns them."""

    def __init__(self, memory: Memory, settings: Settings, turns: Turns, metrics: Metrics) -> None:
        super().__init__("cmt-learns", "requests with documents", settings.waiting_requests)
        self._memory = memory
        self._settings = settings
        self._turns = turns
        self._metrics = metrics
        self._given_up = False  # set by the event loop, read by the learning thread

    async def learn(
        self, documents: Iterable[Document | Failure], *, known_only: bool = False
    ) -> AsyncGenerator[AddReport]:
        """Reports that grow as the documents are learned; the last one is whole.

        Leaving earlier stops it after the documents in hand. `documents` is read on the
        learning thread, where nothing else is added meanwhile. `known_only` is `Memory.add`'s.

        Raises:
            OverloadedError: Too many requests wait.
            StoppingError: The service is being shut down; what was reported is kept.
            TimeoutError: It takes longer than learning may.
            CMTError: What `Memory.add` or `documents` raises.
        """
        self._check_room()
        request = _Request(iter(documents), known_only)
        self._enqueue(request)
        deadline = asyncio.get_running_loop().time() + self._settings.learning_seconds
        try:
            while True:
                async with asyncio.timeout_at(deadline):
                    event = await request.events.get()
                if isinstance(event, BaseException):
                    raise event
                if event is None:
                    return
                yield event
        finally:
            request.left = True

    async def alone(self, work: Callable[[], T]) -> T:
        """What `work` gives, run on the learning thread, where nothing is added meanwhile.

        It waits for its turn like a request with documents, and raises as `learn` or `work` does.
        """
        given: list[T] = []

        def nothing() -> Iterator[Document]:
            given.append(work())
            yield from ()

        await last(self.learn(nothing()))
        return given[0]

    def _refuse_waiting(self) -> None:
        self._given_up = True
        for request in self._waiting:
            request.events.put_nowait(StoppingError())
        self._waiting.clear()

    async def _serve(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            while not self._waiting:
                if self._stopping:
                    return
                await self._arrival()
            request = self._waiting.popleft()
            if request.left:
                continue
            learning = loop.run_in_executor(self._thread, self._learn_some, request)
            await asyncio.wait([learning])
            if (error := learning.exception()) is not None:
                told = error if isinstance(error, CMTError) else internal(error)
                request.events.put_nowait(told)
                continue
            request.events.put_nowait(request.report)
            if not learning.result():
                request.events.put_nowait(None)
            elif self._given_up:
                request.events.put_nowait(StoppingError())
            else:
                self._waiting.append(request)

    def _learn_some(self, request: _Request) -> bool:
        """Learn the next few documents; False when there are no more. On the learning thread."""
        ended = False

        def some() -> Iterator[Document | Failure]:
            nonlocal ended
            for _ in range(DOCUMENTS_AT_ONCE):
                if self._given_up:
                    return
                try:
                    yield next(request.documents)
                except StopIteration:
                    ended = True
                    return

        report = self._memory.add(
            some(),
            batch_tokens=self._settings.pass_tokens,
            turn=self._turn,
            known_only=request.known_only,
        )
        request.report = merged(request.report, report)
        for outcome in ("added", "updated", "unchanged", "failed"):
            self._metrics.documents.labels(outcome).inc(len(getattr(report, outcome)))
        return not ended

    @contextmanager
    def _turn(self) -> Iterator[None]:
        with self._turns(), self._metrics.pass_seconds.time():
            yield


def merged(first: AddReport, second: AddReport) -> AddReport:
    """Two reports as one."""
    sums = {
        field.name: getattr(first, field.name) + getattr(second, field.name)
        for field in fields(AddReport)
    }
    return AddReport(**sums)


async def last(reports: AsyncGenerator[AddReport]) -> AddReport:
    """The whole report of a request."""
    whole = NOTHING
    async with aclosing(reports):
        async for report in reports:
            whole = report
    return whole
