"""Files that hold one document each: plain text, Markdown, HTML, PDF.

Each function reads a whole stream and returns the one `Document` in it, or raises
`DocumentError` with what was expected and what was got.
"""

from __future__ import annotations

import codecs
import io
import re
import struct
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO

from cmt.errors import DocumentError
from cmt.records import Document

if TYPE_CHECKING:
    from bs4 import BeautifulSoup
    from bs4.element import Tag

# HTML whose content is not text to read.
UNSEEN = frozenset("script style template noscript svg iframe title".split())
# HTML that stands apart from what is around it: by a blank line, or on lines of its own.
BLOCKS = (
    "address article aside blockquote body details dialog div dl fieldset figcaption figure footer "
    "form h1 h2 h3 h4 h5 h6 header hgroup hr main nav ol p pre section table ul"
).split()
LINES = "caption dd dt legend li option summary tr".split()
GAPS = dict.fromkeys(BLOCKS, 2) | dict.fromkeys(LINES, 1)  # line feeds before and after

# What pypdf lets through of its innards when a PDF is damaged, besides its own errors.
PDF_DAMAGE = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
)

FRONT_MATTER = re.compile(r"\A---[ \t]*\n(.*?\n)---[ \t]*\n", re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where a stream comes from, and the title and date of a document that has none itself.

    The date is a file's time stamp. `id` is for a stream that holds one document.
    """

    name: str
    title: str = ""
    date: str | None = None
    id: str | None = None

    def document(self, text: str, *, title: str = "") -> Document:
        """The stream's one document; raises DocumentError if the text can't be learned."""
        check_text(text)
        return Document(
            text=text.strip("\n").rstrip(),
            id=self.id,
            title=title or self.title,
            date=self.date,
            source=self.name,
            stamped=self.date is not None,
        )


def check_text(text: str) -> None:
    """Raise DocumentError unless `text` is valid Unicode with something to read in it."""
    if not text:
        raise DocumentError("Expected text, got nothing (empty).")
    if text.isspace():
        raise DocumentError(f"Expected text, got only white space ({len(text)} characters).")
    check_unicode(text)


def check_unicode(text: str) -> None:
    """Raise DocumentError if `text` can't be written as UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DocumentError(
            f"Expected valid Unicode, got a lone surrogate or an undecodable byte "
            f"at character {error.start}."
        ) from error


def decode(data: bytes, encoding: str = "utf-8-sig") -> str:
    """Bytes to text with line feeds as line ends; a UTF-16 byte order mark is honoured."""
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        encoding = "utf-16"
    elif (zero := data.find(b"\0")) >= 0:
        raise DocumentError(f"Expected text, got binary content (a zero byte at offset {zero}).")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        raise DocumentError(
            f"Expected {encoding.removesuffix('-sig').upper()} text, "
            f"got byte 0x{data[error.start]:02x} at offset {error.start}."
        ) from error
    except (LookupError, UnicodeError) as error:
        raise DocumentError(f"Expected text in a known encoding, got {encoding!r}.") from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_text(stream: BinaryIO, origin: Origin) -> Document:
    """Plain UTF-8 text."""
    return origin.document(decode(stream.read()))


def read_markdown(stream: BinaryIO, origin: Origin) -> Document:
    """CommonMark with tables; the title is the first heading. Front matter stays as text."""
    from bs4 import BeautifulSoup
    from markdown_it import MarkdownIt

    text = decode(stream.read())
    check_text(text)
    front = FRONT_MATTER.match(text)
    body = text[front.end() :] if front else text
    soup = BeautifulSoup(MarkdownIt("commonmark").enable("table").render(body), "html.parser")
    heading = soup.find(re.compile("^h[1-6]$"))
    title = one_line(heading.get_text()) if heading else ""
    plain = visible_text(soup)
    return origin.document(f"{front[1]}\n{plain}" if front else plain, title=title)


