"""Files that hold many documents: JSON Lines (an object a line), CSV and TSV (a row each).

The fields `text` (needed), `id`, `title`, `date`, `source`, `metadata`, `namespace`, `tags` (a
list, or one string with commas) and `expires_at` are a document's; all others go into its
metadata. A wrong line becomes a `Failure` and the rest goes on.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from typing import Any, BinaryIO

from cmt.dates import span
from cmt.errors import DocumentError
from cmt.readers.texts import Origin, check_text, check_unicode, decode
from cmt.records import DEFAULT_NAMESPACE, Document, Failure

FIELDS = (
    "text",
    "id",
    "title",
    "date",
    "source",
    "metadata",
    "namespace",
    "tags",
    "expires_at",
)
LONGEST_CELL = 1 << 28  # characters; the csv module's own limit is 131,072


def read_json_lines(stream: BinaryIO, origin: Origin) -> Iterator[Document | Failure]:
    """Documents of a JSON Lines file; blank lines are passed over.

    Raises:
        DocumentError: The file as a whole is wrong: binary, or without a line.
    """
    number = 0
    for number, line in enumerate(_text_lines(stream), start=1):
        if line.strip():
            try:
                yield _document(_parse_object(decode(line)), origin)
            except DocumentError as error:
                yield Failure(document=f"{origin.name}:{number}", reason=str(error))
    if number == 0:
        raise DocumentError("Expected a JSON object a line, got nothing (empty).")


def read_csv(
    stream: BinaryIO, origin: Origin, *, delimiter: str = ","
) -> Iterator[Document | Failure]:
    """Documents of a CSV file with a header; empty cells count as absent.

    Raises:
        DocumentError: The file as a whole is wrong: binary, empty, or without a `text` column.
    """
    csv.field_size_limit(max(csv.field_size_limit(), LONGEST_CELL))
    # Bytes that are not UTF-8 become lone surrogates, over which only their own row stumbles.
    lines = (line.decode("utf-8", "surrogateescape") for line in _text_lines(stream))
    rows = csv.reader(lines, delimiter=delimiter, strict=True)
    columns = _header(rows)
    while True:
        number = rows.line_num + 1  # where the row starts; it may go over several lines
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            reason = f"Expected a row of CSV, got one that can't be parsed: {error}."
            yield Failure(document=f"{origin.name}:{number}", reason=reason)
            continue
        try:
            if row:
                yield _document(_fields(columns, row), origin)
        except DocumentError as error:
            yield Failure(document=f"{origin.name}:{number}", reason=str(error))


def _text_lines(stream: BinaryIO) -> Iterator[bytes]:
    """Lines of the stream without a byte order mark; raises DocumentError on binary content."""
    for number, line in enumerate(stream, start=1):
        if b"\0" in line:
            raise DocumentError(
                f"Expected text, got binary content (a zero byte in line {number})."
            )
        yield line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line


def _header(rows: Iterator[list[str]]) -> list[str]:
    try:
        columns = [column.strip() for column in next(rows, [])]
    except csv.Error as error:
        raise DocumentError(f"Expected a header of CSV, got: {error}.") from error
    if "text" not in columns or len(set(columns)) < len(columns):
        raise DocumentError(
            f"Expected a header of different columns, one of them 'text', got {columns}."
        )
    for column in columns:
        check_unicode(column)
    return columns


def _fields(columns: list[str], row: list[str]) -> dict[str, Any]:
    if len(row) != len(columns):
        raise DocumentError(f"Expected {len(columns)} cells as in the header, got {len(row)}.")
    fields: dict[str, Any] = {
        column: cell for column, cell in zip(columns, row, strict=True) if cell or column == "text"
    }
    if "metadata" in fields:
        fields["metadata"] = _parse_object(fields["metadata"])
    return fields


def _parse_object(text: str) -> dict[str, Any]:
    try:
        parsed = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DocumentError(
            f"Expected a JSON object, got text that is not JSON: {error}."
        ) from error
    if not isinstance(parsed, dict):
        raise DocumentError(f"Expected a JSON object, got {_shown(parsed)}.")
    return parsed


def _document(fields: dict[str, Any], origin: Origin) -> Document:
    text = fields.get("text")
    if not isinstance(text, str):
        got = _shown(text) if "text" in fields else f"only the fields {sorted(fields)}"
        raise DocumentError(f"Expected a field 'text' that is a string, got {got}.")
    check_text(text)
    extra = {name: value for name, value in fields.items() if name not in FIELDS}
    return Document(
        text=text,
        id=_id(fields.get("id")),
        title=_string(fields, "title") or origin.title,
        date=_date(_string(fields, "date")) or origin.date,
        source=_string(fields, "source") or origin.name,
        metadata=_metadata(extra, fields.get("metadata")),
        namespace=_string(fields, "namespace") or DEFAULT_NAMESPACE,
        tags=_tags(fields.get("tags")),
        expires_at=_date(_string(fields, "expires_at"), "expires_at") or None,
    )


def _id(value: object) -> str | None:
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if value is not None and not isinstance(value, str):
        raise DocumentError(f"Expected 'id' to be a string or a whole number, got {_shown(value)}.")
    check_unicode(value or "")
    return value or None


def _string(fields: dict[str, Any], name: str) -> str:
    value = fields.get(name)
    if value is not None and not isinstance(value, str):
        raise DocumentError(f"Expected {name!r} to be a string, got {_shown(value)}.")
    check_unicode(value or "")
    return value or ""


def _tags(value: object) -> tuple[str, ...]:
    parts = value.split(",") if isinstance(value, str) else value or []
    if not isinstance(parts, list) or not all(isinstance(part, str) for part in parts):
        raise DocumentError(f"Expected 'tags' to be a list of strings, got {_shown(value)}.")
    return tuple(part.strip() for part in parts if part.strip())


def _date(text: str, name: str = "date") -> str:
    if text and span(text) is None:
        raise DocumentError(
            f"Expected {name!r} as in 2024-05-31 or 2024-05-31T12:00 (ISO 8601), got {text!r}."
        )
    return text


def _metadata(extra: dict[str, Any], given: object) -> dict[str, Any]:
    if given is not None and not isinstance(given, dict):
        raise DocumentError(f"Expected 'metadata' to be an object, got {_shown(given)}.")
    metadata = {**extra, **(given or {})}
    try:
        check_unicode(json.dumps(metadata, ensure_ascii=False, allow_nan=False))
    except ValueError as error:
        raise DocumentError(f"Expected metadata that JSON can hold, got: {error}.") from error
    return metadata


def _shown(value: object) -> str:
    """A JSON value as an error message names it, cut to a line."""
    kind = {dict: "an object", list: "a list", str: "a string", bool: "a truth value"}.get(
        type(value), "null" if value is None else "a number"
    )
    shown = json.dumps(value)
    return kind if value is None else f"{kind} ({shown if len(shown) < 60 else shown[:60] + '...'})"
