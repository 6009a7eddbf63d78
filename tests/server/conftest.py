"""One tiny compressor for every test of the service, a bank and a server for each."""

from __future__ import annotations

import httpx2
import pytest

from tests import small
from tests.server.running import open_memory, serving


@pytest.fixture(scope="session")
def compressor():
    return small.compressor()


@pytest.fixture
def memory(tmp_path, compressor):
    with open_memory(tmp_path, compressor) as opened:
        yield opened


@pytest.fixture
def address(memory):
    with serving(memory) as running:
        yield running


@pytest.fixture
def client(address):
    with httpx2.Client(base_url=address, timeout=60) as made:
        yield made
