"""What passes between a request and the model: a question with its wishes, and events back."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

from cmt.aggregating import DEFAULT_AGGREGATION, Aggregation
from cmt.generation import Sampling
from cmt.memory import DEFAULT_MIN_SCORE, DEFAULT_RERANK, DEFAULT_TOP_K
from cmt.records import DEFAULT_NAMESPACE, Answer, Match
from cmt.selection import Filters
from cmt.server.attention_share import AttentionShare


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """How a question is to be answered; those with equal wishes can share a batch.

    Attributes:
        memory: False: by the frozen model alone.
        top_k: Memories read.
        rerank: Memories found and re-ranked.
        lexical: Weight of BM25 beside the logit of matching.
        aggregate: How several memories are read together, as `Aggregation.how`.
        temperature, top_p: As in `Sampling`.
        seed: Fixes sampling; such a question is answered alone, since sampling depends on the
            batch.
        search: Only find the memories, generate nothing.
        min_score: Least cosine of question and first match, the best after re-ranking.
        prefer_later: Of memories on one subject that match about as well, the later.
        namespace, tags, since, until, as_of: As in `Filters`.
    """

    memory: bool = True
    top_k: int = DEFAULT_TOP_K
    rerank: int = DEFAULT_RERANK
    lexical: float = 0.0
    aggregate: str = DEFAULT_AGGREGATION.how
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    search: bool = False
    min_score: float | None = DEFAULT_MIN_SCORE
    prefer_later: bool = True
    namespace: str | None = DEFAULT_NAMESPACE
    tags: tuple[str, ...] = ()
    since: str | None = None
    until: str | None = None
    as_of: str | None = None

    @property
    def alone(self) -> bool:
        """Whether it can't share a batch."""
        return self.seed is not None and self.temperature > 0

    @property
    def filters(self) -> Filters:
        """Which documents it is about."""
        return Filters(
            namespace=self.namespace,
            tags=self.tags,
            since=self.since,
            until=self.until,
            as_of=self.as_of,
        )

    @property
    def aggregation(self) -> Aggregation:
        """How its memories are read together."""
        return Aggregation(how=self.aggregate)

    def sampling(self, max_new_tokens: int) -> Sampling:
        """Its sampling, for answers of so many tokens."""
        return Sampling(
            max_new_tokens=max_new_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            seed=self.seed,
        )


DEFAULT_WISH = Wish()
"""As the library answers."""


@dataclass(frozen=True, slots=True)
class Found:
    """The memories that are read for the answer; the first event."""

    matches: tuple[Match, ...]


@dataclass(frozen=True, slots=True)
class Piece:
    """The next piece of the answer's text."""

    text: str


@dataclass(frozen=True, slots=True)
class Done:
    """The whole answer; the last event. `cut`: its length ended it, not the model.

    `attention`: where its attention went, if that was asked and memories were read.
    """

    answer: Answer
    cut: bool
    attention: AttentionShare | None = None


Event = Found | Piece | Done


@dataclass(eq=False, slots=True)
class Job:
    """A question that waits or is being answered; made and read on the event loop.

    Attributes:
        attention: Whether to measure where the answer's attention went, in one more pass.
        left: The asker is gone: stop generating. Set by the event loop, read by the model's
            thread.
    """

    question: str
    wish: Wish
    max_new_tokens: int
    attention: bool = False
    left: bool = False
    began: float = field(default_factory=time.perf_counter)
    _loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)
    _events: asyncio.Queue[Event | BaseException] = field(default_factory=asyncio.Queue)

    def tell(self, event: Event | BaseException) -> None:
        """Hand an event to the asker, from any thread; an exception is raised there."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)

    async def next_event(self) -> Event:
        """The next event, waited for; raises what `tell` was given to raise."""
        event = await self._events.get()
        if isinstance(event, BaseException):
            raise event
        return event
