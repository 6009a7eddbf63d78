"""Uniform fine-tuning: every token of a document counts alike."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cmt.methods.fine_tuning import FineTuning, FineTuningConfig, TokenisedDocument
from cmt.methods.materials import Materials
from cmt.methods.tuned_copy import qa_tuned


class Uniform(FineTuning):
    """The loss is the mean over a step's tokens."""

    @classmethod
    def build(cls, materials: Materials, config: FineTuningConfig) -> Uniform:
        """Start from the copy tuned on questions."""
        reader = qa_tuned(materials)

        def weigh(documents: Sequence[TokenisedDocument]) -> Tensor:
            tokens = sum(len(document.tokens) for document in documents)
            return torch.full((tokens,), 1 / tokens, device=reader.device)

        return cls(reader, weigh, config, materials.answers)
