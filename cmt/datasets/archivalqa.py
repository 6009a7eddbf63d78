"""ArchivalQA (Wang et al. 2022) from the csv files that CaMeLS and MAC read.

A row a question: ``question``, ``answer``, ``ans_paragraph`` (the passage), ``ans_text``,
``doc_id`` and ``para_num``. The passages, the New York Times Annotated Corpus, can't be
redistributed: docs/benchmark.md says how to obtain them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from cmt.datasets.qa import QADataset
from cmt.datasets.rows import Row, csv_rows, find_split, from_rows
from cmt.datasets.squad import RawQuestion
from cmt.errors import InputError

SPLITS = ("train", "val", "test")
COLUMNS = ("question", "answer", "ans_paragraph", "ans_text", "doc_id", "para_num")
PASSAGES = ("ans_paragraph", "ans_text")


def load_archivalqa(
    path: str | Path,
    *,
    split: str | None = None,
    passage: str = "ans_paragraph",
    strict: bool = True,
) -> QADataset:
    """Read a csv file in ArchivalQA's published format.

    Documents stand in the file's order, the paragraphs of one in the order of ``para_num``;
    a document of the corpus is an article.

    Args:
        path: A csv file, or a folder with train.csv, val.csv, test.csv (or …_train.csv).
        split: "train", "val" or "test", for a folder; must be None for a file.
        passage: The column that is learned.
        strict: As in `load_streamingqa`.

    Raises:
        InputError: The file or split isn't there, a column is missing, or a ``para_num`` is no
            number.
        DocumentError: As in `load_streamingqa`.
    """
    if passage not in PASSAGES:
        raise InputError(f"expected passage in {PASSAGES}, got {passage!r}")
    file = find_split(Path(path), split, SPLITS)
    numbered = list(_rows(file, passage))
    place = {row.article: p for p, row in reversed(list(enumerate(row for _, row in numbered)))}
    numbered.sort(key=lambda pair: (place[pair[1].article], pair[0]))  # stable within a paragraph
    rows = (row for _, row in numbered)
    return from_rows(rows, f"archivalqa-{split or file.stem}", strict=strict)


def _rows(file: Path, passage: str) -> Iterator[tuple[int, Row]]:
    for number, (where, row) in enumerate(csv_rows(file, COLUMNS)):
        question = RawQuestion(
            where=where,
            id=f"{file.stem}-{number}",
            text=row["question"],
            answers=[row["answer"]],
        )
        try:
            paragraph = int(float(row["para_num"]))
        except ValueError as error:
            raise InputError(
                f"{where}: expected a number in para_num, got {row['para_num']!r}"
            ) from error
        yield (
            paragraph,
            Row(where=where, passage=row[passage], article=row["doc_id"], question=question),
        )
