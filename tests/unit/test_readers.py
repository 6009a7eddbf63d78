"""Readers: what each kind of file becomes, and what is said about each that is wrong."""

from __future__ import annotations

import io
import os
import socket
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest
from bs4.exceptions import ParserRejectedMarkup

from cmt.errors import InputError
from cmt.readers import READERS, count_documents, read_path, read_stdin
from cmt.records import Document, Failure
from tests.unit.bank_pieces import make_piece
from tests.unit.pdf_bytes import encrypted_pdf, pdf

NOON_OF_MAY_4_2024 = 1_714_824_000


@pytest.fixture
def write(tmp_path):
    """Writes a file, last changed on 2024-05-04, and returns its path."""

    def write_file(name: str, content: str | bytes) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        os.utime(path, (NOON_OF_MAY_4_2024, NOON_OF_MAY_4_2024))
        return path

    return write_file


def the_document(records: Iterable[Document | Failure]) -> Document:
    (record,) = records
    assert isinstance(record, Document), record
    return record


def the_failure(records: Iterable[Document | Failure]) -> Failure:
    (record,) = records
    assert isinstance(record, Failure), record
    return record


# Plain text.


def test_text_has_the_file_name_as_title_the_path_as_source_and_the_change_as_date(write):
    path = write("harbour.log.txt", "\ufeffThe lighthouse.\r\nIt stands.\rStill.\n\n")
    assert the_document(read_path(path)) == Document(
        text="The lighthouse.\nIt stands.\nStill.",
        id=str(path),
        title="harbour.log",
        source=str(path),
        date="2024-05-04",
        stamped=True,
    )


def test_a_change_that_lies_ahead_is_no_date(write):
    path = write("a.txt", "sand")
    os.utime(path, (4e9, 4e9))  # in 2096
    document = the_document(read_path(path))
    assert (document.date, document.stamped) == (None, False)


def test_a_path_may_be_a_string_and_an_extension_in_capitals(write):
    path = write("A.TXT", "sand")
    assert the_document(read_path(str(path))).text == "sand"


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf_16_with_a_byte_order_mark_is_read(write, encoding):
    path = write("a.txt", ("\ufeffgrößer").encode(encoding))
    assert the_document(read_path(path)).text == "größer"


def test_an_unknown_extension_is_tried_as_text(write):
    assert the_document(read_path(write("notes.rst", "Notes"))).text == "Notes"
    assert the_document(read_path(write("README", "Read"))).title == "README"


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.txt", b"", "Expected text, got nothing (empty)."),
        ("a.txt", b" \n\t", "Expected text, got only white space (3 characters)."),
        ("a.txt", b"ab\xff", "Expected UTF-8 text, got byte 0xff at offset 2."),
        ("a.txt", b"\xff\xfea", "Expected UTF-16 text, got byte 0x61 at offset 2."),
        ("a.bin", b"ab\0c", "Expected text, got binary content (a zero byte at offset 2)."),
        ("a.md", b"\0", "Expected text, got binary content (a zero byte at offset 0)."),
        ("a.md", b"", "Expected text, got nothing (empty)."),
        ("a.html", b"", "Expected text, got nothing (empty)."),
        ("a.html", b"<p> </p>", "Expected text, got nothing (empty)."),
    ],
)
def test_a_file_without_text_fails_with_what_was_expected_and_got(write, name, content, reason):
    path = write(name, content)
    assert the_failure(read_path(path)) == Failure(document=str(path), reason=reason)


# Markdown and HTML.


def test_markdown_loses_its_markup_and_gives_its_first_heading_as_title(write):
    path = write(
        "a.md",
        "Intro with [a link](http://x.test) and ![alt](i.png).\n\n## The *tall* `light`\n\n"
        "Some **bold**\ntext.\n\n- one\n- two\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n"
        "```\nx = 1\n    y\n```\n<b>raw</b> 5 &lt; 6\n",
    )
    document = the_document(read_path(path))
    assert document.title == "The tall light"
    assert document.text == (
        "Intro with a link and .\n\nThe tall light\n\nSome bold text.\n\none\ntwo\n\n"
        "a b\n1 2\n\nx = 1\n    y\n\nraw 5 < 6"
    )


def test_markdown_without_a_heading_has_the_file_name_as_title(write):
    assert the_document(read_path(write("plain.markdown", "Just text."))).title == "plain"


def test_front_matter_stays_as_text(write):
    document = the_document(read_path(write("a.md", "---\nauthor: Weiss\n---\n# Light\n\nTall.")))
    assert document.title == "Light"
    assert document.text == "author: Weiss\n\nLight\n\nTall."


