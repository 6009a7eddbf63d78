"""Learning documents by gradient steps on a copy of the model; what its siblings share.

Uniform fine-tuning, Salient Spans and CaMeLS differ only in how much each token of a document
counts in the loss. Each starts from a copy tuned on questions (`tuned_copy.qa_tuned`), takes one
step a document in the stream's order, and answers without looking anything up.

Shape legend: T tokens of the documents of a step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from cmt.base_model import BaseModel
from cmt.errors import InputError
from cmt.methods.answering import AnswerConfig, generated
from cmt.methods.method import Reply, Stored
from cmt.methods.tuned_copy import first_token, sequence_losses
from cmt.reading import question_tokens
from cmt.records import Document


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenisedDocument:
    """A document's text, its token ids and the characters each token stands for."""

    text: str
    tokens: tuple[int, ...]
    offsets: tuple[tuple[int, int], ...]


class TokenWeights(Protocol):
    """How much each token of the documents counts; what they sum to is the step's scale."""

    def __call__(self, documents: Sequence[TokenisedDocument]) -> Tensor:
        """Weights (T,), the documents' tokens one after another."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FineTuningConfig:
    """How the stream is learned.

    Attributes:
        learning_rate: Of Adam; chosen on the validation split by the harness.
        documents_a_step: Documents that share a gradient step.
        max_document_tokens: Documents are cut there.
    """

    learning_rate: float = 6.25e-6
    documents_a_step: int = 1
    max_document_tokens: int = 512
    clip_norm: float = 1.0

    def __post_init__(self) -> None:
        """Refuse numbers without meaning."""
        for name in ("learning_rate", "documents_a_step", "max_document_tokens", "clip_norm"):
            if not getattr(self, name) > 0:
                raise InputError(f"expected {name} above 0, got {getattr(self, name)}")


LEARNING_RATES = (1.5625e-6, 6.25e-6, 2.5e-5, 1e-4)
"""What the harness chooses from, on the validation split: CaMeLS's own four."""


class FineTuning:
    """A tuned copy of the model that takes a weighted gradient step on each document.

    Attributes:
        reader: The copy, with the weights it has now.
    """

    def __init__(
        self,
        reader: BaseModel,
        weigh: TokenWeights,
        config: FineTuningConfig,
        answers: AnswerConfig,
        *,
        more_bytes: int = 0,
    ) -> None:
        """Learn with `reader`, whose present weights are what `reset` goes back to.

        Args:
            reader: From `tuned_copy`: its weights take gradients.
            weigh: How much each token counts.
            config: How the stream is learned.
            answers: How answers are generated.
            more_bytes: What `weigh` keeps for good, in bytes.
        """
        self.reader, self._weigh, self._config, self._answers = reader, weigh, config, answers
        self._weights = [p for p in reader.model.parameters() if p.requires_grad]
        self._first = [weight.detach().clone() for weight in self._weights]
        self._more_bytes = more_bytes
        self.reset()

    def reset(self) -> None:
        """Put the first weights back."""
        with torch.no_grad():
            for weight, first in zip(self._weights, self._first, strict=True):
                weight.copy_(first)
        fused = self.reader.device.type == "cuda"
        self._optimizer = torch.optim.Adam(
            self._weights, lr=self._config.learning_rate, fused=fused
        )

    def learn(self, documents: Sequence[Document]) -> None:
        """One step for every `documents_a_step` documents, in order."""
        size = self._config.documents_a_step
        tokenised = tokenise(self.reader, documents, self._config.max_document_tokens)
        before = first_token(self.reader)
        device = self.reader.device
        for place in range(0, len(tokenised), size):
            batch = tokenised[place : place + size]
            with torch.no_grad():
                weights_T = self._weigh(batch)
            if not bool(weights_T.any()):  # nothing in them counts
                continue
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                losses_T, _ = sequence_losses(
                    self.reader, [[before]] * len(batch), [d.tokens for d in batch]
                )
            (losses_T * weights_T).sum().backward()
            nn.utils.clip_grad_norm_(self._weights, self._config.clip_norm)
            self._optimizer.step()
            self._optimizer.zero_grad(set_to_none=True)

    def answer(self, questions: Sequence[str]) -> list[Reply]:
        """Closed book, from the weights alone."""
        prompts = question_tokens(self.reader.tokenizer, questions)
        texts = generated(self.reader, prompts, self._answers)
        return [
            Reply(text=text, text_tokens=len(prompt))
            for text, prompt in zip(texts, prompts, strict=True)
        ]

    def stored(self) -> Stored:
        """Nothing a document; a whole copy of the weights."""
        copy = sum(weight.nbytes for weight in self._weights)
        return Stored(documents=0, fixed=copy + self._more_bytes)


def tokenise(
    reader: BaseModel, documents: Sequence[Document], most: int
) -> list[TokenisedDocument]:
    """Tokens and their places in the text; documents of no token are left out."""
    if not documents:
        return []
    texts = [document.text for document in documents]
    encoded = reader.tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True)
    made = [
        TokenisedDocument(text=text, tokens=tuple(tokens[:most]), offsets=tuple(offsets[:most]))
        for text, tokens, offsets in zip(
            texts, encoded["input_ids"], encoded["offset_mapping"], strict=True
        )
    ]
    return [document for document in made if document.tokens]
