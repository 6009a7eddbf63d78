"""Which results may stand in one table: of committed code, the rows' own settings, all questions.

What was chosen on the validation split, how long was trained, batch size and device may differ.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from cmt.evaluation.report import Record
from cmt.evaluation.results import is_known
from cmt.methods import ABLATIONS, METHODS, Row
from cmt.methods.kv_memory import KvMemoryConfig

FILES = ("spans", "dense_model")  # where something lies, which is no setting


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """What all rows of a table share.

    Attributes:
        base_model, seed: Of every row.
        recipe: File name of the recipe of rows with key/value memories.
    """

    base_model: str = "smollm2-135m"
    seed: int = 0
    recipe: str = "smollm2_135m.py"


def sift(records: Sequence[Record], table: Table) -> tuple[list[Record], list[str]]:
    """The records that the table may hold, and of each other one why it may not."""
    alike: list[Record] = []
    left_out: list[str] = []
    for record in records:
        others = list(_differences(record, table))
        if others:
            left_out.append(_told(record, others))
        else:
            alike.append(record)
    most: dict[tuple[str, str], int] = {}
    for record in alike:
        for key, number in _asked(record).items():
            most[key] = max(number, most.get(key, 0))
    kept = []
    for record in alike:
        row = _row(record)
        fewer = [
            f"{key[1]}={number}, of {most[key]}"
            for key, number in _asked(record).items()
            if number < min(most[key], row.sample if row and row.sample else most[key])
        ]
        if fewer:
            left_out.append(_told(record, fewer))
        else:
            kept.append(record)
    return kept, left_out


def _differences(record: Record, table: Table) -> Iterator[str]:
    settings, row = record["settings"], _row(record)
    if not is_known(record["commit"]):
        yield "changed or unknown code"
    expected: dict[str, Any] = {"base_model": table.base_model, "seed": table.seed}
    found = {name: settings.get(name, value) for name, value in expected.items()}
    if row is not None:
        if isinstance(row.config, KvMemoryConfig):  # names; a digest may stand behind them
            for name, value in (("recipe", table.recipe), ("checkpoint", "shipped")):
                expected[name] = value
                found[name] = str(settings.get(name, value)).partition(" ")[0]
        free = {*row.candidates, *FILES}
        own = settings.get("config", {})
        shared = {name: v for name, v in asdict(row.config).items() if name in own}
        expected |= {name: value for name, value in shared.items() if name not in free}
        found |= {name: own[name] for name in shared}
    for name, value in expected.items():
        if found[name] != value:
            yield f"{name}={found[name]}, not {value}"


def _asked(record: Record) -> dict[tuple[str, str], int]:
    """How many questions, by dataset and setting."""
    settings = record["settings"]
    return {
        (str(settings.get("dataset")), name): settings[name]
        for name in ("questions", "asked")
        if name in settings
    }


def _row(record: Record) -> Row | None:
    name = record["row"]
    return METHODS.get(name) or ABLATIONS.get(name)


def _told(record: Record, reasons: Sequence[str]) -> str:
    what = f"{record['row']} {record['part']}, {record['commit']}, {str(record['date'])[:10]}"
    return f"{what}: {'; '.join(reasons)}"
