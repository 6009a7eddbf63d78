"""Answers swapped for others of their kind, so that a text learnt by heart answers nothing.

Knowledge substitution after Longpre et al. 2021 ("Entity-Based Knowledge Conflicts in Question
Answering", arXiv 2109.05052), by rules alone. What is swapped is an answer's core: each number,
date or number word in it, else its name or phrase without article and punctuation. It is swapped
everywhere in text, questions and answers at once, or not at all: see `_Page.can_change`.
`substitutes.py` has the kinds of answers and where their replacements come from.
"""

from __future__ import annotations

import random
import zlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

from cmt.datasets.qa import QADataset, Question
from cmt.datasets.substitutes import WORD, Core, Pools, initials, is_capital
from cmt.errors import InputError
from cmt.metrics import shortest
from cmt.records import Document

_BETWEEN = "\0"  # stands between text, questions and answers
_JOINERS = "-–'’_"
_ATTEMPTS = 12

Span = tuple[int, int]


def substituted(
    dataset: QADataset,
    *,
    copies: int = 1,
    share: float = 0.8,
    invented: float = 0.0,
    seed: int = 0,
    name: str = "substituted",
) -> QADataset:
    """Changed versions of the documents, with their questions; titles stay.

    Each copy has articles of its own: two versions of a paragraph, which answer the same questions,
    are never drawn together as each other's hard negatives.

    A question whose answer can't be changed stays as it is; one whose shortest answer is no
    longer in the text is left out, and so is a version in which nothing changed. Ids get the
    version's number: squad-train-00012-v1.

    Args:
        dataset: What is changed, and where names and phrases are drawn from.
        copies: Versions of each document.
        share: Each answer that can be changed is, with this probability.
        invented: Each name that is changed becomes a made-up one, with this probability.
        seed: The same seed makes the same versions.
        name: The new dataset's.

    Raises:
        InputError: `copies` below 1, `share` or `invented` outside 0 to 1, no version with a
            change, or a null character in a text.
    """
    if copies < 1:
        raise InputError(f"expected at least 1 copy a document, got copies={copies}")
    for what, part in (("share", share), ("invented", invented)):
        if not 0 <= part <= 1:
            raise InputError(f"expected {what} from 0 to 1, got {part}")
    pools = Pools(dataset, invented)
    documents: list[Document] = []
    articles: list[int] = []
    questions: list[Question] = []
    for index, own in enumerate(dataset.questions_by_document()):
        document = dataset.documents[index]
        asked = [dataset.questions[question] for question in own]
        page = _Page(document.text, asked, pools)
        seen = {document.text}
        for copy in range(1, copies + 1):
            rng = random.Random(zlib.crc32(document.text.encode()) + copy * 2**32 + seed * 2**40)  # noqa: S311
            text, kept = page.version(rng, share)
            if text in seen or not kept:
                continue
            seen.add(text)
            questions += [
                Question(id=f"{q.id}-v{copy}", text=q.text, answers=q.answers,
                         document=len(documents))
                for q in kept
            ]  # fmt: skip
            new_id = f"{document.id or f'{name}-{index:05d}'}-v{copy}"
            documents.append(
                Document(text=text, id=new_id, title=document.title, date=document.date)
            )
            articles.append(dataset.articles[index] * copies + copy - 1)
    if not documents:
        raise InputError(f"{name}: expected an answer that can be changed, found none")
    return QADataset(
        name=name,
        documents=tuple(documents),
        articles=tuple(articles),
        questions=tuple(questions),
    )


