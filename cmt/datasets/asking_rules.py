"""Questions by rules alone, no model needed: fewer kinds than `asking_parsed.py`, but fast.

Names, numbers and dates are found by their capitals and digits. A name gets a blank, a wh-word
where it stood ("… was built by whom?") or, at the beginning of a plain sentence, a wh-word there;
a year moves in front ("In what year was …").
"""

from __future__ import annotations

import random
import re
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from cmt.datasets.asking import Asked, cloze, sensible
from cmt.datasets.sentences import sentence_spans

MONTH = "(?:January|February|March|April|May|June|July|August|September|October|November|December)"
DATE = rf"(?:\d{{1,2}} {MONTH}(?: \d{{4}})?|{MONTH} \d{{1,2}}(?:, \d{{4}})?|{MONTH} \d{{4}})\b"
YEAR = r"(?:1\d|20)\d\d\b"
NUMBER = r"\d[\d,]*(?:\.\d+)?(?: (?:million|billion|thousand))?\b"
CAPITAL = r"(?:(?:[A-Z]\.)+|[A-ZÀ-Þ][\w'’-]*)"
NAME = rf"{CAPITAL}(?:(?: (?:of|the|de|von|van|al|and))?(?: {CAPITAL}))*"
SPAN = re.compile(
    rf"(?<![\w$£€.,-])(?:(?P<date>{DATE})|(?P<year>{YEAR})|(?P<number>{NUMBER}))"
    rf"(?![-–\w%]|[.,]\d)|(?<![\w.])(?P<name>{NAME})(?!\.?\w)"
)
SMALL = frozenset(
    "the a an in on at by for from to with and but or as if it its he she his her they their this "
    "that these those there when while after before during since although however some many most "
    "several all both each other one two first although because such not no where what who".split()
)
PREPOSITION = re.compile(r"\b(\w+) (?:the )?$")
COUNTED = re.compile(r" ((?:[a-z]+ )?[a-z]{3,}s)\b")
VERB = r"(?P<verb>was|were|is|are|has|have|had|can|could|will|would|may|must|did)"
# A subject of few words without another verb or clause, then the first auxiliary.
PLAIN = re.compile(
    rf"^(?P<before>(?:In|On|During) [^,]{{1,30}}, )?(?P<subject>(?:[^\s,;:]+ ){{1,8}}?){VERB} "
    rf"(?P<after>[^;:]+)\.$"
)
NO_SUBJECT = re.compile(
    r"\b(?:that|which|who|whom|whose|where|when|it|he|she|they|there|this|"
    r"these|those|if|while|as|and|but|or|by|\w+ed|\w+ing)\b",
    re.IGNORECASE,
)
IN_YEAR = re.compile(rf"\b[Ii]n (?P<year>{YEAR})(?![-–,.]\d)")
PERSON = re.compile(
    r"^(?:was born|(?:is|was) an? (?:[\w-]+ ){0,4}(?:singer|actor|actress|writer|author|player|"
    r"politician|artist|painter|poet|scientist|physicist|composer|musician|philosopher|engineer|"
    r"footballer|director|historian|king|queen|emperor|explorer|journalist|mathematician)\b)"
)


@dataclass(frozen=True, slots=True)
class _Span:
    start: int
    end: int
    kind: str


class RuleAsker:
    """Questions by rules; the same text and seed give the same ones."""

    def __init__(self, *, seed: int = 0) -> None:
        self.seed = seed

    def __call__(self, texts: Iterable[str]) -> Iterator[list[Asked]]:
        """Questions of each text, in the order of the texts."""
        for text in texts:
            rng = random.Random(zlib.crc32(text.encode()) + self.seed)  # noqa: S311
            sentences = (text[start:end] for start, end in sentence_spans(text))
            yield [
                asked
                for sentence in sentences
                if sentence[0].isupper() and sentence[-1] in '.!"'
                for asked in _ask(sentence, rng)
                if sensible(asked)
            ]


def answer_spans(sentence: str) -> Iterator[tuple[int, int, str]]:
    """Dates, years, numbers and names of a sentence: start, end and kind, in order."""
    for found in SPAN.finditer(sentence):
        kind = found.lastgroup or ""
        start, end = found.span()
        if kind == "name":
            first = found[0].split(" ")
            while first and first[0].lower() in SMALL:  # "The", "In" at the beginning
                start += len(first.pop(0)) + 1
            if not first or (start == 0 and len(first) == 1):
                continue
            if sentence[start:end].endswith(("'s", "’s")):
                end -= 2
        yield start, end, kind


def _ask(sentence: str, rng: random.Random) -> Iterator[Asked]:
    plain = PLAIN.match(sentence)
    if plain and not NO_SUBJECT.search(plain["subject"]):
        yield from _about_year(plain, rng)
        yield from _about_subject(plain)
    for start, end, kind in answer_spans(sentence):
        yield cloze(sentence, start, end, rng)
        yield from _in_place(sentence, _Span(start, end, kind))


def _about_subject(plain: re.Match[str]) -> Iterator[Asked]:
    subject, rest = plain["subject"].strip(), f"{plain['verb']} {plain['after']}"
    if PERSON.match(rest):
        wh = "Who"
    elif subject.startswith("The ") and plain["verb"] in ("was", "is", "has", "had"):
        wh = "What"
    else:
        return
    yield Asked(question=f"{wh} {rest}?", answer=subject, form="subject")


def _about_year(plain: re.Match[str], rng: random.Random) -> Iterator[Asked]:
    """In what year, with the subject and its auxiliary exchanged."""
    subject, after = plain["subject"].strip(), plain["after"]
    if subject.split(" ")[0].lower() in SMALL:
        subject = subject[0].lower() + subject[1:]
    if plain["before"]:
        year = IN_YEAR.fullmatch(plain["before"].removesuffix(", "))
    else:
        year = IN_YEAR.search(after)
        if year and after[year.end() : year.end() + 1] not in ("", ","):
            year = None
        elif year:
            after = after[: year.start()].strip()
    if year and after and "," not in after:
        opening = ("In what year", "When", "What year")[rng.randrange(3)]
        question = f"{opening} {plain['verb']} {subject} {after}?"
        yield Asked(question=question, answer=year["year"], form="when")


def _in_place(sentence: str, span: _Span) -> Iterator[Asked]:
    """The statement with a wh-word where the span stood, if the span ends its clause."""
    before, after = sentence[: span.start], sentence[span.end :]
    before = before[0].lower() + before[1:] if before.split(" ")[0].lower() in SMALL else before
    found = PREPOSITION.search(before)
    preposition = found[1] if found else ""
    counted = COUNTED.match(after)
    if span.kind == "number" and counted:
        word, form = "how many", "how many"
    elif after.rstrip(".") or not preposition:
        return
    elif span.kind == "year" and preposition == "in":
        word, form = "what year", "when"
    elif span.kind == "date" and preposition == "on":
        word, form = "what date", "when"
    elif span.kind == "name" and preposition in ("in", "at", "near"):
        word, form = "what place", "in place"
    elif span.kind == "name" and preposition in ("by", "to", "with", "from", "for", "of", "after"):
        word, form = "whom" if preposition == "by" else "what", "in place"
    else:
        return
    question = f"{before.removesuffix('the ')}{word}{after.rstrip('.')}?"
    question = question[0].upper() + question[1:]
    yield Asked(question=question, answer=sentence[span.start : span.end], form=form)
