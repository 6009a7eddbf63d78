"""An answer that arrives in pieces of text while the frozen model generates it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from cmt.errors import InputError
from cmt.records import Answer, Match

_INCOMPLETE = "\ufffd"  # what a token that ends inside a character decodes to


class AnswerStream(Iterator[str]):
    """Iterate over it for the text; joined, the pieces are `answer.text`.

    Attributes:
        matches: The memories that are read, best first; known before the first piece.
    """

    def __init__(
        self,
        tokens: Iterator[int],
        decode: Callable[[Sequence[int]], str],
        finish: Callable[[Sequence[int]], Answer],
        matches: tuple[Match, ...] = (),
    ) -> None:
        self.matches = matches
        self._tokens = tokens
        self._decode = decode
        self._finish = finish
        self._generated: list[int] = []
        self._shown = ""
        self._answer: Answer | None = None

    def __next__(self) -> str:
        """The next piece of text; never an empty one."""
        while self._answer is None:
            token = next(self._tokens, None)
            if token is None:
                self._answer = self._finish(self._generated)
                text = self._answer.text
            else:
                self._generated.append(token)
                text = settled(self._decode(self._generated))
            piece = text[len(self._shown) :]
            if piece:
                self._shown = text
                return piece
        raise StopIteration

    @property
    def answer(self) -> Answer:
        """The whole answer, once the iteration has ended.

        Raises:
            InputError: It has not.
        """
        if self._answer is None:
            raise InputError("expected the stream to be read to its end before its answer is asked")
        return self._answer


def settled(text: str) -> str:
    """The part that no further token can change: an answer ends without white space."""
    while text != (shorter := text.rstrip().rstrip(_INCOMPLETE)):
        text = shorter
    return text
