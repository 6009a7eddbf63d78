"""Solved examples that stand before a question, so that an untuned model knows the form."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cmt.datasets.qa import QADataset
from cmt.errors import InputError

MOST_WORDS = 90  # of an example's passage
MOST_CHARACTERS = 30  # of an example's answer


def unsolved(passages: Sequence[str], question: str) -> str:
    """Passages, if any, and a question on them."""
    return "".join(f"{passage}\n" for passage in passages) + f"Question: {question}\nAnswer:"


def after_passages(
    passages: Sequence[Sequence[int]],
    line: Sequence[int],
    question: Sequence[int],
    examples: Sequence[int] = (),
) -> list[int]:
    """Token ids of examples, passages with a `line`'s end after each, and an unsolved question."""
    read = [token for passage in passages for token in (*passage, *line)]
    return [*examples, *read, *question]


def solved_examples(
    dataset: QADataset, shots: int, *, with_passage: bool = True, seed: int = 0
) -> str:
    """Short random examples of `dataset`, each with its shortest answer, a blank line after each.

    Raises:
        InputError: Fewer short examples than `shots`.
    """
    chosen: list[str] = []
    for number in np.random.default_rng(seed).permutation(len(dataset.questions)):
        if len(chosen) == shots:
            break
        question = dataset.questions[number]
        passage = dataset.documents[question.document].text
        answer = min(question.answers, key=len)
        if len(answer) <= MOST_CHARACTERS and len(passage.split()) <= MOST_WORDS:
            prompt = unsolved([passage] if with_passage else [], question.text)
            chosen.append(f"{prompt} {answer}\n\n")
    if len(chosen) < shots:
        raise InputError(
            f"expected {shots} examples with passages of at most {MOST_WORDS} words in "
            f"{dataset.name}, got {len(chosen)}"
        )
    return "".join(chosen)
