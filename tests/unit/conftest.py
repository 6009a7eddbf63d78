"""A bank in a file of its own, for the tests of its parts."""

from __future__ import annotations

import pytest

from cmt.bank import Bank
from tests.unit.bank_pieces import FINGERPRINT


@pytest.fixture
def path(tmp_path):
    return tmp_path / "bank.sqlite"


@pytest.fixture
def bank(path):
    with Bank.open(path, FINGERPRINT) as opened:
        yield opened
