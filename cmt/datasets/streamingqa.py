"""StreamingQA (Liška et al. 2022) from the csv files that CaMeLS and MAC read.

A row a question: ``question``, ``answers`` (separated by backslashes) and ``text``, the
passage. The passages, WMT's news crawl, can't be redistributed: docs/benchmark.md says how to
obtain them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from cmt.datasets.qa import QADataset
from cmt.datasets.rows import Row, csv_rows, find_split, from_rows
from cmt.datasets.squad import RawQuestion

SPLITS = ("train", "val", "test")
COLUMNS = ("question", "answers", "text")


def load_streamingqa(
    path: str | Path, *, split: str | None = None, strict: bool = True
) -> QADataset:
    """Read a csv file in StreamingQA's published format; each passage is an article of its own.

    Args:
        path: A csv file, or a folder with train.csv, val.csv, test.csv (or …_train.csv).
        split: "train", "val" or "test", for a folder; must be None for a file.
        strict: Raise at the first row that can't be used. False leaves it out and tells in
            `QADataset.skipped`.

    Raises:
        InputError: The file or split isn't there, or a column is missing.
        DocumentError: With strict, an empty passage or question, or an answer that is nowhere
            in its passage.
    """
    file = find_split(Path(path), split, SPLITS)
    return from_rows(_rows(file), f"streamingqa-{split or file.stem}", strict=strict)


def _rows(file: Path) -> Iterator[Row]:
    for number, (where, row) in enumerate(csv_rows(file, COLUMNS)):
        question = RawQuestion(
            where=where,
            id=f"{file.stem}-{number}",
            text=row["question"],
            answers=[answer for answer in row["answers"].split("\\") if answer.strip()],
        )
        yield Row(where=where, passage=row["text"], article=row["text"], question=question)
