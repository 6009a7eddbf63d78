"""What in an answer can be exchanged, and for what: the kinds of answers for `substitution.py`.

Numbers and dates are drawn in their own form. Names and phrases come from other questions'
answers of the same type: the same shape, asked for in the same way ("who", "what city"). A share
of the names can be invented instead (`inventing.py`).
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from cmt.datasets.asking_rules import MONTH
from cmt.datasets.inventing import NameMaker
from cmt.datasets.qa import QADataset, Question

FEWEST = 8  # different answers in a pool
MOST_WORDS, MOST_PHRASE_WORDS = 6, 4

MONTHS = MONTH[3:-1].split("|")
SMALL_NUMBERS = "two three four five six seven eight nine ten eleven twelve".split()
TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
NUMBER_WORD = "|".join(SMALL_NUMBERS + TENS)
DIGITS = r"\d{1,2}:\d\d|\d+(?:,\d{3})*(?:\.\d+)?(?:st|nd|rd|th|s)?"
PART = re.compile(
    rf"{MONTH} \d{{1,2}}(?!\d)|(?<!\d)\d{{1,2}} {MONTH}|\b{MONTH}\b"
    rf"|(?<![\w.])(?<![A-Za-z][-–])(?:{DIGITS})(?![\w])|(?<![\w-])(?:{NUMBER_WORD})(?![\w-])"
)
NUMBER = re.compile(r"(\d[\d,]*)(\.\d+)?(st|nd|rd|th|s)?")
WORD = re.compile(r"\w+")
EDGE = " \t\n\"“”‘’'.,;:()[]"
LEADING = re.compile(
    r"(?:(?:in|at|by|on|from|to|with|near|of|for|as|about)\s+(?=[A-Z]|the ))?"
    r"(?:(?:[Tt]he|[Aa]n?)\s+)?"
)
SMALL = frozenset(
    "of the and de la le du da do di des von van der al el y in on for a an at to &".split()
)
CLAUSE = re.compile(
    r"\b(?:that|which|who|whom|whose|where|when|it|he|she|they|there|this|these|those|if|while|"
    r"because|his|her|its|their|them|him|is|was|are|were|be|been|being|has|have|had|can|could|"
    r"will|would|may|must|did|does|do|not|no|yes|more|than|other|both|all|only|most|some|many)\b"
    r"|^(?:to|by|in|on|at|with|from|for|of|as|about|over|under|after|before|during|through)\b",
    re.IGNORECASE,
)
QUESTION_WORDS = {"whom": "who", "which": "what"} | {
    word: word for word in ("who", "what", "where", "when", "why", "how", "whose")
}
BE = frozenset("is was are were".split())
DO = frozenset("did does do can could would will should has have had may might must".split())
STOP = BE | DO | frozenset(
    "of in on at to for from with by that which who and or as does the a an it be been during "
    "between after before about are into his her their its this not when where used called known "
    "given made became".split()
)  # fmt: skip
COLLAPSED = frozenset(
    "the a an name names type types kind kinds sort form forms part one of other specific main "
    "first two some example examples".split()
)
VAGUE = frozenset(("what", "what thing", "other", "why", "how"))  # too much answers these
ASKED = re.compile(r"[\w’'-]+")


@dataclass(frozen=True, slots=True)
class Core:
    """A part of an answer that is exchanged as one.

    Attributes:
        text: As it stands in the document (a phrase: as it stands within a sentence).
        kind: "number" (dates and number words too), "name" or "phrase" (not all capitals).
        keys: The pools of a name or phrase, finest first.
        coarse: Those of a name that only heed its shape and the question word.
    """

    text: str
    kind: str
    keys: tuple[str, ...] = field(default=(), compare=False)
    coarse: tuple[str, ...] = field(default=(), compare=False)


class Pools:
    """The answers of a dataset by type key, and the words it writes with a capital."""

    def __init__(self, dataset: QADataset, invented: float = 0.0) -> None:
        """Collect them; `invented` is the share of the names that are not drawn but made up."""
        self._written: Counter[str] = Counter()
        for document in dataset.documents:
            self._written.update(WORD.findall(document.text))
        self._heads = _heads(dataset)
        self._given = _given_names(dataset)
        collected: dict[str, dict[str, None]] = {}
        usual: dict[str, Counter[str]] = {}
        names: dict[str, None] = {}
        for question in dataset.questions:
            for core in self.cores(question, dataset.documents[question.document].text):
                for key in core.keys + core.coarse:
                    collected.setdefault(key, {})[core.text] = None
                if core.kind == "name":
                    names[core.text] = None
                usual.setdefault(core.text, Counter()).update(core.keys)
        self._invented, self._maker = invented, NameMaker(names, common=MONTHS)
        self._lists = {key: list(p) for key, p in collected.items() if len(p) >= FEWEST}
        self._usual = {  # how other questions ask for the same answer
            text: max((key for key in counts if key in self._lists), key=counts.__getitem__,
                      default="")
            for text, counts in usual.items()
        }  # fmt: skip

    def is_name(self, word: str) -> bool:
        """Whether the dataset mostly writes the word with a capital."""
        return is_capital(word) and self._written[word] > self._written[word.lower()]

    def cores(self, question: Question, text: str) -> Iterator[Core]:
        """What can be exchanged in the question's shortest answer."""
        answer = min(question.answers, key=len).strip(EDGE)
        if len(answer.split()) > MOST_WORDS:
            return
        named = any(  # "US$", "GB" and "AD" make no name of a number
            len(word) > 3 and word not in MONTHS and self.is_name(word)
            for word in WORD.findall(answer)
        )
        parts = [] if named else PART.findall(answer)
        if parts:
            yield from (Core(text=part, kind="number") for part in parts)
            return
        core = answer[LEADING.match(answer).end() :].strip(EDGE)  # type: ignore[union-attr]
        if core and not any(sign in core for sign in '()[]"“”;:/\0'):
            yield from self._named(core, question.text, text)

    def draw(self, core: Core, rng: random.Random) -> str | None:
        """Another of the same kind; None where no pool is large enough."""
        if core.kind == "number":
            return _like_number(core.text, rng)
        if core.kind == "name" and self._invented and rng.random() < self._invented:
            made = self._maker.like(core.text, rng)
            if made is not None:
                return made
        keys = [*core.keys, self._usual.get(core.text, ""), *core.coarse]
        pool = next((self._lists[key] for key in keys if key in self._lists), None)
        return rng.choice(pool) if pool else None

    def _named(self, core: str, question: str, text: str) -> Iterator[Core]:
        words = core.split()
        if is_capital(words[0]) and not self.is_name(words[0]) and not words[0].isupper():
            at = text.find(core)
            if at == 0 or text[max(0, at - 2) : at].strip() in (".", "!", "?", '."'):
                words[0] = words[0].lower()  # a sentence's beginning
                core = " ".join(words)
        shape = _shape(words)
        if shape != "name" and (
            len(words) > MOST_PHRASE_WORDS or "," in core or not core[0].isalpha()
            or CLAUSE.search(core) or (len(words) > 1 and words[0].endswith(("ing", "ed")))
        ):  # fmt: skip
            return
        word, fine = asked_for(question, self._heads)
        size, article = min(len(words), 3), _article(core, text)
        joined = "," in core or " and " in core or "'s " in core
        caps = size == 1 and core.isupper()
        form = f"{shape} {size} {joined} {caps} {article if article != 'the' else ''}"
        plural = core.endswith("s") and not core.endswith("ss")
        context = f"{article} {_is_attribute(core, text)} {plural}"
        keys = [f"{form} {context} {fine}", f"{form} {plural} {fine}"]
        keys += [f"{form} {fine}", f"{shape} {fine}"] if shape == "name" else []
        keys = [] if fine in VAGUE else keys
        suffix = f"{form} {context} …{core[-3:]} {word}"
        coarse: tuple[str, ...] = ()
        if shape == "name":
            keys += [f"{form} who"] if size > 1 and words[0] in self._given else []
            coarse = (suffix, f"{form} {context} {word}*", f"{form} {word}*")
        if size > 1 and fine != "who":
            keys.append(f"{shape} {plural} …{words[-1]}")
        if shape == "name":
            yield Core(text=core, kind="name", keys=tuple(keys), coarse=coarse)
        else:
            yield Core(text=core, kind="phrase", keys=(*keys, suffix))


