"""Dynamic batching: questions that wait at the same moment are answered in one batch.

The event loop gathers them, one thread runs the model. A batch is generated a token at a time;
each asker gets pieces of text as they come, and a batch ends as soon as nobody is left who
wants more of it.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, Sequence

from cmt.answering import Reading
from cmt.errors import CMTError
from cmt.memory import Memory
from cmt.server.attention_share import attention_share
from cmt.server.errors import StoppingError, internal
from cmt.server.jobs import Done, Event, Found, Job, Piece, Wish
from cmt.server.metrics import Metrics
from cmt.server.settings import Settings
from cmt.server.turns import Turns
from cmt.server.worker import Worker
from cmt.streaming import settled


class Asking(Worker[Job]):
    """The questions that wait, and the thread that answers them."""

    def __init__(self, memory: Memory, settings: Settings, turns: Turns, metrics: Metrics) -> None:
        super().__init__("cmt-answers", "questions", settings.waiting_questions)
        self._memory = memory
        # without memory a model that was trained to chat answers best by its own template
        self._chat = bool(getattr(memory.compressor.base.tokenizer, "chat_template", None))
        self._settings = settings
        self._turns = turns
        self._metrics = metrics
        self._jobs: set[Job] = set()  # those that wait and those that are being answered

    async def ask(
        self, question: str, wish: Wish, max_new_tokens: int, *, attention: bool = False
    ) -> AsyncGenerator[Event]:
        """What becomes of a question: `Found`, `Piece`s, `Done`; leaving earlier gives it up.

        Raises:
            OverloadedError: Too many wait.
            StoppingError: The service is being shut down.
            TimeoutError: It takes longer than a question may.
            CMTError: What `Memory.ask` raises.
        """
        self._check_room()
        job = Job(question, wish, max_new_tokens, attention)
        self._enqueue(job)
        self._jobs.add(job)
        self._metrics.waiting_questions.set(len(self._waiting))
        event: Event | None = None
        deadline = asyncio.get_running_loop().time() + self._settings.question_seconds
        try:
            while not isinstance(event, Done):
                async with asyncio.timeout_at(deadline):
                    event = await job.next_event()
                yield event
        finally:
            self._jobs.discard(job)
            if not isinstance(event, Done):
                job.left = True
                self._metrics.left.inc()
            if job in self._waiting:  # its place is another's
                self._waiting.remove(job)
                self._metrics.waiting_questions.set(len(self._waiting))

    def _refuse_waiting(self) -> None:
        for job in self._jobs:
            job.left = True
            job.tell(StoppingError())

    async def _serve(self) -> None:
        loop = asyncio.get_running_loop()
        while batch := await self._gather():
            self._metrics.batch_size.observe(len(batch))
            answering = loop.run_in_executor(self._thread, self._answer, batch)
            await asyncio.wait([answering])
            if (error := answering.exception()) is not None:
                told = error if isinstance(error, CMTError) else internal(error)
                for job in batch:
                    job.tell(told)

    async def _gather(self) -> list[Job]:
        """The next batch; empty when there is none to come."""
        while True:
            while not self._waiting:
                if self._stopping:
                    return []
                await self._arrival()
            await self._others()
            if self._waiting:  # they may all have left meanwhile
                break
        first = self._waiting.popleft()
        batch, others = [first], deque[Job]()
        for job in self._waiting:
            joins = job.wish == first.wish and not first.wish.alone
            fits = joins and len(batch) < self._settings.batch_size
            (batch if fits else others).append(job)
        self._waiting = others
        self._metrics.waiting_questions.set(len(others))
        return batch

    async def _others(self) -> None:
        """Wait a moment for a batch to fill."""
        try:
            async with asyncio.timeout(self._settings.batch_wait_seconds):
                while len(self._waiting) < self._settings.batch_size and not self._stopping:
                    await self._arrival()
        except TimeoutError:
            pass

    # On the model's thread from here on.

    def _answer(self, batch: Sequence[Job]) -> None:
        came = time.perf_counter()
        with self._turns():
            self._metrics.turn_wait.observe(time.perf_counter() - came)
            self._answer_together([job for job in batch if not job.left])

    def _answer_together(self, jobs: Sequence[Job]) -> None:
        if not jobs:
            return
        try:
            self._generate(jobs)
        except CMTError as error:
            if len(jobs) == 1:
                jobs[0].tell(error)
                return
            for job in jobs:  # one of them is to blame: which?
                self._answer_together([job])

    def _generate(self, jobs: Sequence[Job]) -> None:
        wish = jobs[0].wish
        reading, steps = self._memory.steps(
            [job.question for job in jobs],
            memory=wish.memory,
            chat=self._chat,
            top_k=wish.top_k,
            rerank=wish.rerank,
            lexical=wish.lexical,
            aggregation=wish.aggregation,
            sampling=wish.sampling(max(job.max_new_tokens for job in jobs)),
            min_score=wish.min_score,
            prefer_later=wish.prefer_later,
            **wish.filters,
        )
        rows = [_Row(job, reading, place) for place, job in enumerate(jobs)]
        if not wish.search:
            for step in steps:
                for row, token in zip(rows, step, strict=True):
                    row.take(token)
                if all(row.ended for row in rows):
                    break
        for row in rows:
            row.end(cut=False)
            self._metrics.generated_tokens.inc(len(row.tokens))


class _Row:
    """One question of a batch, its tokens and what of their text has been told."""

    def __init__(self, job: Job, reading: Reading, place: int) -> None:
        self.job = job
        self.tokens: list[int] = []
        self.ended = False
        self._reading = reading
        self._place = place
        self._told = ""
        job.tell(Found(reading.matches[place]))

    def take(self, token: int | None) -> None:
        """Another token; None where the model has ended the answer."""
        if self.ended:
            return
        if token is None or self.job.left:
            self.end(cut=False)
            return
        self.tokens.append(token)
        if len(self.tokens) == self.job.max_new_tokens:
            self.end(cut=True)
        else:
            self._tell(settled(self._reading.decode(self.tokens)))

    def end(self, *, cut: bool) -> None:
        """Tell the rest and the whole answer, once."""
        if self.ended:
            return
        self.ended = True
        tokens: list[list[int]] = [[] for _ in self._reading.questions]
        tokens[self._place] = self.tokens
        answer = self._reading.answers(tokens)[self._place]
        self._tell(answer.text)
        share = None
        if self.job.attention and not self.job.left and answer.memory_tokens:
            share = attention_share(self._reading, self._place, self.tokens)
        self.job.tell(Done(answer, cut, share))

    def _tell(self, text: str) -> None:
        if piece := text[len(self._told) :]:
            self._told = text
            self.job.tell(Piece(piece))
