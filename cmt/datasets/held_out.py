"""Keeping what validates out of what trains: documents known by title or by a sentence."""

from __future__ import annotations

import re
from collections.abc import Iterable
from urllib.parse import unquote

from cmt.datasets.qa import QADataset
from cmt.datasets.sentences import sentence_spans
from cmt.records import Document

TELLING_WORDS = 8  # a sentence of fewer words may stand in many texts
WORD = re.compile(r"\w+")


class HeldOut:
    """What may not be trained on."""

    def __init__(self, datasets: Iterable[QADataset]) -> None:
        """Remember the titles and sentences of the datasets' documents."""
        documents = [document for dataset in datasets for document in dataset.documents]
        self._titles = {title for d in documents if (title := _title(d.title))}
        self._sentences = {sentence for d in documents for sentence in _sentences(d.text)}

    def holds(self, document: Document) -> bool:
        """Whether a document has a held-out title, or shares a sentence of 8 words or more."""
        return _title(document.title) in self._titles or not self._sentences.isdisjoint(
            _sentences(document.text)
        )

    def removed_from(self, dataset: QADataset) -> QADataset:
        """The dataset without those documents and the questions on them."""
        kept = [i for i, document in enumerate(dataset.documents) if not self.holds(document)]
        return dataset.select_documents(kept)


def _title(title: str) -> str:
    return " ".join(WORD.findall(unquote(title).replace("_", " ").casefold()))


def _sentences(text: str) -> set[str]:
    found = (WORD.findall(text[start:end].casefold()) for start, end in sentence_spans(text))
    return {" ".join(words) for words in found if len(words) >= TELLING_WORDS}
