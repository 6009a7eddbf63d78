"""Names that nobody has: words made letter by letter, as the names of a dataset are spelled.

A name drawn from other answers is one that a compressor may have seen a hundred times. An invented
one it has to spell.
"""

from __future__ import annotations

import random
import re
import string
from collections import Counter
from collections.abc import Iterable

SEEN = 3  # letters that the next one depends on
FEWEST_LETTERS, MOST_LETTERS = 3, 14  # of an invented word
COMMON = 12  # names that a word stands in which names its kind: "University", "River", "King"
TRIES = 20
PART = re.compile(r"[^\W\d_]+")
VOWELS = frozenset("aeiouy")
END = "\n"


class NameMaker:
    """Invents names like those it has seen."""

    def __init__(self, names: Iterable[str], common: Iterable[str] = ()) -> None:
        """Learn how their words are spelled.

        Args:
            names: Each counts once.
            common: Words that are kept as they are, besides those that stand in many names.
        """
        stands = Counter(word for name in dict.fromkeys(names) for word in set(PART.findall(name)))
        self._kept = {word for word, count in stands.items() if count >= COMMON}.union(common)
        self._known = set(stands)
        self._next: dict[str, list[str]] = {}
        for word in stands:
            if len(word) > SEEN and word[1:].islower() and word[0].isupper():
                letters = " " * SEEN + word + END
                for at in range(SEEN, len(letters)):
                    self._next.setdefault(letters[at - SEEN : at], []).append(letters[at])

    def like(self, name: str, rng: random.Random) -> str | None:
        """A name of the same form whose own words are invented; None where it has none.

        Small words ("of"), common ones ("University"), numbers and all between words stay.
        """
        made = PART.sub(lambda found: self._word(found[0], rng), name)
        return made if made != name else None

    def _word(self, old: str, rng: random.Random) -> str:
        if not old[0].isupper() or old in self._kept:
            return old
        if old.isupper():  # an initial, an abbreviation
            return "".join(rng.choice(string.ascii_uppercase) for _ in old)
        for _ in range(TRIES if self._next else 0):
            new = self._spelled(rng)
            if (
                FEWEST_LETTERS <= len(new) <= MOST_LETTERS
                and abs(len(new) - len(old)) <= 3
                and not VOWELS.isdisjoint(new.lower())
                and new not in self._known
            ):
                return new
        return old

    def _spelled(self, rng: random.Random) -> str:
        letters = " " * SEEN
        while not letters.endswith(END) and len(letters) < SEEN + MOST_LETTERS + 2:
            letters += rng.choice(self._next[letters[-SEEN:]])
        return letters[SEEN:].rstrip(END)
