"""The durable memory bank, in one SQLite file; `store.py` has the class, the rest serves it."""

from cmt.bank.records import (
    Counts,
    KeyChanges,
    MemorySource,
    Outcome,
    Problem,
    Standing,
    Stats,
    Status,
)
from cmt.bank.store import Bank

__all__ = [
    "Bank",
    "Counts",
    "KeyChanges",
    "MemorySource",
    "Outcome",
    "Problem",
    "Standing",
    "Stats",
    "Status",
]
