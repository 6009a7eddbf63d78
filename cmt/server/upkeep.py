"""The bank's upkeep over HTTP: statistics, purge, verification."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from typing import Annotated

from fastapi import APIRouter, Body, Request

from cmt.server.errors import public
from cmt.server.responses import ProblemOut, PurgeResponse, StatsResponse, VerifyResponse
from cmt.server.schemas import PurgeRequest
from cmt.server.service import Current, unless_left

router = APIRouter(prefix="/v1", tags=["Upkeep"])


@router.get("/stats")
def stats(service: Current) -> StatsResponse:
    """How much was learned, where the bytes are, and which weights made it; reads every text."""
    return StatsResponse.of(service.memory.stats(), service.memory.bank.tier)


@router.post("/purge")
async def purge(
    asked: Annotated[PurgeRequest, Body(default_factory=PurgeRequest)],
    request: Request,
    service: Current,
) -> PurgeResponse:
    """Forget what has expired; until then it is kept on disk, but not matched.

    It waits for its turn among the requests that bring documents.
    """
    work = partial(service.memory.purge, history=asked.history)
    return PurgeResponse(purged=await unless_left(request, service.learning.alone(work)))


@router.post("/verify")
async def verify(request: Request, service: Current) -> VerifyResponse:
    """Read every byte of the bank and name whatever is damaged; questions go on meanwhile.

    A second request gets 409 while one is going on; a client that leaves ends it.
    """
    await request.body()  # whatever it is: what comes after it is the client's leaving
    problems = await unless_left(request, service.verifying.verify())
    found = [
        ProblemOut(**asdict(problem) | {"reason": public(problem.reason, service.secrets)})
        for problem in problems
    ]
    return VerifyResponse(sound=not found, problems=found)
