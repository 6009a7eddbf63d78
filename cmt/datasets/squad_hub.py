"""SQuAD from the Hugging Face hub, by the optional `datasets` library."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from cmt.datasets.qa import QADataset
from cmt.datasets.squad import Paragraph, RawQuestion, expect, flatten, get_field
from cmt.errors import InputError, how_to_install

HUB_SPLITS = {"train": "train", "dev": "validation"}


def load_squad_from_hub(
    split: str, *, hub_id: str = "squad", name: str | None = None, strict: bool = True
) -> QADataset:
    """What `load_squad` gives from a file, from the hub.

    Args:
        split: "train" or "dev" (which the hub calls validation).
        hub_id: A dataset with the hub's SQuAD columns: id, title, context, question, answers.
        name: As in `load_squad`; squad-train or squad-dev by default.
        strict: As in `load_squad`.

    Raises:
        InputError: `datasets` isn't installed, or the hub doesn't give that dataset and split.
        DocumentError: As in `load_squad`.
    """
    if split not in HUB_SPLITS:
        raise InputError(f"expected split 'train' or 'dev', got {split!r}")
    try:
        import datasets
    except ImportError as error:
        raise InputError(
            "reading SQuAD from the hub needs the datasets library, which is not installed: "
            f"{how_to_install('train')}, or give load_squad a file"
        ) from error
    try:
        rows = datasets.load_dataset(hub_id, split=HUB_SPLITS[split])
    except (OSError, ValueError) as error:
        raise InputError(f"the hub gave no dataset {hub_id!r}, split {split!r}: {error}") from error
    return flatten(_paragraphs(rows, hub_id), name or f"squad-{split}", strict=strict)


def _paragraphs(rows: Iterable[Mapping[str, Any]], hub_id: str) -> Iterator[Paragraph]:
    """The hub has one row a question; rows of one passage, and of one article, stand together."""
    checked = (_row(row, f"{hub_id}: row {number}") for number, row in enumerate(rows))
    by_article = itertools.groupby(checked, key=lambda row: row[0])
    for article, (title, in_article) in enumerate(by_article):
        for text, in_passage in itertools.groupby(in_article, key=lambda row: row[1]):
            questions = [question for _, _, question in in_passage]
            yield Paragraph(
                where=questions[0].where,
                article=article,
                title=title,
                text=text,
                questions=questions,
            )


def _row(row: Mapping[str, Any], where: str) -> tuple[str, str, RawQuestion]:
    """Title, passage and question of one row."""
    answers = get_field(get_field(row, "answers", dict, where), "text", list, f"{where}.answers")
    question = RawQuestion(
        where=where,
        id=get_field(row, "id", str, where),
        text=get_field(row, "question", str, where),
        answers=[expect(text, str, f"{where}.answers.text[{a}]") for a, text in enumerate(answers)],
    )
    return get_field(row, "title", str, where), get_field(row, "context", str, where), question