def test_html_gives_what_a_browser_shows_and_its_title(write):
    path = write(
        "a.html",
        """<!doctype html><html><head><title> The
        light </title><style>p {}</style><script>var x = 1;</script><body>
        <h1>Head</h1><!-- unseen --><p>One <b>bo</b>ld
        line<br>next</p><ul><li>a<li>b</ul>
        <table><tr><td>1</td><td>2</td></tr></table><pre>  kept
    so</pre>end &amp; all""",
    )
    document = the_document(read_path(path))
    assert document.title == "The light"
    assert document.text == (
        "Head\n\nOne bold line\nnext\n\na\nb\n\n1 2\n\n  kept\n    so\n\nend & all"
    )


@pytest.mark.parametrize(
    "markup",
    [
        '<meta charset="iso-8859-1"><p>gr\xf6\xdfer',
        '<meta charset="windows-1252"><p>gr\xf6\xdfer',
    ],
)
def test_html_is_read_in_its_declared_encoding(write, markup):
    path = write("a.htm", markup.encode("latin-1"))
    assert the_document(read_path(path)).text == "größer"


def test_html_that_declares_utf_16_in_plain_bytes_is_utf_8(write):
    path = write("a.html", '<meta charset="utf-16"><p>größer')
    assert the_document(read_path(path)).text == "größer"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"<p>\xf6</p>", "Expected UTF-8 text, got byte 0xf6 at offset 3."),
        (b'<meta charset="klingon">x', "Expected text in a known encoding, got 'klingon'."),
    ],
)
def test_broken_html_fails(write, content, reason):
    assert the_failure(read_path(write("a.html", content))).reason.startswith(reason)


def test_html_the_parser_rejects_fails(write, monkeypatch):
    """What it rejects differs between Python versions, so that the parser is replaced."""

    def reject(*args: object) -> None:
        raise ParserRejectedMarkup("The markup was rejected.\n\nAssertionError: expected a name")

    monkeypatch.setattr("bs4.BeautifulSoup", reject)
    reason = the_failure(read_path(write("a.html", "<p>"))).reason
    assert reason == (
        "Expected HTML, got markup that can't be parsed: AssertionError: expected a name."
    )


def test_deeply_nested_html_is_read(write):
    path = write("a.html", "<div>" * 20_000 + "deep")
    assert the_document(read_path(path)).text == "deep"


# PDF.


def test_pdf_pages_are_joined_by_a_blank_line(write):
    path = write("leaflet.pdf", pdf(["The lighthouse of Arbon", "", "It stands"]))
    document = the_document(read_path(path))
    assert document.text == "The lighthouse of Arbon\n\n\n\nIt stands"
    assert document.title == "leaflet"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "Expected a PDF (it starts with b'%PDF-'), got b''."),
        (b"PK\x03\x04 a zip", "Expected a PDF (it starts with b'%PDF-'), got b'PK\\x03\\x04 a z'."),
        (b"%PDF-1.4\n", "Expected a PDF that can be read, got a broken one (PdfStreamError: "),
        (pdf(["cut"])[:300], "Expected a PDF that can be read, got a broken one ("),
        (pdf(["", ""]), "Expected a PDF with a text layer, got 2 pages without text (a scan?)."),
        (
            encrypted_pdf(),
            "Expected a PDF that opens without a password, got an encrypted one: "
            "it needs a password.",
        ),
    ],
)
def test_a_pdf_without_readable_text_fails(write, content, reason):
    assert the_failure(read_path(write("a.pdf", content))).reason.startswith(reason)


# JSON Lines.


