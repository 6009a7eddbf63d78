"""Clauses of a sentence that spaCy has parsed: subject, verb, what follows; no side remarks."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from cmt.datasets.asking import POINTING

Tokens = list[Any]
"""spaCy tokens in the order of the text; gaps are what was dropped."""

SIDE_REMARKS = frozenset("appos parataxis advcl meta intj dep".split())
ARGUMENTS = frozenset("dobj attr acomp prep agent dative oprd xcomp prt advmod".split())
SUBJECTS = ("nsubj", "nsubjpass")
CONNECTING = frozenset(
    "also however therefore thus instead meanwhile though then subsequently furthermore moreover "
    "later eventually only even still again additionally consequently similarly".split()
)
# These turn the sense of a clause, which is lost where they are dropped.
TURNING = frozenset("longer never rarely seldom hardly barely scarcely nearly almost".split())
NAMING = frozenset("call name title dub term label nickname rename appoint elect".split())
NAMES = frozenset("PERSON GPE LOC FAC ORG EVENT WORK_OF_ART NORP LANGUAGE PRODUCT LAW".split())


@dataclass(slots=True)
class Clause:
    """Subject, verb and what follows.

    Attributes:
        verbs: Auxiliaries, adverbs between and the verb itself, in order.
        arguments: Heads of what follows, those that stood before the subject last.
    """

    subject: Any
    verb: Any
    verbs: Tokens
    arguments: Tokens = field(default_factory=list)

    def inverted(self) -> tuple[str, str]:
        """What comes before the subject in a question, and what after."""
        first, *others = self.verbs
        if first.pos_ == "AUX" and (first.lemma_ == "be" or first != self.verb):
            return first.lower_, text_of(others)
        did = {"VBD": "did", "VBZ": "does"}.get(self.verb.tag_, "do")
        before = text_of(self.verbs[: self.verbs.index(self.verb)])
        return did, f"{before} {self.verb.lemma_}".strip()

    def question(self, opening: str, without: int, *after: str) -> str:
        """An inverted question that leaves the argument at `without` out."""
        first, second = self.inverted()
        subject = text_of(kept(self.subject))
        return as_question(opening, first, subject, second, *self.rest(without), *after)

    def rest(self, without: int | None = None) -> list[str]:
        """Texts of the arguments."""
        return [text_of(kept(a)) for n, a in enumerate(self.arguments) if n != without]


def clause_of(verb: Any) -> Clause | None:
    """The clause of a finite verb with a subject that names something, or None."""
    if verb.pos_ not in ("VERB", "AUX") or verb.dep_ in ("aux", "auxpass"):
        return None
    children = list(verb.children)
    auxiliaries = [c for c in children if c.dep_ in ("aux", "auxpass") and c.i < verb.i]
    finite = auxiliaries[0] if auxiliaries else verb
    if finite.tag_ not in ("VBD", "VBZ", "VBP", "MD") or any(
        c.dep_ in ("neg", "ccomp", "expl", "csubj", "preconj") for c in children
    ):
        return None
    subject = _subject(verb)
    if subject is None or subject.i > verb.i:
        return None
    inside = [
        child
        for child in children
        if child.dep_ == "advmod" and finite.i < child.i < verb.i and child.lower_ not in CONNECTING
    ]
    if any(list(c.children) for c in inside) or any(c.lower_ in TURNING for c in children):
        return None
    verbs = sorted([*auxiliaries, *inside, verb], key=lambda token: token.i)
    after = [
        child
        for child in children
        if child.i > verb.i and child.dep_ in ARGUMENTS and child.lower_ not in CONNECTING
    ]
    before = [
        child
        for child in children
        if child.i < verb.i
        and child.lower_ in ("in", "on", "at", "during")
        and child.dep_ == "prep"
        and len(list(child.subtree)) <= 6
    ]
    if _broken(verb, subject, after):
        return None
    return Clause(subject, verb, verbs, after + before)


def _broken(verb: Any, subject: Any, after: Tokens) -> bool:
    """Whether a clause points outside itself or seems to be misread."""
    if any(t.tag_ in ("PRP", "PRP$") or t.lower_ in POINTING for t in kept(subject)):
        return True
    if kept(subject)[0].pos_ in ("VERB", "AUX", "ADV"):
        return True
    objects = [a for a in after if a.dep_ in ("dobj", "attr", "oprd", "acomp")]
    if len(objects) > (2 if verb.lemma_ in NAMING else 1):
        return True
    if verb.lemma_ == "be" and verb.pos_ == "AUX" and not after:
        return True
    return any(
        t.lower_ == "that" or t.dep_ == "mark" or t.tag_ in ("WDT", "WP", "WP$", "WRB")
        for head in (subject, *after) for t in kept(head)
    )  # fmt: skip


def _subject(verb: Any) -> Any:
    """The verb's subject; that of the verb before "and"; what a relative clause is about."""
    own = [c for c in verb.children if c.dep_ in SUBJECTS]
    if not own:
        if verb.dep_ == "conj" and verb.head.pos_ in ("VERB", "AUX"):
            return _subject(verb.head)
        return None
    if own[0].lower_ in ("who", "which", "that"):
        return verb.head if verb.dep_ == "relcl" and verb.head.pos_ in ("NOUN", "PROPN") else None
    return own[0] if own[0].pos_ in ("NOUN", "PROPN") else None


def kept(head: Any) -> Tokens:
    """The subtree of a token without side remarks and long relative clauses."""
    tokens: Tokens = [head]

    def walk(token: Any) -> None:
        for child in token.children:
            if child.dep_ in SIDE_REMARKS or (child.text in "()[]–—-" and child.dep_ == "punct"):
                continue
            if child.dep_ in ("relcl", "acl"):
                before = child.left_edge.i - 1
                if child.doc[before].text == "," or len(list(child.subtree)) > 7:
                    continue
            if child.dep_ == "conj" and child.pos_ in ("VERB", "AUX"):
                continue
            if child.dep_ == "cc" and any(
                c.dep_ == "conj" and c.pos_ in ("VERB", "AUX") for c in token.children
            ):
                continue
            tokens.append(child)
            walk(child)

    walk(head)
    places = {token.i for token in tokens}
    return sorted(
        (t for t in tokens if t.text != "," or {t.i - 1, t.i + 1} <= places), key=lambda t: t.i
    )


def text_of(tokens: Tokens) -> str:
    """Tokens as text, a space at each gap; the sentence's own capital is undone."""
    parts = []
    for number, token in enumerate(tokens):
        gap = number + 1 < len(tokens) and tokens[number + 1].i != token.i + 1
        named = token.pos_ == "PROPN" or (token.ent_type_ in NAMES and token.pos_ != "DET")
        starts = token.is_sent_start and not named
        word = token.text[0].lower() + token.text[1:] if starts else token.text
        parts.append(word + (" " if gap else token.whitespace_))
    return "".join(parts).strip(" ,")


def as_question(*parts: str) -> str:
    """The parts that aren't empty, with a capital and a question mark."""
    text = " ".join(part for part in parts if part)
    return text[0].upper() + text[1:] + "?"
