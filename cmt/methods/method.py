"""What every method of the benchmark is: documents are learned in order, questions answered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from cmt.base_model import BaseModel
from cmt.records import Document


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """An answer, and what was read for it.

    Attributes:
        text: The answer.
        text_tokens: Tokens of text the reader read: question, template, passages, examples.
        memory_tokens: Places of memory put before them.
        documents: The documents found, by their place in the stream, best first; empty where
            the method doesn't look for documents.
    """

    text: str
    text_tokens: int
    memory_tokens: int = 0
    documents: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """Bytes a method keeps.

    Attributes:
        documents: What grows with the documents: texts, indices, memories.
        fixed: What doesn't: trained weights beside the frozen model's, tuned copies of it.
    """

    documents: int
    fixed: int


class Method(Protocol):
    """A way to answer questions on a stream of documents.

    Attributes:
        reader: The language model that answers, in its present state. A method that tunes
            weights tunes a copy; the frozen base model is never written.
    """

    reader: BaseModel

    def reset(self) -> None:
        """Forget every document."""

    def learn(self, documents: Sequence[Document]) -> None:
        """Learn the next documents of the stream, after those learned before."""

    def answer(self, questions: Sequence[str]) -> list[Reply]:
        """Answer each question from what was learned so far."""

    def stored(self) -> Stored:
        """Bytes kept now."""


@runtime_checkable
class Reads(Protocol):
    """A method with memories, that can be told which one to read."""

    def answer_from(self, questions: Sequence[str], documents: Sequence[int]) -> list[Reply]:
        """Answer each question from the memory of one document, by its place in the stream."""
