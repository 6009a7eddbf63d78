"""What learning and answering cost, measured alone: on a part of the stream, after a warm-up."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace

from cmt.datasets.qa import QADataset
from cmt.evaluation.costs import metered
from cmt.evaluation.stream import Costs, check, costs_of, learn_in_windows, sampled
from cmt.methods.method import Method


@dataclass(frozen=True, kw_only=True, slots=True)
class MeasuredCosts:
    """Costs, and on what they were measured.

    Attributes:
        documents, questions: Metered ones.
        learned: Documents learned when the bytes were counted and the questions asked.
        load: The machine's load average over the minute before, this process included.
        cores: The machine's.
    """

    documents: int
    questions: int
    learned: int
    load: float
    cores: int
    costs: Costs


def measure_costs(
    method: Method,
    dataset: QADataset,
    *,
    learned: int = 200,
    asked: int = 1024,
    warm: int = 20,
    warm_asked: int = 32,
    window: int = 64,
) -> MeasuredCosts:
    """What learning the first documents and answering random questions cost.

    Where something is stored a document, the rest of the stream is learned before the questions
    are asked, unmetered: a question may cost more the more is stored.

    Args:
        method: Reset first.
        dataset: The stream.
        learned, asked: Documents and questions metered; all if there are no more.
        warm, warm_asked: First documents, and questions on them, that are forgotten again before
            anything is metered: on a GPU kernels are compiled and the allocator grows.
        window: Documents a call.

    Raises:
        InputError: No documents, no questions, or a number below 1.
    """
    check(dataset, learned=learned, asked=asked, warm=warm, warm_asked=warm_asked, window=window)
    device, documents = method.reader.device, dataset.documents
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    method.reset()
    learn_in_windows(method, documents[:warm], window)
    on_them = dataset.select_documents(range(min(warm, len(documents)))).questions[:warm_asked]
    if on_them:
        method.answer([question.text for question in on_them])
    method.reset()
    first, known = documents[:learned], len(documents[:learned])
    with metered(device) as learning:
        learn_in_windows(method, first, window)
    stored = method.stored()
    if stored.documents:
        learn_in_windows(method, documents[learned:], window)
        stored, known = method.stored(), len(documents)
    chosen = sampled(dataset, asked).questions
    with metered(device) as answering:
        replies = method.answer([question.text for question in chosen])
    costs = costs_of(known, learning, stored, replies, answering)
    return MeasuredCosts(
        documents=len(first),
        questions=len(chosen),
        learned=known,
        load=load,
        cores=cores,
        costs=replace(costs, learn_seconds=learning.seconds / len(first)),
    )
