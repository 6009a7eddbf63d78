"""What a question-answering dataset refuses."""

from __future__ import annotations

import pytest

from cmt.datasets.qa import QADataset, Question
from cmt.errors import InputError
from cmt.records import Document

DOCUMENTS = (Document(text="One."), Document(text="Two."))


def question(document: int = 0, answers: tuple[str, ...] = ("one",)) -> Question:
    return Question(id="q", text="Which?", answers=answers, document=document)


@pytest.mark.parametrize(
    ("articles", "asked", "message"),
    [
        ((0,), question(), "one article index a document, got 1 for 2 documents"),
        ((0, 0), question(2), "question 'q' is on document 2, but there are 2"),
        ((0, 0), question(-1), "question 'q' is on document -1, but there are 2"),
        ((0, 0), question(answers=()), "at least one gold answer to question 'q', got none"),
    ],
)
def test_mistakes(articles: tuple[int, ...], asked: Question, message: str) -> None:
    with pytest.raises(InputError, match=f"^odd: .*{message}"):
        QADataset(name="odd", documents=DOCUMENTS, articles=articles, questions=(asked,))
