"""What validates stays out of training: by title, by sentence."""

from __future__ import annotations

import pytest

from cmt.datasets import HeldOut, QADataset, Question, joined
from cmt.records import Document

SENTENCE = "The old lighthouse stands on a granite rock by the sea."


def dataset(*documents: Document, articles: tuple[int, ...] | None = None) -> QADataset:
    return QADataset(
        name="some",
        documents=documents,
        articles=articles or tuple(range(len(documents))),
        questions=tuple(
            Question(id=f"q{i}", text="What?", answers=("it",), document=i)
            for i in range(len(documents))
        ),
    )


@pytest.mark.parametrize(
    ("document", "held"),
    [
        (Document(text="Anything.", title="frédéric_chopin"), True),
        (Document(text="Anything.", title="Frédéric Chopin's pianos"), False),
        (Document(text=f"New. {SENTENCE.upper()} More."), True),
        (Document(text="It was old. It was grey."), False),
        (Document(text="Untitled."), False),
    ],
)
def test_titles_and_sentences_are_known_again(document: Document, held: bool) -> None:
    known = dataset(
        Document(text="He played. It was old.", title="Fr%C3%A9d%C3%A9ric Chopin"),
        Document(text=SENTENCE),
    )
    assert HeldOut([known]).holds(document) == held


def test_removing_keeps_the_other_documents_and_their_questions() -> None:
    corpus = dataset(Document(text=SENTENCE), Document(text="It was grey."))
    left = HeldOut([dataset(Document(text=SENTENCE))]).removed_from(corpus)
    assert [d.text for d in left.documents] == ["It was grey."]
    assert [(q.id, q.document) for q in left.questions] == [("q1", 0)]


def test_joining_takes_a_text_of_an_earlier_dataset_once() -> None:
    twice = dataset(Document(text="A."), Document(text="A."), Document(text="B."))
    other = dataset(Document(text="C."), Document(text="A."), articles=(0, 0))
    whole = joined([twice, other], name="whole")
    assert [d.text for d in whole.documents] == ["A.", "A.", "B.", "C."]
    assert whole.articles == (0, 1, 2, 3)
    assert [q.document for q in whole.questions] == [0, 1, 2, 3, 0]
