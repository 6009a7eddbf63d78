"""Server-sent events: a JSON object each, errors among them in OpenAI's form."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from typing import Any

from starlette.responses import StreamingResponse

from cmt.errors import CMTError
from cmt.server.errors import body, described

END = "[DONE]"


def event_stream(
    events: AsyncIterator[dict[str, Any]], secrets: Sequence[str]
) -> StreamingResponse:
    """A response that sends the events as they come, then ``[DONE]``, as OpenAI's API does."""
    return StreamingResponse(_lines(events, secrets), media_type="text/event-stream")


async def _lines(
    events: AsyncIterator[dict[str, Any]], secrets: Sequence[str]
) -> AsyncIterator[str]:
    try:
        async for event in events:
            yield _line(json.dumps(event, ensure_ascii=False))
    except (CMTError, TimeoutError) as error:  # the status has been sent: the stream must tell
        told = described(error, secrets)
        yield _line(json.dumps(body(str(told), told.code, told.status, told.param)))
        return
    yield _line(END)


def _line(data: str) -> str:
    return f"data: {data}\n\n"
