"""RealTimeQA (Kasai et al. 2023): dated news questions with the passage that holds the answer.

The dated stream that can be had where StreamingQA can't: a stand-in, never StreamingQA itself.
The quiz states no licence, so its texts are for evaluation only.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from cmt.datasets.jsonl import load_jsonl
from cmt.datasets.qa import QADataset
from cmt.errors import InputError


def load_realtimeqa(path: str | Path, *, strict: bool = False) -> QADataset:
    """Read RealTimeQA's questions with evidence, in the order of their dates.

    Args:
        path: A .jsonl or .jsonl.gz file with ``question``, ``answers``, ``evidence``, ``date``.
        strict: Raise where an answer is nowhere in its evidence. False, unlike the other
            datasets: the quiz's answers are not always the evidence's own words, and such
            questions are left out and named in `QADataset.skipped`.

    Raises:
        InputError: The file is missing or unreadable, a field is missing, or a passage has no
            date.
        DocumentError: With strict, what can't be used.
    """
    dataset = load_jsonl(path, name="realtimeqa", passage="evidence", strict=strict)
    for document in dataset.documents:
        if document.date is None:
            raise InputError(f"{path}: expected a date with every passage, got none for "
                             f"{document.text[:40]!r}")  # fmt: skip
    order = sorted(range(len(dataset.documents)), key=lambda i: str(dataset.documents[i].date))
    in_order = dataset.select_documents(order)
    return replace(in_order, skipped=dataset.skipped)
