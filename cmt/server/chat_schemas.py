"""OpenAI's chat completions, as far as a service that answers questions has a use for them."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from cmt.memory import DEFAULT_RERANK, DEFAULT_TOP_K
from cmt.server.responses import (
    SourceOut,
)
from cmt.server.schemas import Selecting

_LARGEST = 2**63 - 1  # torch's seeds


class TextPart(BaseModel):
    """A part of a message; only text can be read."""

    model_config = ConfigDict(strict=True)

    type: Literal["text"]
    text: str


class Message(BaseModel):
    """A message. The last user's message is the question; the others are not read."""

    model_config = ConfigDict(strict=True)

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[TextPart] | None = None

    @property
    def text(self) -> str:
        """Its text, parts joined."""
        if isinstance(self.content, list):
            return "\n".join(part.text for part in self.content)
        return self.content or ""


class StreamOptions(BaseModel):
    """`include_usage` adds a chunk with the token counts."""

    model_config = ConfigDict(strict=True)

    include_usage: bool | None = None


class ChatRequest(Selecting):
    """A chat completion. Parameters that would change the answer and can't be had are refused.

    Beyond OpenAI's: `memory` (false: the frozen model alone), `top_k` (memories read), `rerank`
    (memories found and re-ranked), `min_score` (least cosine of question and first match;
    else "I don't know."), `attention` (measure where the answer's attention went), and which
    documents it is about: `namespace`, `tags`, `since`, `until`, `as_of`, `prefer_later`. Without
    `temperature` the likeliest tokens are taken. `max_tokens` beyond the service's bound is cut to
    it.
    """

    model_config = ConfigDict(strict=True)

    model: str
    messages: list[Message] = Field(min_length=1)
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    seed: int | None = Field(None, ge=-(2**63), le=_LARGEST)
    n: Literal[1] | None = None
    stop: None = Field(None, description="not supported")
    tools: None = Field(None, description="not supported")
    functions: None = Field(None, description="not supported")
    logprobs: Literal[False] | None = None
    logit_bias: None = Field(None, description="not supported")
    memory: bool = True
    top_k: int = Field(DEFAULT_TOP_K, ge=1)
    rerank: int = Field(DEFAULT_RERANK, ge=0)
    min_score: float | None = Field(None, ge=-1, le=1)
    attention: bool = Field(False, description="measure where the answer's attention went")


class Usage(BaseModel):
    """Tokens of text read and generated; memories are counted in `MemoryUse`."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Attention(BaseModel):
    """Where an answer's attention went, mean over its tokens, layers and heads; sums to 1.

    `memories` in the order of the sources; `sink` is the first token every text begins with,
    `text` question and answer themselves.
    """

    memories: list[float]
    sink: float
    text: float


class MemoryUse(BaseModel):
    """Which memories were read, best first, and the places they took in the model's cache.

    `older`: memories that matched as well and gave way to later ones on their subject.
    """

    sources: list[SourceOut]
    older: list[SourceOut] = []
    memory_tokens: int | None = None
    seconds: float | None = None
    abstained: bool = False
    attention: Attention | None = None


class AnswerMessage(BaseModel):
    """The answer."""

    role: Literal["assistant"] = "assistant"
    content: str


class Choice(BaseModel):
    """The one choice; `length`: the answer was cut."""

    index: Literal[0] = 0
    message: AnswerMessage
    finish_reason: Literal["stop", "length"]
    logprobs: None = None


class Completion(BaseModel):
    """A whole answer."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    usage: Usage
    cmt: MemoryUse


def chunk(
    chunk_id: str,
    created: int,
    model: str,
    delta: dict[str, Any] | None,
    *,
    finish_reason: str | None = None,
    usage: Usage | None = None,
    cmt: MemoryUse | None = None,
) -> dict[str, Any]:
    """A streamed piece of an answer; without `delta` one that only counts tokens."""
    choices = (
        []
        if delta is None
        else [{"index": 0, "delta": delta, "finish_reason": finish_reason, "logprobs": None}]
    )
    made: dict[str, Any] = {
        "id": chunk_id,
        "object": "chat.completion.chunk",
        "created": created,
        "model": model,
        "choices": choices,
    }
    if usage is not None:
        made["usage"] = usage.model_dump()
    if cmt is not None:
        made["cmt"] = cmt.model_dump()
    return made
