"""Datasets of one question a row, the passage repeated with each: csv and jsonl files."""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cmt.datasets.qa import QADataset
from cmt.datasets.squad import Paragraph, RawQuestion, flatten
from cmt.errors import InputError


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A question with its passage.

    Attributes:
        where: The path to it, for messages.
        article: Rows of one article share this name.
        date: Of the passage, ISO 8601, or None.
    """

    where: str
    passage: str
    article: str
    question: RawQuestion
    title: str = ""
    date: str | None = None


def from_rows(rows: Iterable[Row], name: str, *, strict: bool) -> QADataset:
    """A dataset of each passage once, in the order of first appearance, with its questions.

    Raises:
        InputError: No usable passage.
        DocumentError: With strict, what `load_squad` raises it for.
    """
    articles: dict[str, int] = {}
    passages: dict[str, Paragraph] = {}
    dates: dict[str, str | None] = {}
    for row in rows:
        if row.passage not in passages:
            dates[row.passage] = row.date
            passages[row.passage] = Paragraph(
                where=row.where,
                article=articles.setdefault(row.article, len(articles)),
                title=row.title,
                text=row.passage,
                questions=[],
            )
        passages[row.passage].questions.append(row.question)
    dataset = flatten(passages.values(), name, strict=strict)
    dated = tuple(replace(d, date=dates[d.text]) for d in dataset.documents)
    return replace(dataset, documents=dated)


def find_split(folder: Path, split: str | None, splits: Sequence[str]) -> Path:
    """The csv file of a split: ``split.csv`` or one whose name ends in ``_split.csv``.

    Raises:
        InputError: A split that the dataset doesn't have, or not one such file.
    """
    if folder.is_file():
        if split is not None:
            raise InputError(f"{folder} is a file: leave split out, got split {split!r}")
        return folder
    if not folder.is_dir():
        raise InputError(f"{folder}: no such file or folder; expected a csv file or its folder")
    if split not in splits:
        raise InputError(f"{folder} is a folder: expected split in {splits}, got {split!r}")
    found = sorted({*folder.glob(f"{split}.csv"), *folder.glob(f"*_{split}.csv")})
    if len(found) != 1:
        names = ", ".join(file.name for file in found) or "none"
        raise InputError(f"{folder}: expected one file {split}.csv or *_{split}.csv, got {names}")
    return found[0]


def csv_rows(file: Path, columns: Sequence[str]) -> Iterator[tuple[str, Mapping[str, str]]]:
    """Rows of a csv file with a header, and the path to each.

    Raises:
        InputError: Unreadable, not csv, without one of the columns, or a row cut short.
    """
    reader = csv.DictReader(io.StringIO(read_text(file), newline=""))
    try:
        header = reader.fieldnames or []
        missing = [column for column in columns if column not in header]
        if missing:
            raise InputError(
                f"{file}: expected the columns {', '.join(columns)}, got "
                f"{', '.join(header) or 'no header'}: {', '.join(missing)} missing"
            )
        for row in reader:
            where = f"{file}: line {reader.line_num}"
            for column in columns:
                if row[column] is None:
                    raise InputError(f"{where}: expected a value for {column}, got a short row")
            yield where, row
    except csv.Error as error:
        raise InputError(f"{file}: expected a csv file, got something else: {error}") from error


def json_lines(file: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Objects of a .jsonl or .jsonl.gz file, and the path to each; blank lines are passed over.

    Raises:
        InputError: Unreadable, or a line that is no JSON object.
    """
    for number, line in enumerate(read_text(file).split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{file}: line {number}"
        try:
            record = json.loads(line)
        except ValueError as error:
            raise InputError(f"{where}: expected a JSON object, got {line[:40]!r}") from error
        if not isinstance(record, dict):
            raise InputError(f"{where}: expected a JSON object, got {line[:40]!r}")
        yield where, record


def read_text(file: Path) -> str:
    """A file's text in UTF-8, unpacked if it is gzipped.

    Raises:
        InputError: Missing, unreadable, damaged or in another encoding.
    """
    try:
        content = file.read_bytes()
        if content.startswith(b"\x1f\x8b"):
            content = gzip.decompress(content)
        return content.decode("utf-8-sig")
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{file}: can't be read: {error}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{file}: expected text in UTF-8, got something else: {error}") from error