def is_capital(word: str) -> bool:
    """Whether the word begins with a capital."""
    return word[:1].isupper()


def initials(name: str) -> str:
    """The capitals that begin a name's words; empty for a single word."""
    found = [word[0] for word in name.replace("-", " ").split() if is_capital(word)]
    return "".join(found) if len(found) > 1 else "\0"


def asked_for(question: str, heads: frozenset[str]) -> tuple[str, str]:
    """The question word and, finer, what it asks for: ("what", "what city").

    Args:
        question: Its text.
        heads: Nouns that are known to stand right after "what" or "which".
    """
    words = ASKED.findall(question.lower())
    place = next((n for n, word in enumerate(words) if word in QUESTION_WORDS), None)
    if place is None:
        return "other", "other"
    word, rest = QUESTION_WORDS[words[place]], words[place + 1 :]
    if word in ("who", "where", "when", "why", "whose") or not rest:
        return word, word
    if word == "how":
        return word, f"how {rest[0]}"
    if rest[0] in DO:
        return word, f"what … {rest[-1]}"
    rest = rest[1:] if rest[0] in BE else rest
    last = "thing"
    while rest and rest[0] in COLLAPSED:
        last = rest.pop(0)
    run: list[str] = []
    for one in rest[:6]:
        if one in STOP or (run and run[-1] in heads and one not in heads):
            break
        run.append(one)
    if not run:
        return word, f"what {last}"
    return word, f"what {run[-1]}"


