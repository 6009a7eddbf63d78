"""OpenAI's chat completions, as far as a service that answers questions has a use for them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from cmt.server.responses import (
    SourceOut,
)
from cmt.server.schemas import Selecting, Strict

_LARGEST = 2**63 - 1  # torch's seeds

# OpenAI's parameters that have no effect here, as far as they ask for none.
Ignored = Annotated[Any, Field(description="taken and ignored: it doesn't change the answer")]
Refused = Annotated[None, Field(description="not supported")]
Nothing = Annotated[list[Any], Field(max_length=0, description="not supported")]
NoBias = Annotated[dict[str, Any], Field(max_length=0, description="not supported")]
NoPenalty = Annotated[float, Field(ge=0, le=0, description="not supported")]


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


class StreamOptions(Strict):
    """`include_usage` adds a chunk with the token counts."""

    include_usage: bool | None = None
    include_obfuscation: Ignored = None


class TextFormat(Strict):
    """The one format of answers: text."""

    type: Literal["text"]


class ChatRequest(Selecting, Strict):
    """A chat completion. What would change the answer and can't be had is refused.

    So is a name that neither OpenAI's API has nor this one. Beyond OpenAI's: `memory` (false: the
    frozen model alone), `top_k` (memories read), `rerank` (memories found and re-ranked),
    `lexical` (weight of BM25 in finding them), `aggregate` (how several are read), `min_score`
    (least cosine of question and first match; else "I don't know."), `attention` (measure where the
    answer's attention went), and which documents it is about: `namespace`, `tags`, `since`,
    `until`, `as_of`, `prefer_later`; those that aren't given are as the service is set. Without
    `temperature` the likeliest tokens are taken. `max_tokens` beyond the service's bound is cut to
    it.
    """

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
    stop: Nothing | None = None
    tools: Nothing | None = None
    tool_choice: Literal["none", "auto"] | None = None
    functions: Nothing | None = None
    function_call: Literal["none", "auto"] | None = None
    logprobs: Literal[False] | None = None
    top_logprobs: Literal[0] | None = None
    logit_bias: NoBias | None = None
    frequency_penalty: NoPenalty | None = None
    presence_penalty: NoPenalty | None = None
    response_format: TextFormat | None = None
    modalities: list[Literal["text"]] | None = None
    reasoning_effort: Literal["none"] | None = None
    verbosity: Literal["medium"] | None = None
    audio: Refused = None
    moderation: Refused = None
    web_search_options: Refused = None
    metadata: Ignored = None
    parallel_tool_calls: Ignored = None
    prediction: Ignored = None
    prompt_cache_key: Ignored = None
    prompt_cache_options: Ignored = None
    prompt_cache_retention: Ignored = None
    safety_identifier: Ignored = None
    service_tier: Ignored = None
    store: Ignored = None
    user: Ignored = None

    memory: bool | None = Field(None, description="false: the frozen model alone")
    top_k: int | None = Field(None, ge=1, description="memories read")
    aggregate: Literal["concatenate", "mix", "posterior"] | None = Field(
        None, description="how several memories are read together"
    )
    min_score: float | None = Field(
        None, ge=-1, le=1, description='least cosine, else "I don\'t know."; null: none'
    )
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
