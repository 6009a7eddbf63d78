"""What questions made from a sentence have in common: their shape, and when one is worth asking.

Two askers make them: `asking_rules.py` needs nothing, `asking_parsed.py` needs spaCy and makes
better ones.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

MOST_ANSWER_WORDS = 8
FEWEST_WORDS, MOST_WORDS = 5, 22  # of a natural question
MOST_CLOZE_WORDS = 32
BLANK = "____"
CLOZE_FORMS = (
    "{}",
    "{}",
    "Fill in the blank: {}",
    "Which words are missing? {}",
)
WORD = re.compile(r"[^\W_]+(?:['’.&-][^\W_]+)*")
NOT_FIRST = frozenset(
    "no any only such all another other his her their my our".split()
)  # words of an answer
NOT_LAST = frozenset("and or of the last other".split())
BRACKET = re.compile(r"[\n()[\]{}]")
UNEASY = re.compile(r"[\n;–—()[\]{}|/=*]|\.\.|[.,] ?\?$|:(?! [A-Z_])|\b(?:and|or|the|an?)\?$")
# Words that point at something outside the question.
POINTING = frozenset(
    "he she it they him them we us i you me this these those such former latter following above "
    "there here another others himself herself itself themselves respectively same".split()
)
EMPTY = POINTING | frozenset(
    "a an the of in on at by for to from with and or as is was were are be been being has have "
    "had do does did not no who whom whose what which when where why how many much year that "
    "his her its their our your my than but if so into also one some any all more most other "
    "fill blank completes sentence words missing".split()
)
VAGUE = EMPTY | frozenset(
    "part parts time times way ways thing things number many several member members use "
    "place first second result end name case example people two-year day days year years "
    "group one ones role work due".split()
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A question made from a text, and the words of the text that answer it.

    Attributes:
        form: How it was made: "subject", "object", "when", … or "cloze".
    """

    question: str
    answer: str
    form: str


class Asker(Protocol):
    """Makes questions from texts."""

    def __call__(self, texts: Iterable[str]) -> Iterator[list[Asked]]:
        """Questions of each text, in the order of the texts."""
        ...


def words(text: str) -> list[str]:
    """The words of a text, in lower case."""
    return [word.lower() for word in WORD.findall(text)]


def sensible(asked: Asked) -> bool:
    """Whether a question can be understood by itself, isn't trivial and has a short answer."""
    answer, question = words(asked.answer), words(asked.question)
    if not 1 <= len(answer) <= MOST_ANSWER_WORDS or set(answer) <= VAGUE:
        return False
    if answer[0] in NOT_FIRST or answer[-1] in NOT_LAST or not POINTING.isdisjoint(answer):
        return False
    most = MOST_CLOZE_WORDS if asked.form == "cloze" else MOST_WORDS
    if not FEWEST_WORDS <= len(question) <= most or not POINTING.isdisjoint(question):
        return False
    if set(answer) - EMPTY <= set(question) or UNEASY.search(asked.question):
        return False
    if any(text.count('"') % 2 for text in (asked.question, asked.answer)):
        return False
    if BRACKET.search(asked.answer) or (
        not asked.answer[-1].isalnum() and asked.answer[-1] not in '%"'
    ):
        return False
    content = {word for word in question if word not in EMPTY}
    names = [word for word in WORD.findall(asked.question)[1:] if word[0].isupper()]
    figures = [word for word in content if word[0].isdigit()]
    return len(content) >= 3 and (len(names) + len(figures) >= 1 or len(content) >= 5)


def cloze(sentence: str, start: int, end: int, rng: random.Random) -> Asked:
    """The sentence with a blank for its characters `start` to `end`."""
    blanked = sentence[:start] + BLANK + sentence[end:]
    form = CLOZE_FORMS[rng.randrange(len(CLOZE_FORMS))]
    return Asked(question=form.format(blanked), answer=sentence[start:end], form="cloze")