def test_json_lines_give_a_document_a_line_and_keep_other_fields_as_metadata(write):
    path = write(
        "a.jsonl",
        '\ufeff{"text": " sand ", "id": 7, "title": "T", "date": "2024-05-31T12:00:00Z", '
        '"source": "s", "metadata": {"a": 1}, "b": [2]}\r\n\n{"text": "clay", "id": null}',
    )
    assert list(read_path(path)) == [
        Document(
            text=" sand ",
            id="7",
            title="T",
            date="2024-05-31T12:00:00Z",
            source="s",
            metadata={"a": 1, "b": [2]},
        ),
        Document(text="clay", title="a", date="2024-05-04", source=str(path)),
    ]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "Expected a JSON object, got text that is not JSON: "),
        ("[1]", "Expected a JSON object, got a list ([1])."),
        ('"' + "x" * 100 + '"', 'Expected a JSON object, got a string ("xxx'),
        ("[" * 100_000, "Expected a JSON object, got text that is not JSON: "),
        ('{"body": "x"}', "Expected a field 'text' that is a string, got only the fields ['body']"),
        ('{"text": null}', "Expected a field 'text' that is a string, got null."),
        ('{"text": {"a": 1}}', "Expected a field 'text' that is a string, got an object ("),
        ('{"text": ""}', "Expected text, got nothing (empty)."),
        ('{"text": " "}', "Expected text, got only white space (1 characters)."),
        ('{"text": "a\\ud800"}', "Expected valid Unicode, got a lone surrogate or an undecodable "),
        (
            '{"text": "a", "id": true}',
            "Expected 'id' to be a string or a whole number, got a truth",
        ),
        (
            '{"text": "a", "id": 1.5}',
            "Expected 'id' to be a string or a whole number, got a number",
        ),
        ('{"text": "a", "title": 3}', "Expected 'title' to be a string, got a number (3)."),
        ('{"text": "a", "date": "May"}', "Expected 'date' as in 2024-05-31 or 2024-05-31T12:00 "),
        ('{"text": "a", "metadata": []}', "Expected 'metadata' to be an object, got a list ([])."),
        ('{"text": "a", "b": NaN}', "Expected metadata that JSON can hold, got: "),
        ('{"text": "a", "b": "\\udc00"}', "Expected metadata that JSON can hold, got: "),
        (b"\xff", "Expected UTF-8 text, got byte 0xff at offset 0."),
    ],
)
def test_a_wrong_line_fails_with_its_number_and_the_rest_goes_on(write, line, reason):
    line = line if isinstance(line, bytes) else line.encode()
    path = write("a.ndjson", b'{"text": "before"}\n' + line + b'\n{"text": "after"}\n')
    before, failure, after = read_path(path)
    assert [before.text, after.text] == ["before", "after"]
    assert failure.document == f"{path}:2"
    assert failure.reason.startswith(reason)


def test_binary_or_empty_json_lines_fail_once(write):
    path = write("a.jsonl", b'{"text": "a"}\n\0\n\0\n')
    document, failure = read_path(path)
    assert document.text == "a"
    assert failure.reason == "Expected text, got binary content (a zero byte in line 2)."
    failure = the_failure(read_path(write("b.jsonl", "")))
    assert failure.reason == "Expected a JSON object a line, got nothing (empty)."


# CSV and TSV.


def test_csv_rows_are_documents(write):
    path = write(
        "a.csv",
        '\ufeffid, text ,title,date,metadata,colour\r\n1,"sand,\nand ""clay""",T,2024-05-31,'
        '"{""a"": 1}",red\r\n\r\n,silt,,,,\r\n',
    )
    assert list(read_path(path)) == [
        Document(
            text='sand,\nand "clay"',
            id="1",
            title="T",
            date="2024-05-31",
            source=str(path),
            metadata={"a": 1, "colour": "red"},
        ),
        Document(text="silt", title="a", date="2024-05-04", source=str(path)),
    ]


def test_rows_of_one_id_are_known_when_the_file_is_read_again(write, bank):
    path = write("a.csv", "id,text\n1,sand\n1,silt\n")
    for statuses in (["added", "updated"], ["unchanged", "unchanged"]):
        rows = [replace(row, supersede=True) for row in read_path(path)]
        outcomes = bank.add([(row, [make_piece(row.text)]) for row in rows])
        assert [outcome.status for outcome in outcomes] == statuses


def test_tsv_is_cut_at_tabs(write):
    document = the_document(read_path(write("a.tsv", "text\tid\nsand, silt\t1\n")))
    assert (document.text, document.id) == ("sand, silt", "1")


def test_a_cell_may_be_longer_than_the_csv_modules_own_limit(write):
    text = "sand " * 100_000
    assert the_document(read_path(write("a.csv", f"text\n{text}\n"))).text == text


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("a", "Expected 2 cells as in the header, got 1."),
        ("a,b,c", "Expected 2 cells as in the header, got 3."),
        (",", "Expected text, got nothing (empty)."),
        ('"a"b,', "Expected a row of CSV, got one that can't be parsed: ',' expected after '\"'."),
        ("a,{", "Expected a JSON object, got text that is not JSON: "),
        (b"a\xff,", "Expected valid Unicode, got a lone surrogate or an undecodable byte at"),
    ],
)
def test_a_wrong_row_fails_with_its_line_and_the_rest_goes_on(write, row, reason):
    row = row if isinstance(row, bytes) else row.encode()
    path = write("a.csv", b'text,metadata\n"two\nlines",\n' + row + b"\nafter,\n")
    before, failure, after = read_path(path)
    assert [before.text, after.text] == ["two\nlines", "after"]
    assert failure.document == f"{path}:4"
    assert failure.reason.startswith(reason)


