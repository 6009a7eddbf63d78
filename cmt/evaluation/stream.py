"""A method on a stream: learn the documents in order, then ask every question.

Four looks at it: the whole stream with what it cost, retention (the first documents' questions
again and again while more documents arrive), robustness (unrelated documents mixed in), and
reading (the right memory given, and a wrong one). The first two can share a pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from cmt.datasets.qa import QADataset
from cmt.errors import InputError
from cmt.evaluation.costs import Cost, metered
from cmt.evaluation.qa import Scores, score
from cmt.methods.method import Method, Reads, Reply, Stored
from cmt.metrics import recall_at
from cmt.records import Document


@dataclass(frozen=True, kw_only=True, slots=True)
class Costs:
    """What the stream cost, each the mean over a document or a question.

    Attributes:
        learn_peak_bytes: Device memory in use at most while learning, above what was in use
            before; None where it isn't measured.
        fixed_bytes: What the method keeps however many documents there are.
        text_tokens, memory_tokens: Read for a question.
    """

    learn_seconds: float
    learn_peak_bytes: int | None
    bytes_stored: float
    fixed_bytes: int
    answer_seconds: float
    text_tokens: float
    memory_tokens: float


@dataclass(kw_only=True, slots=True)
class StreamResult:
    """Scores in percent.

    Attributes:
        shortest_f1: F1 against each question's shortest answer alone, as the peers report it.
        recall: By k; empty where the method looks for no documents.
    """

    documents: int
    questions: int
    scores: Scores
    shortest_f1: float
    recall: dict[int, float]
    costs: Costs


@dataclass(kw_only=True, slots=True)
class Point:
    """One point of a curve: scores after so many documents, `unrelated` of them not asked about."""

    documents: int
    unrelated: int
    questions: int
    scores: Scores
    recall: dict[int, float]


def run_stream(
    method: Method,
    dataset: QADataset,
    *,
    window: int = 64,
    bounds: Sequence[int] = (),
    reached: Callable[[int], None] | None = None,
) -> StreamResult:
    """Learn everything, `window` documents a call, ask everything.

    Args:
        method: Reset first.
        dataset: The stream.
        window: Documents a call.
        bounds: Numbers of documents, ascending.
        reached: Called with each bound when so many are learned; in none of the costs.

    Raises:
        InputError: No documents, no questions, or a window below 1.
    """
    check(dataset, window=window)
    device = method.reader.device
    documents, questions = len(dataset.documents), len(dataset.questions)
    method.reset()
    learning, learned = Cost(), 0
    for bound in dict.fromkeys([*bounds, documents]):
        with metered(device, learning):
            learn_in_windows(method, dataset.documents[learned:bound], window)
        learned = bound
        if reached is not None and bound in bounds:
            reached(bound)
    stored = method.stored()
    with metered(device) as answering:
        replies = method.answer([question.text for question in dataset.questions])
    scores = score([reply.text for reply in replies], dataset)
    return StreamResult(
        documents=documents,
        questions=questions,
        scores=scores,
        shortest_f1=scores.shortest_f1,
        recall=_recall(replies, dataset, range(documents)),
        costs=costs_of(documents, learning, stored, replies, answering),
    )


def stream_and_retention(
    method: Method, dataset: QADataset, *, first: int = 200, step: int = 200, window: int = 64
) -> tuple[StreamResult, list[Point]]:
    """`run_stream` and `retention` in one pass over the stream.

    Raises:
        InputError: As for either.
    """
    begin, bounds = _retained(dataset, first, step)
    points: list[Point] = []

    def reached(learned: int) -> None:
        points.append(_ask(method, begin, range(first), learned, 0))

    return run_stream(method, dataset, window=window, bounds=bounds, reached=reached), points


def costs_of(
    documents: int, learning: Cost, stored: Stored, replies: Sequence[Reply], answering: Cost
) -> Costs:
    """Means over the documents learned, all that is stored being of them, and over the replies."""
    return Costs(
        learn_seconds=learning.seconds / documents,
        learn_peak_bytes=learning.peak_bytes,
        bytes_stored=stored.documents / documents,
        fixed_bytes=stored.fixed,
        answer_seconds=answering.seconds / len(replies),
        text_tokens=sum(reply.text_tokens for reply in replies) / len(replies),
        memory_tokens=sum(reply.memory_tokens for reply in replies) / len(replies),
    )


def retention(
    method: Method, dataset: QADataset, *, first: int = 200, step: int = 200
) -> list[Point]:
    """The first documents' questions, asked after `first` documents and after every `step` more.

    Raises:
        InputError: Fewer documents than `first`, no questions on them, or a number below 1.
    """
    begin, bounds = _retained(dataset, first, step)
    method.reset()
    points: list[Point] = []
    learned = 0
    for bound in bounds:
        method.learn(dataset.documents[learned:bound])
        learned = bound
        points.append(_ask(method, begin, range(first), learned, 0))
    return points


def robustness(
    method: Method,
    dataset: QADataset,
    unrelated: Sequence[Document],
    shares: Sequence[float],
    *,
    window: int = 4096,
    seed: int = 0,
) -> list[Point]:
    """Every question, asked after the stream with unrelated documents mixed into it.

    Args:
        method: Reset before each share.
        dataset: The stream.
        unrelated: Documents to mix in.
        shares: How many, as shares of the stream: 0.2 is a fifth, 20 twenty times as many.
        window: Documents a call.
        seed: Fixes which ones, and where they stand.

    Raises:
        InputError: Fewer unrelated documents than the largest share asks for, or a share below 0.
    """
    check(dataset, window=window)
    return [
        _ask_mixed(method, dataset, mixed(dataset.documents, unrelated, share, seed), window)
        for share in shares
    ]


def reading(method: Method, dataset: QADataset, *, window: int = 64) -> dict[str, Scores]:
    """Scores when each question reads its own document's memory, and when it reads another's.

    What a method answers from a memory that holds nothing of the question is what it would say
    anyway: only the difference was read. The other document is half the stream away.

    Args:
        method: Reset first.
        dataset: The stream.
        window: Documents a call.

    Raises:
        InputError: No documents, no questions, a window below 1, or a method without memories.
    """
    check(dataset, window=window)
    if not isinstance(method, Reads):
        raise InputError(
            f"expected a method that can be told which memory to read, got {type(method).__name__}"
        )
    method.reset()
    learn_in_windows(method, dataset.documents, window)
    texts = [question.text for question in dataset.questions]
    own = [question.document for question in dataset.questions]
    documents = len(dataset.documents)
    others = [(number + documents // 2) % documents for number in own]
    return {
        name: score([reply.text for reply in method.answer_from(texts, read)], dataset)
        for name, read in (("own", own), ("another", others))
    }


@dataclass(frozen=True, kw_only=True, slots=True)
class Mixture:
    """Documents in the order they are learned; `places` says where those of the stream stand."""

    documents: tuple[Document, ...]
    places: tuple[int, ...]


def mixed(
    documents: Sequence[Document], unrelated: Sequence[Document], share: float, seed: int = 0
) -> Mixture:
    """The stream in its order with `share` times as many unrelated documents between.

    Raises:
        InputError: A share below 0, or too few unrelated documents for it.
    """
    how_many = round(share * len(documents))
    if not 0 <= how_many <= len(unrelated):
        raise InputError(
            f"expected a share from 0 to {len(unrelated) / len(documents):.2f} "
            f"({len(unrelated)} unrelated documents for {len(documents)}), got {share}"
        )
    rng = np.random.default_rng((seed, how_many))
    total = len(documents) + how_many
    places = np.sort(rng.permutation(total)[: len(documents)]).tolist()
    others = iter(rng.permutation(len(unrelated))[:how_many].tolist())
    own = dict(zip(places, documents, strict=True))
    order = tuple(own[place] if place in own else unrelated[next(others)] for place in range(total))
    return Mixture(documents=order, places=tuple(places))


def sampled(dataset: QADataset, questions: int, seed: int = 0) -> QADataset:
    """All documents, but so many random questions, in their order; all if there are no more."""
    if questions >= len(dataset.questions):
        return dataset
    chosen = np.random.default_rng(seed).permutation(len(dataset.questions))[:questions]
    return replace(dataset, questions=tuple(dataset.questions[i] for i in sorted(chosen.tolist())))


def learn_in_windows(method: Method, documents: Sequence[Document], window: int) -> None:
    """Learn, `window` documents a call."""
    for place in range(0, len(documents), window):
        method.learn(documents[place : place + window])


def _retained(dataset: QADataset, first: int, step: int) -> tuple[QADataset, list[int]]:
    """What retention asks, and after how many documents."""
    if len(dataset.documents) < first:
        raise InputError(
            f"expected at least {first} documents in {dataset.name}, got {len(dataset.documents)}"
        )
    begin = dataset.select_documents(range(first))
    check(begin, first=first, step=step)
    return begin, [*range(first, len(dataset.documents), step), len(dataset.documents)]


def _ask_mixed(method: Method, dataset: QADataset, mixture: Mixture, window: int) -> Point:
    method.reset()
    learn_in_windows(method, mixture.documents, window)
    others = len(mixture.documents) - len(dataset.documents)
    return _ask(method, dataset, mixture.places, len(mixture.documents), others)


def _ask(
    method: Method, dataset: QADataset, places: Sequence[int], documents: int, unrelated: int
) -> Point:
    replies = method.answer([question.text for question in dataset.questions])
    return Point(
        documents=documents,
        unrelated=unrelated,
        questions=len(replies),
        scores=score([reply.text for reply in replies], dataset),
        recall=_recall(replies, dataset, places),
    )


def _recall(
    replies: Sequence[Reply], dataset: QADataset, places: Sequence[int]
) -> dict[int, float]:
    """R@1 and R@5 in percent; `places` says where the dataset's documents stand in the stream."""
    if not any(reply.documents for reply in replies):
        return {}
    ranks: list[int | None] = []
    for reply, question in zip(replies, dataset.questions, strict=True):
        place = places[question.document]
        found = reply.documents
        ranks.append(found.index(place) + 1 if place in found else None)
    return {k: 100 * recall_at(ranks, k) for k in (1, 5)}


def check(dataset: QADataset, **numbers: int) -> None:
    """Refuse a dataset of nothing and numbers below 1."""
    for kind, items in (("document", dataset.documents), ("question", dataset.questions)):
        if not items:
            raise InputError(f"expected at least one {kind} in {dataset.name}, got none")
    for name, number in numbers.items():
        if number < 1:
            raise InputError(f"expected {name} of at least 1, got {number}")
