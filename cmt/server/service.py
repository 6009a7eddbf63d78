"""What the routes share: the memory, the two queues in front of it, and how to wait for them."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from pathlib import Path
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Request

from cmt.memory import Memory
from cmt.server.asking import Asking
from cmt.server.errors import ServiceError, StoppingError
from cmt.server.learning import Learning
from cmt.server.metrics import Metrics
from cmt.server.purging import purge_every
from cmt.server.settings import Settings
from cmt.server.turns import Turns
from cmt.server.verifying import Verifying

T = TypeVar("T")


class Service:
    """A memory that is served.

    Attributes:
        memory: The bank and its model.
        settings: What is allowed.
        metrics: The counters.
        asking: Questions on their way to the model.
        learning: Documents on their way to the bank.
        verifying: The search for damage in the bank.
        model_name: How clients call the model.
        secrets: Paths of this machine that errors and reports must not hold.
    """

    def __init__(self, memory: Memory, settings: Settings) -> None:
        turns = Turns()
        self.memory = memory
        self.settings = settings
        self.metrics = Metrics()
        self.asking = Asking(memory, settings, turns, self.metrics)
        self.learning = Learning(memory, settings, turns, self.metrics)
        self.verifying = Verifying(memory.bank)
        self._purging: asyncio.Task[None] | None = None
        base_name = memory.compressor.base.name
        self.model_name = settings.model_name or Path(base_name).name
        path = memory.bank.path
        self.secrets = [str(path.absolute()), str(path), str(path.absolute().parent)]
        if "/" in base_name:
            self.secrets.append(base_name)

    def start(self) -> None:
        """Set the queues to work; call it on the event loop."""
        self.asking.start()
        self.learning.start()
        if seconds := self.settings.purge_every_seconds:
            self._purging = asyncio.create_task(purge_every(seconds, self.memory, self.learning))

    def give_up(self) -> None:
        """Tell every request that isn't done that the service is being shut down.

        Documents in hand are finished first.
        """
        self.asking.give_up()
        self.learning.give_up()
        self.verifying.give_up()

    async def stop(self) -> None:
        """Finish what was accepted; the memory is its owner's to close."""
        if self._purging is not None:
            self._purging.cancel()
        self.verifying.give_up()
        await asyncio.gather(self.asking.stop(), self.learning.stop())

    def check_counts(self, top_k: int, rerank: int) -> None:
        """Refuse questions that read or re-rank more memories than is allowed.

        Raises:
            ServiceError: They do.
        """
        most = self.settings.max_memories
        for name, value in (("top_k", top_k), ("rerank", rerank)):
            if value > most:
                raise ServiceError(
                    400,
                    "invalid_value",
                    f"expected {name} of at most {most}, got {value}",
                    param=name,
                )

    def check_question(self, question: str, param: str) -> None:
        """Refuse a question that is too long to read.

        Raises:
            ServiceError: It is.
        """
        most = self.settings.max_question_chars
        if len(question) > most:
            raise ServiceError(
                413,
                "too_large",
                f"expected a question of at most {most} characters, got {len(question)}",
                param=param,
            )


async def unless_left(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled when the client leaves.

    Raises:
        ServiceError: It left; nobody will read this.
    """
    task = asyncio.create_task(work)
    left = asyncio.create_task(_disconnected(request))
    try:
        await asyncio.wait([task, left], return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ServiceError(499, "left", "the client left")
    finally:
        left.cancel()
        if task.cancel():
            await asyncio.wait([task])


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def current(request: Request) -> Service:
    """The application's service."""
    service = request.app.state.service
    if not isinstance(service, Service):
        raise StoppingError
    return service


Current = Annotated[Service, Depends(current)]
