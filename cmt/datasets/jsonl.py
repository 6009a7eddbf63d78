"""Any question-answering data of the user's, an object a line.

{"text": passage, "question": ..., "answers": [...]} and, where they are known, "id", "title",
"date" (ISO 8601) and "article" (a name that passages of one article share).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cmt.datasets.qa import QADataset
from cmt.datasets.rows import Row, from_rows, json_lines
from cmt.datasets.squad import RawQuestion, expect, get_field


def load_jsonl(
    path: str | Path, *, name: str | None = None, passage: str = "text", strict: bool = True
) -> QADataset:
    """Read a .jsonl or .jsonl.gz file of questions with their passages.

    Args:
        path: The file.
        name: Begins the documents' ids; by default the file's name.
        passage: The field that holds the passage.
        strict: As in `load_squad`.

    Raises:
        InputError: The file is missing or unreadable, or a field is missing or of another kind.
        DocumentError: With strict, an empty passage or question, a question without answers, or
            an answer that is nowhere in its passage.
    """
    file = Path(path)
    stem = file.name.removesuffix(".gz").removesuffix(".jsonl")
    return from_rows(_rows(file, stem, passage), name or stem, strict=strict)


def _rows(file: Path, stem: str, passage: str) -> Iterator[Row]:
    for number, (where, record) in enumerate(json_lines(file)):
        text = get_field(record, passage, str, where)
        answers = get_field(record, "answers", list, where)
        question = RawQuestion(
            where=where,
            id=_optional(record, "id", where) or f"{stem}-{number}",
            text=get_field(record, "question", str, where),
            answers=[expect(a, str, f"{where}.answers[{n}]") for n, a in enumerate(answers)],
        )
        yield Row(
            where=where,
            passage=text,
            article=_optional(record, "article", where) or text,
            question=question,
            title=_optional(record, "title", where),
            date=_optional(record, "date", where) or None,
        )


def _optional(record: Mapping[str, Any], key: str, where: str) -> str:
    return get_field(record, key, str, where) if record.get(key) is not None else ""
