"""OpenAI's chat completions and models, over a memory bank."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import asdict
from typing import Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import StreamingResponse

from cmt.generation import GREEDY
from cmt.server.chat_schemas import (
    AnswerMessage,
    Attention,
    ChatRequest,
    Choice,
    Completion,
    MemoryUse,
    Usage,
    chunk,
)
from cmt.server.errors import ServiceError
from cmt.server.events import event_stream
from cmt.server.jobs import Done, Event, Found, Piece
from cmt.server.responses import (
    ModelList,
    ModelOut,
    SourceOut,
)
from cmt.server.service import Current, Service, unless_left

router = APIRouter(prefix="/v1", tags=["OpenAI"])
_STARTED = int(time.time())


@router.get("/models")
async def list_models(service: Current) -> ModelList:
    """The model that can be asked."""
    return ModelList(data=[ModelOut(id=service.model_name, created=_STARTED)])


@router.get("/models/{model_id}")
async def get_model(model_id: str, service: Current) -> ModelOut:
    """The model with this name."""
    _check_model(service, model_id)
    return ModelOut(id=model_id, created=_STARTED)


@router.post(
    "/chat/completions",
    response_model=Completion,
    responses={200: {"content": {"text/event-stream": {}}}},
)
async def complete(
    asked: ChatRequest, request: Request, service: Current
) -> Completion | StreamingResponse:
    """Answer the last user's message from what was learned."""
    _check_model(service, asked.model)
    question = _question(service, asked)
    wish = asked.wish(service.settings.wish)
    service.check_counts(wish.top_k, wish.rerank)
    limit = min(
        asked.max_completion_tokens or asked.max_tokens or GREEDY.max_new_tokens,
        service.settings.max_new_tokens,
    )
    events = service.asking.ask(question, wish, limit, attention=asked.attention)
    answer = _Answer(service.model_name, events)
    if not asked.stream:
        return await unless_left(request, answer.whole())
    await unless_left(request, answer.begin())  # errors up to here have a status of their own
    usage = asked.stream_options is not None and bool(asked.stream_options.include_usage)
    return event_stream(answer.chunks(usage=usage), service.secrets)


def _check_model(service: Service, name: str) -> None:
    if name != service.model_name:
        raise ServiceError(
            404,
            "model_not_found",
            f"expected the model {service.model_name!r}, got {name[:100]!r}",
            param="model",
        )


def _question(service: Service, asked: ChatRequest) -> str:
    texts = [message.text for message in asked.messages if message.role == "user"]
    if not texts or not texts[-1].strip():
        raise ServiceError(
            400, "invalid_value", "expected a user's message with text", param="messages"
        )
    service.check_question(texts[-1], "messages")
    return texts[-1]


class _Answer:
    """An answer on its way from the model into OpenAI's form."""

    def __init__(self, model: str, events: AsyncGenerator[Event]) -> None:
        self._id = f"chatcmpl-{secrets.token_hex(12)}"
        self._created = int(time.time())
        self._model = model
        self._events = events
        self._sources: list[SourceOut] = []

    async def begin(self) -> None:
        """Wait for the memories that are read."""
        first = await anext(self._events)
        assert isinstance(first, Found)
        self._sources = [SourceOut.of(match) for match in first.matches]

    async def whole(self) -> Completion:
        """All of it at once."""
        async with aclosing(self._events):
            await self.begin()
            async for event in self._events:
                if isinstance(event, Done):
                    break
        assert isinstance(event, Done)
        message = AnswerMessage(content=event.answer.text)
        return Completion(
            id=self._id,
            created=self._created,
            model=self._model,
            choices=[Choice(message=message, finish_reason=_reason(event))],
            usage=_usage(event),
            cmt=self._use(event),
        )

    async def chunks(self, *, usage: bool) -> AsyncGenerator[dict[str, Any]]:
        """Pieces as they come: sources first, then text, at last why it ended."""
        first = {"role": "assistant", "content": ""}
        yield self._chunk(first, cmt=MemoryUse(sources=self._sources))
        async with aclosing(self._events):
            async for event in self._events:
                if isinstance(event, Piece):
                    yield self._chunk({"content": event.text})
                elif isinstance(event, Done):
                    yield self._chunk({}, finish_reason=_reason(event), cmt=self._use(event))
                    if usage:
                        yield self._chunk(None, usage=_usage(event))

    def _chunk(self, delta: dict[str, Any] | None, **fields: Any) -> dict[str, Any]:
        return chunk(self._id, self._created, self._model, delta, **fields)

    def _use(self, done: Done) -> MemoryUse:
        share = done.attention
        return MemoryUse(
            sources=self._sources,
            older=[SourceOut.of(match) for match in done.answer.older],
            memory_tokens=done.answer.memory_tokens,
            seconds=done.answer.seconds,
            abstained=done.answer.abstained,
            attention=None if share is None else Attention(**asdict(share)),
        )


def _reason(done: Done) -> Literal["stop", "length"]:
    return "length" if done.cut else "stop"


def _usage(done: Done) -> Usage:
    read, generated = done.answer.prompt_tokens, done.answer.generated_tokens
    return Usage(prompt_tokens=read, completion_tokens=generated, total_tokens=read + generated)
