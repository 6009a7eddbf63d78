"""What asking and learning share: a bounded queue, worked off by one thread from start to stop."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

from cmt.server.errors import OverloadedError, StoppingError

Item = TypeVar("Item")


class Worker(ABC, Generic[Item]):
    """A queue of items, a thread for the work on them, and a task that leads one to the other."""

    def __init__(self, thread: str, waiting: str, most: int) -> None:
        """Make ready.

        Args:
            thread: The thread's name.
            waiting: What waits, as an error calls it.
            most: How many may wait.
        """
        self._waiting: deque[Item] = deque()
        self._what, self._most = waiting, most
        self._arrived = asyncio.Event()
        self._stopping = False
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=thread)
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to work; call it on the event loop."""
        self._task = asyncio.create_task(self._serve())

    def give_up(self) -> None:
        """Refuse what is new, and what waits too: time is up."""
        self._stopping = True
        self._arrived.set()
        self._refuse_waiting()

    async def stop(self) -> None:
        """Refuse what is new, finish what waits, end the thread."""
        self._stopping = True
        self._arrived.set()
        if self._task is not None:
            await self._task
        self._thread.shutdown()

    def _check_room(self) -> None:
        """Refuse one more.

        Raises:
            OverloadedError: Too many wait.
            StoppingError: The service is being shut down.
        """
        if self._stopping:
            raise StoppingError
        if len(self._waiting) >= self._most:
            raise OverloadedError(self._what, self._most)

    def _enqueue(self, item: Item) -> None:
        self._waiting.append(item)
        self._arrived.set()

    async def _arrival(self) -> None:
        """Until something comes, or the end."""
        self._arrived.clear()
        await self._arrived.wait()

    @abstractmethod
    def _refuse_waiting(self) -> None:
        """Tell everyone whose work isn't done that the service is being shut down."""

    @abstractmethod
    async def _serve(self) -> None:
        """Work off the queue until it is empty and the service is stopping."""
