"""CaMeLS (Hu et al. 2023): how much each token counts is meta-learned.

A weight model reads the document; its weights are good if, after one gradient step on the
weighted loss, the reader answers questions about the document better and everything else as
before. Here the weight model is the base model with LoRA and a head, where the original has
DistilGPT2; settings are the original's where it states them, but that a step takes all its
documents at once.

One inner step θ' = θ − η Σᵢ wᵢ ∇lᵢ(θ) has the exact meta-gradient ∂L(θ')/∂wᵢ = −η ⟨∇L(θ'), ∇lᵢ(θ)⟩,
the derivative of token i's loss along v = ∇L(θ'). It is taken by central differences: two
forward passes at θ ± εv, no second-order graph. An episode takes several steps in a row before
θ goes back, so that the weight model sees drifted readers too; gradients don't flow from step
to step.

Shape legend: T tokens of the documents of a step, W hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from cmt.attention import PackedPass, pack
from cmt.base_model import BaseModel
from cmt.errors import InputError
from cmt.lora import Lora
from cmt.methods.fine_tuning import FineTuning, FineTuningConfig, TokenisedDocument, tokenise
from cmt.methods.fitting import fit
from cmt.methods.materials import Materials
from cmt.methods.tuned_copy import (
    answer_tokens,
    first_token,
    qa_tuned,
    sequence_logits,
    sequence_losses,
)
from cmt.reading import question_tokens

_FIRST_BIAS = 0.5413  # softplus of it is 1: weights begin uniform
_DIFFERENCE = 1e-2  # length of the step along v, in the norm of all weights


@dataclass(frozen=True, kw_only=True, slots=True)
class CamelsConfig(FineTuningConfig):
    """As for fine-tuning, and how the weight model is trained.

    Attributes:
        inner_learning_rate: η, of the plain gradient step in meta-training.
        episode: Inner steps before the reader goes back to its first weights.
        batch_documents: Documents of an inner step.
        locality: Weight of the divergence of the reader's predictions on other documents from
            those before the step.
        norm: Weight of the weights' root mean square distance from 1.
        meta_learning_rate: Of the weight model's Adam.
    """

    inner_learning_rate: float = 5e-3
    episode: int = 4
    batch_documents: int = 6
    locality: float = 0.1
    norm: float = 0.1
    meta_learning_rate: float = 1e-4
    lora_rank: int = 16
    lora_alpha: int = 32
    max_answer_tokens: int = 24


class TokenWeigher(nn.Module):
    """The weight model: the base model with LoRA and a head of one number a token."""

    def __init__(self, base: BaseModel, rank: int, alpha: int) -> None:
        """Lay it over `base`; it weighs all tokens alike until it is trained."""
        super().__init__()
        self._base = (base,)
        self.lora = Lora(base.model, rank, alpha).float()
        self.head = nn.Linear(base.dimensions.hidden_size, 1, device=base.device)
        nn.init.zeros_(self.head.weight)
        nn.init.constant_(self.head.bias, _FIRST_BIAS)

    def forward(self, documents: Sequence[TokenisedDocument]) -> Tensor:
        """Weights (T,) above 0, divided by the number of tokens."""
        base = self._base[0]
        lengths = [len(document.tokens) for document in documents]
        tokens_T = torch.tensor([t for d in documents for t in d.tokens], device=base.device)
        places_T = torch.cat([torch.arange(n, device=base.device) for n in lengths])
        run = PackedPass(packing=pack([lengths], base.device))
        with self.lora.on():
            hidden_TW = base.run_packed(base.embed(tokens_T), places_T, run)
        weights_T = functional.softplus(self.head(hidden_TW.float()).float()[:, 0])
        return weights_T / len(tokens_T)


class Camels(FineTuning):
    """Fine-tuning with the trained weight model."""

    @classmethod
    def build(cls, materials: Materials, config: CamelsConfig) -> Camels:
        """Train the weight model (or load it), then start from the copy tuned on questions."""
        reader = qa_tuned(materials)
        weigher = TokenWeigher(materials.base, config.lora_rank, config.lora_alpha)
        training = MetaTraining(materials, reader, weigher, config)
        run = materials.fit_config(
            learning_rate=config.meta_learning_rate,
            weight_decay=0.0,
            documents=config.batch_documents,
        )
        folder = materials.state_folder("camels", _trained_part(config))
        fit(weigher, training.loss_of, run, folder, reader.device)
        training.put_back()
        weigher.requires_grad_(False)
        size = sum(p.nbytes for p in weigher.parameters())
        return cls(reader, weigher, config, materials.answers, more_bytes=size)


class MetaTraining:
    """Losses for the weight model, a step at a time."""

    def __init__(
        self, materials: Materials, reader: BaseModel, weigher: TokenWeigher, config: CamelsConfig
    ) -> None:
        """Tokenise the documents that have questions.

        Raises:
            InputError: Fewer of them than two batches.
        """
        self._reader, self._weigher, self._config = reader, weigher, config
        data = materials.training
        self._weights = list(reader.model.parameters())
        self._first = [weight.detach().clone() for weight in self._weights]
        documents = tokenise(reader, data.documents, config.max_document_tokens)
        assert len(documents) == len(data.documents), "a dataset's passages are not empty"
        self._documents = documents
        self._asked = data.questions_by_document()
        self._with_questions = [i for i, own in enumerate(self._asked) if own]
        if len(self._with_questions) < 2 * config.batch_documents:
            raise InputError(
                f"expected at least {2 * config.batch_documents} documents with questions in "
                f"{data.name}, got {len(self._with_questions)}"
            )
        self._questions = question_tokens(reader.tokenizer, [q.text for q in data.questions])
        self._answers = answer_tokens(
            reader, [q.answers for q in data.questions], config.max_answer_tokens
        )
        self._seed = materials.seed

    def loss_of(self, step: int) -> dict[str, Tensor]:
        """A scalar whose gradient by the weight model is the meta-gradient, and measurements."""
        config, rng = self._config, np.random.default_rng((self._seed, step))
        if step % config.episode == 0:
            self.put_back()
        drawn = rng.permutation(self._with_questions)[: 2 * config.batch_documents]
        own, others = drawn[: config.batch_documents], drawn[config.batch_documents :]
        documents = [self._documents[i] for i in own]
        asked = [int(rng.choice(self._asked[i])) for i in own]
        weights_T = self._weigher(documents)
        with torch.autocast(self._reader.device.type, enabled=False):
            elsewhere = [self._documents[i] for i in others]
            with torch.no_grad():
                before_TV = self._predictions(elsewhere)
            self._step(documents, weights_T.detach())
            answer = self._answer_loss(asked)
            drift = functional.kl_div(
                self._predictions(elsewhere), before_TV, log_target=True, reduction="batchmean"
            )
            direction = torch.autograd.grad(answer + config.locality * drift, self._weights)
            slopes_T = self._slopes(documents, direction)
        meta = -config.inner_learning_rate * (weights_T * slopes_T).sum()
        far = ((weights_T * len(weights_T) - 1).pow(2).mean() + 1e-8).sqrt()
        return {
            "loss": meta + config.norm * far,
            "answer": answer.detach(),
            "drift": drift.detach(),
            "far_from_uniform": far.detach(),
        }

    def put_back(self) -> None:
        """Give the reader its first weights again."""
        with torch.no_grad():
            for weight, first in zip(self._weights, self._first, strict=True):
                weight.copy_(first)

    def _losses(self, documents: Sequence[TokenisedDocument]) -> Tensor:
        before = first_token(self._reader)
        prompts = [[before]] * len(documents)
        return sequence_losses(self._reader, prompts, [d.tokens for d in documents])[0]

    def _predictions(self, documents: Sequence[TokenisedDocument]) -> Tensor:
        prompts = [[first_token(self._reader)]] * len(documents)
        logits_TV, _ = sequence_logits(self._reader, prompts, [d.tokens for d in documents])
        return logits_TV.float().log_softmax(-1)

    def _answer_loss(self, asked: Sequence[int]) -> Tensor:
        questions = [self._questions[i] for i in asked]
        return sequence_losses(self._reader, questions, [self._answers[i] for i in asked])[0].mean()

    def _step(self, documents: Sequence[TokenisedDocument], weights_T: Tensor) -> None:
        """The inner step θ' = θ − η Σᵢ wᵢ ∇lᵢ(θ); θ is kept for the slopes."""
        loss = (self._losses(documents) * weights_T).sum()
        gradients = torch.autograd.grad(loss, self._weights)
        self._before = [weight.detach().clone() for weight in self._weights]
        self._shift(gradients, -self._config.inner_learning_rate)

    @torch.no_grad()
    def _slopes(self, documents: Sequence[TokenisedDocument], v: Sequence[Tensor]) -> Tensor:
        """⟨∇lᵢ(θ), v⟩ of every token, at the weights before the step; leaves those after it."""
        after = [weight.detach().clone() for weight in self._weights]
        length = torch.stack([part.norm() for part in v]).norm().clamp(min=1e-12)
        epsilon = _DIFFERENCE / float(length)
        losses = []
        for sign in (1, -1):
            for weight, before in zip(self._weights, self._before, strict=True):
                weight.copy_(before)
            self._shift(v, sign * epsilon)
            losses.append(self._losses(documents))
        for weight, own in zip(self._weights, after, strict=True):
            weight.copy_(own)
        return (losses[0] - losses[1]) / (2 * epsilon)

    @torch.no_grad()
    def _shift(self, direction: Sequence[Tensor], by: float) -> None:
        for weight, part in zip(self._weights, direction, strict=True):
            weight.add_(part, alpha=by)


def _trained_part(config: CamelsConfig) -> CamelsConfig:
    """What the weight model depends on: not how the stream is learned later."""
    return replace(config, learning_rate=1.0, documents_a_step=1, clip_norm=1.0)
