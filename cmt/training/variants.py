"""Other cuts of a training document: a window of its sentences, or two short neighbours joined.

Everything is tokenised when a run begins; making a cut is slicing lists.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cmt.datasets.qa import QADataset
from cmt.datasets.sentences import Span, sentence_spans
from cmt.metrics import shortest
from cmt.tokens import token_ids

TRIES = 4  # windows drawn until one holds an answer
FEWEST_SENTENCES = 2  # of a window: a question is seldom understood from one


@dataclass(frozen=True, slots=True)
class Cut:
    """Token ids, and the numbers of the questions that they answer."""

    tokens: list[int]
    questions: list[int]


@dataclass(frozen=True, slots=True)
class _Sentences:
    """Of one document.

    Attributes:
        spans: In characters.
        alone: Each one's tokens without what comes before, as when a text begins with it.
        ends: Tokens of the document up to each one's end.
        tokens: The whole document's, not cut to a piece.
    """

    spans: list[Span]
    alone: list[list[int]]
    ends: list[int]
    tokens: list[int]


class Variants:
    """Cuts of the documents of a dataset."""

    def __init__(self, dataset: QADataset, tokenizer: Any, limit: int) -> None:
        """Tokenise every sentence.

        Args:
            dataset: Documents and their questions.
            tokenizer: A fast one, which knows its tokens' offsets.
            limit: Tokens of a cut, at most.
        """
        self.limit = limit
        texts = [document.text for document in dataset.documents]
        self._sentences = _tokenised(texts, tokenizer)
        self._newline: list[int] = tokenizer("\n", add_special_tokens=False)["input_ids"]
        self._articles = dataset.articles
        self._questions = dataset.questions_by_document()
        self._evidence = [
            _evidence(texts[question.document], shortest(question.answers))
            for question in dataset.questions
        ]

    def draw(
        self, drawn: Sequence[int], cropped: float, joined: float, rng: np.random.Generator
    ) -> dict[int, Cut]:
        """Cuts of some documents of a batch, by place; the others stay whole.

        Args:
            drawn: The documents of the batch.
            cropped, joined: Shares of each, where the document allows it.
            rng: Draws them.
        """
        present, cuts = set(drawn), {}
        for place, (document, chance) in enumerate(
            zip(drawn, rng.random(len(drawn)).tolist(), strict=True)
        ):
            cut = None
            if chance < cropped:
                cut = self.window(document, rng)
            elif chance < cropped + joined:
                cut = self.joined(document, present)
            if cut is not None:
                cuts[place] = cut
        return cuts

    def window(self, document: int, rng: np.random.Generator) -> Cut | None:
        """Some sentences in a row, with the questions whose answers stand nowhere else; or None.

        None where the document has too few sentences or no answer came to lie in a window.
        """
        sentences = self._sentences[document]
        count = len(sentences.spans)
        if count <= FEWEST_SENTENCES:
            return None
        for _ in range(TRIES):
            length = int(rng.integers(FEWEST_SENTENCES, count))
            first = int(rng.integers(0, count - length + 1))
            before = sentences.ends[first] - len(sentences.alone[first])
            last = bisect_right(sentences.ends, before + self.limit, 0, first + length) - 1
            if last < first:
                continue
            start, end = sentences.spans[first][0], sentences.spans[last][1]
            kept = [
                number
                for number in self._questions[document]
                if start <= self._evidence[number][0] and self._evidence[number][1] <= end
            ]
            if kept:
                following = sentences.tokens[sentences.ends[first] : sentences.ends[last]]
                return Cut(sentences.alone[first] + following, kept)
        return None

    def joined(self, document: int, present: set[int]) -> Cut | None:
        """The document and a neighbour of its article that isn't `present`, which it joins then.

        None where both are too long together, or there is no such neighbour. A neighbour that
        the batch holds already would be a wrong match for its own questions.
        """
        for first in (document, document - 1):
            pair, other = (first, first + 1), 2 * first + 1 - document
            if not 0 <= other < len(self._articles) or other in present:
                continue
            if self._articles[other] != self._articles[document]:
                continue
            both = [self._sentences[each].tokens for each in pair]
            tokens = both[0] + self._newline + both[1]
            if len(tokens) <= self.limit:
                present.add(other)
                return Cut(tokens, self._questions[pair[0]] + self._questions[pair[1]])
        return None


def _tokenised(texts: list[str], tokenizer: Any) -> list[_Sentences]:
    spans = [sentence_spans(text) for text in texts]
    alone = [text[a:b] for text, own in zip(texts, spans, strict=True) for a, b in own]
    alone_ids = iter(token_ids(tokenizer, alone))
    whole = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True)
    found = []
    for own, ids, offsets in zip(spans, whole["input_ids"], whole["offset_mapping"], strict=True):
        ends_of_tokens = [end for _, end in offsets]
        ends = [bisect_right(ends_of_tokens, end) for _, end in own]
        found.append(_Sentences(own, [next(alone_ids) for _ in own], ends, ids))
    return found


def _evidence(text: str, answer: str) -> Span:
    """From the answer's first occurrence to the end of its last: which one is meant isn't kept."""
    places = _occurrences(text, answer)
    whole = [place for place in places if _is_whole(text, place, place + len(answer))]
    places = whole or places
    return (places[0], places[-1] + len(answer)) if places else (-1, -1)


def _occurrences(text: str, answer: str) -> list[int]:
    """Where it begins, each time; occurrences don't overlap."""
    places, place = [], text.find(answer)
    while place >= 0:
        places.append(place)
        place = text.find(answer, place + max(1, len(answer)))
    return places


def _is_whole(text: str, start: int, end: int) -> bool:
    """Whether no word goes on across the bounds."""
    around = text[max(0, start - 1) : start] + text[end : end + 1]
    return not any(character.isalnum() or character == "_" for character in around)