def test_a_quote_that_never_ends_fails(write):
    path = write("a.csv", 'text\n"sand\nclay\n')
    assert the_failure(read_path(path)) == Failure(
        document=f"{path}:2",
        reason="Expected a row of CSV, got one that can't be parsed: unexpected end of data.",
    )


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "Expected a header of different columns, one of them 'text', got []."),
        ("id;text\n1;a\n", "Expected a header of different columns, one of them 'text', got ['id;"),
        ("text,text\na,b\n", "Expected a header of different columns, one of them 'text', got ['t"),
        ('"text', "Expected a header of CSV, got: unexpected end of data."),
        (b"text,\xff\n", "Expected valid Unicode, got a lone surrogate or an undecodable byte"),
        ("text\n\0\n", "Expected text, got binary content (a zero byte in line 2)."),
    ],
)
def test_a_wrong_csv_file_fails_once(write, content, reason):
    path = write("a.csv", content)
    failure = the_failure(read_path(path))
    assert failure.document == str(path)
    assert failure.reason.startswith(reason)


def test_life_cycle_fields_are_read_and_checked(write):
    path = write(
        "a.jsonl",
        '{"text": "sand", "namespace": "news", "tags": ["b", " a"], "expires_at": "2027-01-01"}\n'
        '{"text": "silt", "tags": "x, y,", "date": "2026-01", "expires_at": "2027"}\n'
        '{"text": "clay", "tags": 3}\n'
        '{"text": "mud", "expires_at": "soon"}\n',
    )
    first, second, *failures = read_path(path)
    assert (first.namespace, first.tags, first.expires_at) == ("news", ("b", "a"), "2027-01-01")
    assert (second.namespace, second.tags) == ("default", ("x", "y"))
    assert (second.date, second.expires_at) == ("2026-01", "2027")
    assert failures[0].reason == "Expected 'tags' to be a list of strings, got a number (3)."
    assert failures[1].reason.startswith("Expected 'expires_at' as in 2024-05-31")
    table = write("a.csv", 'text,tags,namespace\nsand,"a,b",news\n')
    (row,) = read_path(table)
    assert (row.tags, row.namespace) == (("a", "b"), "news")


# Paths.


def test_a_file_of_one_document_has_its_full_path_as_id(write, tmp_path, monkeypatch):
    write("notes/a.txt", "sand")
    write("notes/b.jsonl", '{"text": "silt"}')
    monkeypatch.chdir(tmp_path)
    text, line = read_path("notes")
    assert (text.id, text.source) == (str(tmp_path / "notes" / "a.txt"), "notes/a.txt")
    assert line.id is None
    monkeypatch.chdir(tmp_path / "notes")
    assert next(read_path("./a.txt")).id == text.id


def test_documents_are_counted_by_files_and_lines(write, tmp_path):
    write("a/x.txt", "sand")
    write("a/b/y.jsonl", '{"text": "silt"}\n{"text": "clay"}\n')
    write("a/z.csv", "text\nsand\nsilt\nclay\n")
    write("a/.hidden.txt", "mud")
    assert count_documents([str(tmp_path / "a")]) == 1 + 2 + 3
    assert count_documents([str(tmp_path / "a" / "x.txt")], "jsonl") == 1
    assert count_documents([str(tmp_path / "none.jsonl")]) == 1
    assert count_documents([str(tmp_path / "a"), "-"]) is None


def test_a_file_whose_name_is_not_unicode_has_no_id(tmp_path):
    name = os.fsdecode(os.fsencode(tmp_path) + b"/\xff.txt")
    with open(name, "w") as file:
        file.write("sand")
    (document,) = read_path(name)
    assert document.id is None


def test_a_folder_is_read_sorted_and_without_hidden_entries(write, tmp_path):
    for name in ("b.txt", "a/z.txt", "a/.hidden.txt", ".git/config", "c/d/e.txt", "a.txt"):
        write(name, name)
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "link.txt").symlink_to(tmp_path / "b.txt")
    texts = [record.text for record in read_path(tmp_path)]
    assert texts == ["a/z.txt", "a.txt", "b.txt", "c/d/e.txt", "b.txt"]


