"""A real server on a free port of this machine, with a tiny model, in a thread of this process."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import uvicorn

from cmt.bank import Bank
from cmt.compressor import Compressor
from cmt.memory import Memory
from cmt.opening import fingerprint
from cmt.records import Document
from cmt.server import Settings, create_app
from cmt.server.running import make_server

FACTS = (
    Document(
        text="The lighthouse of Arbon was built in 1823 by Clara Weiss.",
        id="arbon",
        title="Arbon",
        date="2024-05-31",
        source="https://example.org/arbon",
        tags=("sea",),
        metadata={"page": 3},
    ),
    Document(text="Rivers carry sand, silt and clay to the sea.", id="rivers", tags=("sea",)),
    Document(text="The delta of Mirna grows 12 metres a year.", id="mirna", date="2025-01-02"),
)


def open_memory(folder: Path, compressor: Compressor, documents=FACTS) -> Memory:
    """A memory in a folder that has learned a few documents."""
    memory = Memory(Bank.open(folder / "bank.sqlite", fingerprint(compressor)), compressor)
    memory.add(documents)
    return memory


@contextmanager
def serving(memory: Memory, **settings) -> Iterator[str]:
    """The address of a server that runs for as long as the block does."""
    with serving_with(memory, **settings) as (address, _):
        yield address


@contextmanager
def serving_with(memory: Memory, **settings) -> Iterator[tuple[str, uvicorn.Server]]:
    """The same, with the server itself."""
    made = Settings(**{"port": 0, "requests_per_second": 0, **settings})
    server = make_server(create_app(memory, made), made)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive(), "the server did not start"
            time.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}", server
    finally:
        server.should_exit = True
        thread.join()