class _Page:
    """A document's text, questions and answers in one string, and which cores can change in it."""

    def __init__(self, text: str, questions: Sequence[Question], pools: Pools) -> None:
        self.questions, self.pools, self.end = questions, pools, len(text)
        parts = [text, *(q.text for q in questions), *(a for q in questions for a in q.answers)]
        if any(_BETWEEN in part for part in parts):
            raise InputError(f"expected a text without null characters, got {text[:60]!r}")
        self.whole = _BETWEEN.join(parts)
        self.lower = self.whole.lower()
        self.tokens: defaultdict[str, list[tuple[str, int]]] = defaultdict(list)
        for found in WORD.finditer(self.whole):
            self.tokens[found[0][:4].lower()].append((found[0], found.start()))
        answers = {answer for question in questions for answer in question.answers}
        self.answer_spans = [span for answer in answers for span in self._in_text(answer)]
        self.spans: dict[Core, list[Span]] = {}
        for core in dict.fromkeys(c for q in questions for c in pools.cores(q, text)):
            spans = list(occurrences(core, self.whole))
            if self.can_change(core, spans):
                self.spans[core] = spans

    def can_change(self, core: Core, spans: Sequence[Span]) -> bool:
        """Whether the text stays consistent when these, all its whole-word occurrences, change.

        Not when an answer overlaps it other than by holding the whole of it; nor when a word of a
        name, a relative of one ("Norman", "Normandy") or its initials stand elsewhere.
        """
        inside = [(start, end) for start, end in spans if end <= self.end]
        if not inside:
            return False
        for start, end in inside:
            for first, last in self.answer_spans:
                if first < end and start < last and not (first <= start and end <= last):
                    return False
        if core.kind == "number":
            return True
        if core.kind == "name" and any(t == initials(core.text) for t, _ in self._like(core.text)):
            return False
        single = " " not in core.text
        return not any(
            self._elsewhere(word[0], spans, strict=single or self.pools.is_name(word[0]))
            for word in WORD.finditer(core.text)
            if single or (is_capital(word[0]) and len(word[0]) > 1)
        )

    def version(self, rng: random.Random, share: float) -> tuple[str, list[Question]]:
        """A changed text with the questions that are kept."""
        new: dict[Core, str] = {}
        taken: list[Span] = []
        for core, spans in self.spans.items():
            if rng.random() >= share or any(_overlap(span, taken) for span in spans):
                continue
            for _ in range(_ATTEMPTS):
                drawn = self.pools.draw(core, rng)
                if drawn is not None and self._is_new(drawn, core, new):
                    new[core] = drawn
                    taken += spans
                    break
        parts = _replaced(self.whole, {core: self.spans[core] for core in new}, new)
        text, *rest = parts.split(_BETWEEN)
        golds = iter(rest[len(self.questions) :])
        kept = []
        for question, asked in zip(self.questions, rest, strict=False):
            answers = tuple(dict.fromkeys(next(golds) for _ in question.answers))
            if shortest(answers) in text:
                answers = tuple(answer for answer in answers if answer in text)
                kept.append(Question(id=question.id, text=asked, answers=answers, document=0))
        return text, kept

    def _is_new(self, drawn: str, core: Core, new: Mapping[Core, str]) -> bool:
        if core.kind == "number":
            text, others = self.whole, _BETWEEN.join(new.values())
            probe = Core(text=drawn, kind="number")
            return not any(occurrences(probe, text)) and not any(occurrences(probe, others))
        small = drawn.lower()
        if small in self.lower or core.text.lower() in small:
            return False
        return all(
            small not in (other := value.lower()) and other not in small for value in new.values()
        )

    def _in_text(self, answer: str) -> list[Span]:
        text = self.whole[: self.end]
        whole = list(occurrences(Core(text=answer, kind="number"), text))
        return whole or [(at, at + len(answer)) for at in _found(answer, text)]

    def _like(self, name: str) -> list[tuple[str, int]]:
        return self.tokens.get(initials(name)[:4].lower(), [])

    def _elsewhere(self, word: str, spans: Sequence[Span], *, strict: bool) -> bool:
        """Whether the word stands outside the spans; strictly: in any case, or a relative."""
        small = word.lower()
        for token, start in self.tokens.get(small[:4], ()):
            if any(first <= start < last for first, last in spans):
                continue
            other = token.lower()
            if token == word or (strict and other == small):
                return True
            if strict and len(small) > 3 and len(other) > 3:
                if other.startswith(small) or small.startswith(other):
                    return True
        return False


def occurrences(core: Core, text: str) -> Iterator[Span]:
    """Where the core stands as whole words; a phrase also with its first letter as a capital."""
    variants = {core.text}
    if core.kind == "phrase":
        variants.add(core.text[:1].upper() + core.text[1:])
    number = core.text[:1].isdigit()
    for variant in variants:
        for start in _found(variant, text):
            end = start + len(variant)
            before, after = text[max(0, start - 2) : start], text[end : end + 2]
            if not (_joins(before[::-1], number, left=True) or _joins(after, number, left=False)):
                yield start, end


def _joins(near: str, number: bool, *, left: bool) -> bool:
    """Whether a word goes on here; `near` is read away from it."""
    if not near:
        return False
    if near[0].isalnum():
        return True
    if len(near) < 2 or not near[1].isalnum():
        return False
    if number:
        return (near[0] in ".,:" and near[1].isdigit()) or (
            left and near[0] in _JOINERS and near[1].isalpha()
        )
    return near[0] in _JOINERS and (left or near[0] not in "'’")


def _found(part: str, text: str) -> Iterator[int]:
    at = text.find(part)
    while at >= 0:
        yield at
        at = text.find(part, at + 1)


def _overlap(span: Span, others: Sequence[Span]) -> bool:
    return any(first < span[1] and span[0] < last for first, last in others)


def _replaced(text: str, spans: Mapping[Core, Sequence[Span]], new: Mapping[Core, str]) -> str:
    """The text with each core's spans exchanged; a capital at a phrase's beginning is kept."""
    pieces, at = [], 0
    places = {span: core for core, own in spans.items() for span in own}
    for (start, end), core in sorted(places.items(), key=lambda place: place[0]):
        fresh = new[core]
        if core.kind == "phrase" and text[start].isupper():
            fresh = fresh[0].upper() + fresh[1:]
        pieces += [text[at:start], fresh]
        at = end
    return "".join([*pieces, text[at:]])
