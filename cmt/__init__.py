"""cmt: a frozen language model that learns documents (arXiv 2412.07393).

from cmt import Memory

with Memory.open("memory.sqlite") as memory:
    memory.add("The lighthouse of Arbon was built in 1823 by Clara Weiss.")
    print(memory.ask("Who built the lighthouse of Arbon?").text)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cmt.aggregating import Aggregation
    from cmt.errors import (
        BankError,
        CheckpointError,
        CMTError,
        CorruptRecordError,
        DocumentError,
        EmptyBankError,
        FingerprintMismatchError,
        InputError,
        ModelError,
        UnknownIdError,
    )
    from cmt.generation import Sampling
    from cmt.memory import Memory
    from cmt.readers import read_path
    from cmt.records import AddReport, Answer, Document, Failure, Match

__all__ = [
    "AddReport",
    "Aggregation",
    "Answer",
    "BankError",
    "CMTError",
    "CheckpointError",
    "CorruptRecordError",
    "Document",
    "DocumentError",
    "EmptyBankError",
    "Failure",
    "FingerprintMismatchError",
    "InputError",
    "Match",
    "Memory",
    "ModelError",
    "Sampling",
    "UnknownIdError",
    "read_path",
]

_PLACES = {
    "AddReport": "records",
    "Aggregation": "aggregating",
    "Answer": "records",
    "Document": "records",
    "Failure": "records",
    "Match": "records",
    "Memory": "memory",
    "Sampling": "generation",
    "read_path": "readers",
}


def __getattr__(name: str) -> Any:  # torch is imported only by those who use it
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_PLACES.get(name, 'errors')}"), name)


def __dir__() -> list[str]:
    return __all__
