"""Forgetting what has expired, by itself."""

from __future__ import annotations

import asyncio
import logging

from cmt.errors import CMTError
from cmt.memory import Memory
from cmt.server.errors import StoppingError
from cmt.server.learning import Learning

_logger = logging.getLogger(__name__)


async def purge_every(seconds: float, memory: Memory, learning: Learning) -> None:
    """Purge now and whenever so many seconds have passed, until the service stops.

    One purge that fails is logged and the next is tried all the same.
    """
    while True:
        try:
            purged = await learning.alone(memory.purge)
        except StoppingError:
            return
        except (CMTError, TimeoutError) as error:
            _logger.error("what has expired wasn't purged: %r", error)
        else:
            if purged:
                _logger.info("purged %d expired documents", len(purged))
        await asyncio.sleep(seconds)