def test_a_bad_file_does_not_stop_a_folder(write, tmp_path):
    write("a.pdf", b"broken")
    write("b.txt", "sand")
    (tmp_path / "c.txt").symlink_to(tmp_path / "missing")
    records = list(read_path(tmp_path))
    assert [type(record) for record in records] == [Failure, Document, Failure]
    assert records[2].reason == "Expected a file or folder, got nothing at this path."


def test_a_missing_path_and_an_empty_folder_fail(tmp_path):
    missing = the_failure(read_path(tmp_path / "none.txt"))
    assert missing == Failure(
        document=str(tmp_path / "none.txt"),
        reason="Expected a file or folder, got nothing at this path.",
    )
    (tmp_path / ".hidden").touch()
    empty = the_failure(read_path(tmp_path))
    assert empty.reason == "Expected a folder with files to read, got one without any."


def test_a_pipe_and_a_socket_fail_instead_of_being_waited_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a socket's path is limited to about 100 bytes
    os.mkfifo("pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket")
        for name in ("pipe", "socket"):
            reason = the_failure(read_path(name)).reason
            assert reason == "Expected a regular file, got a pipe, socket or device."


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_or_folder_without_permission_fails(write, tmp_path):
    write("a/b.txt", "x").chmod(0)
    reason = "Expected a file that can be read, got: Permission denied."
    assert the_failure(read_path(tmp_path / "a" / "b.txt")).reason == reason
    (tmp_path / "a").chmod(0)
    try:
        assert the_failure(read_path(tmp_path / "a" / "b.txt")).reason == reason
        reason = "Expected a folder that can be read, got: Permission denied."
        assert the_failure(read_path(tmp_path / "a")).reason == reason
    finally:
        (tmp_path / "a").chmod(0o700)


def test_errors_of_the_file_system_fail(write, tmp_path, monkeypatch):
    """As above, but for root too."""
    path = write("a/b.txt", "x")

    def refuse(*args: object, **options: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    reason = "Expected a file that can be read, got: Permission denied."
    assert the_failure(read_path(path)) == Failure(document=str(path), reason=reason)
    monkeypatch.setattr(Path, "iterdir", refuse)
    reason = "Expected a folder that can be read, got: Permission denied."
    assert the_failure(read_path(tmp_path)) == Failure(document=str(tmp_path), reason=reason)


def test_a_file_name_that_is_not_utf_8_is_shown_with_replacement_signs(tmp_path):
    path = os.path.join(os.fsencode(tmp_path), b"sand\xff.txt")
    with open(path, "wb") as file:
        file.write(b"sand")
    document = the_document(read_path(os.fsdecode(path)))
    assert document.title == "sand\ufffd"
    assert document.source.endswith("sand\ufffd.txt")


# Kinds and standard input.


def test_a_kind_overrules_the_extension(write):
    path = write("a.txt", '{"text": "sand"}')
    assert the_document(read_path(path, kind="jsonl")).text == "sand"


def test_an_unknown_kind_is_refused_at_the_call(tmp_path):
    with pytest.raises(InputError, match=r"out of txt, md, .*tsv, got 'docx'"):
        read_path(tmp_path, kind="docx")
    with pytest.raises(InputError, match=r"out of txt, md, .*tsv, got 'docx'"):
        read_stdin(io.BytesIO(), kind="docx")


def test_standard_input_is_text_or_the_kind_that_is_named():
    text = the_document(read_stdin(io.BytesIO(b"sand\n")))
    assert text == Document(text="sand", source="stdin")
    records = list(read_stdin(io.BytesIO(b'{"text": "a"}\n?\n'), kind="jsonl"))
    assert records[0] == Document(text="a", source="stdin")
    assert records[1].document == "stdin:2"
    assert the_failure(read_stdin(io.BytesIO(b""))).document == "stdin"


def test_standard_input_is_read_where_no_stream_is_given(monkeypatch):
    class Standard:
        buffer = io.BytesIO(b"clay")

    monkeypatch.setattr("sys.stdin", Standard())
    assert the_document(read_stdin()).text == "clay"


@pytest.mark.parametrize("kind", READERS)
def test_no_kind_of_file_stumbles_over_random_bytes(kind):
    noise = bytes((37 * place * place + place) % 256 for place in range(5000))
    for data in (noise, noise.replace(b"\0", b""), b"%PDF-" + noise):
        records = list(read_stdin(io.BytesIO(data), kind=kind))
        assert records
        assert all(isinstance(record, Failure) for record in records)
