"""Sentences of a text, by punctuation and a list of abbreviations: fast, and no model needed."""

from __future__ import annotations

import re

Span = tuple[int, int]
"""Characters from, up to."""

END = re.compile(r"[.!?][\"'”’)\]]*(?=\s+[\"'“‘(\[]?[A-Z0-9])|\n+")
NOT_SPACE = re.compile(r"\S")
# A full stop after one of these, or after a single capital, ends no sentence.
ABBREVIATIONS = frozenset(
    "mr mrs ms dr prof st gen col lt sgt capt cmdr adm gov sen rep rev hon pres sr jr vs etc inc "
    "ltd co corp mt ft no nos vol vols fig op pp ed eds cf ca c b d r e.g i.e approx est al lit "
    "jan feb mar apr jun jul aug sep sept oct nov dec u.s u.k u.n a.m p.m b.c a.d".split()
)
LAST_WORD = re.compile(r"[\w.]*$")


def sentence_spans(text: str) -> list[Span]:
    """Spans of a text's sentences, without the white space around them, in order."""
    spans = []
    start = 0
    for end in END.finditer(text):
        if text[end.start()] == "." and _abbreviated(text, end.start()):
            continue
        spans.append((start, end.end()))
        start = end.end()
    spans.append((start, len(text)))
    trimmed = ((start, start + len(text[start:end].rstrip())) for start, end in spans)
    return [
        (found.start(), end)
        for start, end in trimmed
        if (found := NOT_SPACE.search(text, start, end)) is not None
    ]


def _abbreviated(text: str, stop: int) -> bool:
    """Whether the full stop at `stop` belongs to the word before it."""
    found = LAST_WORD.search(text, max(0, stop - 12), stop)
    word = found[0] if found else ""
    return word.lower() in ABBREVIATIONS or (len(word) == 1 and word.isupper())
