"""A question-answering dataset in memory: passages, the questions on them, and parts of both."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from cmt.errors import InputError
from cmt.records import Document, Failure


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A question on one document of its dataset.

    Attributes:
        id: The dataset's own name for it.
        text: The question, without white space around it.
        answers: The gold answers, each once, in the dataset's order; at least one.
        document: Index of its document in `QADataset.documents`.
    """

    id: str
    text: str
    answers: tuple[str, ...]
    document: int


@dataclass(frozen=True, slots=True, kw_only=True)
class QADataset:
    """Documents, the article each belongs to, and questions with gold answers.

    Attributes:
        name: Short name, the beginning of the documents' ids.
        documents: The passages, in the dataset's order.
        articles: One a document: which article it is from. Passages of one article are each
            other's hard negatives, and a fair split never cuts through an article.
        questions: In the dataset's order.
        skipped: What could not be used, and why (empty unless loaded with strict=False).
    """

    name: str
    documents: tuple[Document, ...]
    articles: tuple[int, ...]
    questions: tuple[Question, ...]
    skipped: tuple[Failure, ...] = ()

    def __post_init__(self) -> None:
        if len(self.articles) != len(self.documents):
            raise InputError(
                f"{self.name}: expected one article index a document, got {len(self.articles)} "
                f"for {len(self.documents)} documents"
            )
        for question in self.questions:
            if not 0 <= question.document < len(self.documents):
                raise InputError(
                    f"{self.name}: question {question.id!r} is on document {question.document}, "
                    f"but there are {len(self.documents)}"
                )
            if not question.answers:
                raise InputError(
                    f"{self.name}: expected at least one gold answer to question "
                    f"{question.id!r}, got none"
                )

    def questions_by_document(self) -> list[list[int]]:
        """Indices into `questions`, one list a document (empty where nothing is asked)."""
        grouped: list[list[int]] = [[] for _ in self.documents]
        for index, question in enumerate(self.questions):
            grouped[question.document].append(index)
        return grouped

    def select_documents(self, documents: Iterable[int], *, name: str | None = None) -> QADataset:
        """These documents in this order, with every question on them, document by document.

        Documents keep their ids and article indices; `Question.document` is renumbered.
        """
        chosen = list(documents)
        on_document = self.questions_by_document()
        return QADataset(
            name=self.name if name is None else name,
            documents=tuple(self.documents[index] for index in chosen),
            articles=tuple(self.articles[index] for index in chosen),
            questions=tuple(
                _moved(self.questions[question], position)
                for position, index in enumerate(chosen)
                for question in on_document[index]
            ),
        )

    def select_questions(self, questions: Iterable[int], *, name: str | None = None) -> QADataset:
        """These questions in this order, with the documents they are on and no others.

        Documents stand in the order in which they are first asked about.
        """
        chosen = [self.questions[index] for index in questions]
        position = {
            document: p for p, document in enumerate(dict.fromkeys(q.document for q in chosen))
        }
        return QADataset(
            name=self.name if name is None else name,
            documents=tuple(self.documents[index] for index in position),
            articles=tuple(self.articles[index] for index in position),
            questions=tuple(_moved(question, position[question.document]) for question in chosen),
        )


def hold_out(dataset: QADataset, *, articles: int, seed: int = 0) -> tuple[QADataset, QADataset]:
    """Split whole articles off for validation: (training, validation), both in file order.

    Args:
        dataset: What is split.
        articles: How many articles, drawn at random, become the validation part.
        seed: The same seed draws the same articles.

    Raises:
        InputError: `articles` isn't at least 1 and less than the dataset's number of articles.
    """
    present = list(dict.fromkeys(dataset.articles))
    if not 1 <= articles < len(present):
        raise InputError(
            f"hold_out: expected between 1 and {len(present) - 1} articles "
            f"({dataset.name} has {len(present)}), got {articles}"
        )
    drawn = np.random.default_rng(seed).choice(present, size=articles, replace=False)
    held_out = set(drawn.tolist())
    training = [i for i, article in enumerate(dataset.articles) if article not in held_out]
    validation = [i for i, article in enumerate(dataset.articles) if article in held_out]
    return (
        dataset.select_documents(training, name=f"{dataset.name}-training"),
        dataset.select_documents(validation, name=f"{dataset.name}-validation"),
    )


def joined(datasets: Sequence[QADataset], *, name: str) -> QADataset:
    """Datasets as one, the first one's documents and questions first; articles are kept apart.

    A text that an earlier dataset has already isn't taken again: its questions are asked of the
    document there.
    """
    place: dict[str, int] = {}
    documents: list[Document] = []
    articles: list[int] = []
    questions: list[Question] = []
    for dataset in datasets:
        after, known, moved = max(articles, default=-1) + 1, dict(place), []
        for document, article in zip(dataset.documents, dataset.articles, strict=True):
            moved.append(known.get(document.text, len(documents)))
            if document.text not in known:
                place.setdefault(document.text, len(documents))
                documents.append(document)
                articles.append(after + article)
        questions += [_moved(question, moved[question.document]) for question in dataset.questions]
    return QADataset(
        name=name,
        documents=tuple(documents),
        articles=tuple(articles),
        questions=tuple(questions),
    )


def stream(dataset: QADataset, documents: int = 1665, *, seed: int | None = None) -> QADataset:
    """The peers' evaluation stream: so many documents to learn, and every question on them.

    Args:
        dataset: Where the documents come from.
        documents: How many.
        seed: None takes the first ones in file order. A number shuffles the articles first,
            as the peers' code does, and leaves the order within an article as it is. (Which
            articles their own sample held isn't known, so it can't be repeated exactly.)

    Raises:
        InputError: Fewer documents than asked for, or fewer than one asked for.
    """
    if not 1 <= documents <= len(dataset.documents):
        raise InputError(
            f"stream: expected between 1 and {len(dataset.documents)} documents "
            f"(all that {dataset.name} has), got {documents}"
        )
    order = list(range(len(dataset.documents)))
    if seed is not None:
        present = list(dict.fromkeys(dataset.articles))
        shuffled = np.random.default_rng(seed).permutation(present).tolist()
        place = {article: p for p, article in enumerate(shuffled)}
        order.sort(key=lambda index: place[dataset.articles[index]])
    return dataset.select_documents(order[:documents], name=f"{dataset.name}-stream-{documents}")


def _moved(question: Question, document: int) -> Question:
    return Question(id=question.id, text=question.text, answers=question.answers, document=document)