def read_html(stream: BinaryIO, origin: Origin) -> Document:
    """HTML in its declared encoding, else UTF-8; the title is the `title` element's."""
    from bs4 import BeautifulSoup
    from bs4.exceptions import ParserRejectedMarkup

    data = stream.read()
    markup = decode(data, _declared_encoding(data))
    check_text(markup)
    try:
        soup = BeautifulSoup(markup, "html.parser")
    except ParserRejectedMarkup as error:
        why = str(error).splitlines()[-1].strip()
        raise DocumentError(f"Expected HTML, got markup that can't be parsed: {why}.") from error
    title = one_line(soup.title.get_text()) if soup.title else ""
    return origin.document(visible_text(soup), title=title)


def _declared_encoding(data: bytes) -> str:
    from bs4.dammit import EncodingDetector

    declared = (EncodingDetector.find_declared_encoding(data, is_html=True) or "utf-8").lower()
    # Whoever can read the declaration byte by byte is not reading UTF-16 (the HTML standard).
    return "utf-8-sig" if declared in ("utf-8", "utf8") or declared[:6] == "utf-16" else declared


def visible_text(soup: BeautifulSoup) -> str:
    """The text a browser would show: blocks apart, white space by HTML's rules."""
    from bs4.element import NavigableString, PreformattedString, Tag

    parts = ["\n\n"]
    waiting: list[Any] = [soup]  # tags, strings and gaps; the last is the next one
    while waiting:
        node = waiting.pop()
        text = ""
        if isinstance(node, int):  # a gap: what is missing to so many line feeds
            there = parts[-2:][0][-2:] + parts[-1][-2:]
            text = "\n" * (node - (len(there) - len(there.rstrip("\n"))))
        elif isinstance(node, Tag):
            waiting += _opened(node)
        elif isinstance(node, NavigableString):
            if not isinstance(node, PreformattedString):  # a comment, doctype or the like
                text = re.sub(r"\s+", " ", node)
                text = text.lstrip() if parts[-1][-1].isspace() else text
        else:  # preformatted text or a line break
            text = node
        if text:
            parts.append(text)
    text = re.sub(r"(?<![ \t])[ \t]+\n", "\n", "".join(parts))
    return re.sub(r"\n{3,}", "\n\n", text).strip("\n")


def _opened(tag: Tag) -> list[Any]:
    """What is in a tag, back to front, as `visible_text` takes it."""
    from bs4.element import NavigableString

    if tag.name in UNSEEN:
        return []
    if tag.name == "br":
        return ["\n"]
    if tag.name in ("td", "th"):
        return [*reversed(tag.contents), NavigableString(" ")]
    inside = [tag.get_text()] if tag.name == "pre" else reversed(tag.contents)
    gap = GAPS.get(tag.name, 0)
    return [gap, *inside, gap]


def one_line(text: str) -> str:
    """`text` with every run of white space as one space."""
    return " ".join(text.split())


def read_pdf(stream: BinaryIO, origin: Origin) -> Document:
    """The text layer of a PDF, pages apart by a blank line."""
    data = stream.read()
    if b"%PDF-" not in data[:1024]:
        raise DocumentError(f"Expected a PDF (it starts with b'%PDF-'), got {data[:8]!r}.")
    pages = _pdf_pages(data)
    text = "\n\n".join(page.strip() for page in pages)
    if not text.strip():
        raise DocumentError(
            f"Expected a PDF with a text layer, got {len(pages)} pages without text (a scan?)."
        )
    # Characters outside the basic plane may come as two surrogates each: join them.
    return origin.document(text.encode("utf-16", "surrogatepass").decode("utf-16", "replace"))


def _pdf_pages(data: bytes) -> list[str]:
    from pypdf import PdfReader, errors

    locked = (errors.DependencyError, errors.FileNotDecryptedError, errors.WrongPasswordError)
    try:
        reader = PdfReader(io.BytesIO(data))
        if reader.is_encrypted and not reader.decrypt(""):
            raise errors.WrongPasswordError("it needs a password")
        return [page.extract_text() for page in reader.pages]
    except locked as error:
        raise DocumentError(
            f"Expected a PDF that opens without a password, got an encrypted one: {error}."
        ) from error
    except (errors.PyPdfError, errors.DeprecationError, *PDF_DAMAGE) as error:
        raise DocumentError(
            f"Expected a PDF that can be read, got a broken one ({type(error).__name__}: {error})."
        ) from error