def _heads(dataset: QADataset) -> frozenset[str]:
    counts: Counter[str] = Counter()
    for question in dataset.questions:
        words = ASKED.findall(question.text.lower())
        for first, second, third in zip(words, words[1:], words[2:], strict=False):
            if first in ("what", "which") and third in STOP and second not in STOP:
                counts[second] += 1
    return frozenset(word for word, count in counts.items() if count >= 3)


def _given_names(dataset: QADataset) -> frozenset[str]:
    """Words that begin the answers to "who", and others seldom."""
    counts: dict[bool, Counter[str]] = {True: Counter(), False: Counter()}
    for question in dataset.questions:
        words = question.answers[0].split()
        if 2 <= len(words) <= 3 and is_capital(words[0]):
            counts[asked_for(question.text, frozenset())[0] == "who"][words[0]] += 1
    who, other = counts[True], counts[False]
    return frozenset(word for word in who if who[word] > 1 and who[word] * 2 > other[word])


def _shape(words: list[str]) -> str:
    capital = [is_capital(word) for word in words if word not in SMALL]
    if capital and all(capital):
        return "name"
    return "mixed" if any(capital) else "lower"


def _article(core: str, text: str) -> str:
    at = text.lower().find(core.lower())
    before = text[max(0, at - 5) : max(0, at)].lower().split(" ")
    return before[-2] if len(before) > 1 and before[-2] in ("a", "an", "the") else ""


def _is_attribute(core: str, text: str) -> bool:
    """Whether a word follows that it may belong to."""
    at = text.lower().find(core.lower()) + len(core)
    after = re.match(r" ([a-z]{4,})", text[at : at + 20])
    return after is not None and after[1] not in STOP


def _like_number(old: str, rng: random.Random) -> str:
    """A number, date or number word of the same form, not the same."""
    words = old.split(" ")
    if any(word in MONTHS for word in words):
        return " ".join(
            rng.choice(MONTHS) if word in MONTHS else str(rng.randint(1, 28)) for word in words
        )
    for series in (SMALL_NUMBERS, TENS):
        if old in series:
            return rng.choice(series)
    if ":" in old:
        return f"{rng.randint(1, 12)}:{rng.randrange(0, 60, 5):02d}"
    found = NUMBER.fullmatch(old)
    assert found, old
    whole, decimals, suffix = found[1], found[2] or "", found[3] or ""
    if len(whole) == 4 and whole.isdigit() and 1000 <= int(whole) <= 2099 and not decimals:
        step = rng.randint(1, 4) * 10 if suffix == "s" else rng.randint(3, 40)
        year = int(whole) + rng.choice((-1, 1)) * step
        return f"{year if 1000 <= year <= 2025 else 2 * int(whole) - year}{suffix}"
    if suffix in ("st", "nd", "rd", "th"):
        return _ordinal(int(whole.replace(",", "")), rng)
    kept = len(whole) - len(whole.rstrip("0,"))  # round numbers stay round
    head = whole[: len(whole) - kept]
    new = _digits(head, rng, bounds=True) + whole[len(head) :]
    if new == "1":
        new = str(rng.randint(2, 9))
    last = decimals.endswith(tuple("123456789"))
    return new + _digits(decimals[:-1], rng) + _digits(decimals[-1:], rng, bounds=last) + suffix


def _digits(old: str, rng: random.Random, *, bounds: bool = False) -> str:
    """Other digits; with bounds, neither the first nor the last is zero."""
    ends = (0, len(old) - 1) if bounds else ()
    return "".join(
        str(rng.randint(int(place in ends), 9)) if sign.isdigit() else sign
        for place, sign in enumerate(old)
    )


def _ordinal(old: int, rng: random.Random) -> str:
    lowest, highest = (2, 9) if old < 10 else (10, 20) if old < 22 else (
        10 ** (len(str(old)) - 1), 10 ** len(str(old)) - 1)  # fmt: skip
    new = rng.randint(lowest, highest)
    teen = new % 100 in (11, 12, 13)
    return f"{new}{'th' if teen else {1: 'st', 2: 'nd', 3: 'rd'}.get(new % 10, 'th')}"
