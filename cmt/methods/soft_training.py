"""Training Θ, ψ and π end to end through the frozen reader: the paper's objective.

Shape legend: D documents of a step, Q its questions, M memories aggregated for a question,
K soft tokens, W hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from cmt.base_model import BaseModel
from cmt.datasets.qa import QADataset
from cmt.errors import InputError
from cmt.methods.soft_memory import READING_START, SoftMemory, pooled
from cmt.methods.soft_method import SoftConfig
from cmt.methods.tuned_copy import answer_tokens
from cmt.objectives import answer_cross_entropy, memory_aware_cross_entropy, self_matching_loss
from cmt.reading import prepare_reading, read
from cmt.tensors import move
from cmt.tokens import token_ids

Remember = Callable[[Tensor], tuple[Tensor, Tensor]]
"""What the bank makes of memories (D, K, W): the memories as they are read, and a loss."""


def as_they_are(memories_DKW: Tensor) -> tuple[Tensor, Tensor]:
    """A bank that keeps memories unchanged."""
    return memories_DKW, memories_DKW.new_zeros(())


class SoftTraining:
    """Losses of a step by its number; each step depends on nothing but seed and number."""

    def __init__(
        self,
        module: SoftMemory,
        dataset: QADataset,
        config: SoftConfig,
        *,
        seed: int = 0,
        reader: BaseModel | None = None,
        remember: Remember = as_they_are,
    ) -> None:
        """Tokenise the data.

        Args:
            module: Θ, ψ and π.
            dataset: What they are trained on.
            config: Their form and objective.
            seed: Fixes the batches.
            reader: Who reads, if not the module's own base model.
            remember: What the bank makes of memories.

        Raises:
            InputError: Fewer than two documents with questions.
        """
        self._module, self._config, self._seed = module, config, seed
        self._reader, self._remember = reader or module.base, remember
        tokenizer = module.base.tokenizer
        texts = [document.text for document in dataset.documents]
        tokens = token_ids(tokenizer, texts)
        self._documents = [own[: config.max_document_tokens] for own in tokens]
        self._questions = module.questions([q.text for q in dataset.questions])
        self._answers = answer_tokens(
            module.base, [q.answers for q in dataset.questions], config.max_answer_tokens
        )
        self._asked = dataset.questions_by_document()
        self._answerable = [i for i, own in enumerate(self._asked) if own]
        if len(self._answerable) < 2:
            raise InputError(
                f"expected at least 2 documents with questions in {dataset.name}, "
                f"got {len(self._answerable)}"
            )

    def loss_of(self, step: int) -> dict[str, Tensor]:
        """The loss to minimise and its parts."""
        config = self._config
        drawn, asked, positives = self._draw(step)
        positives_Q = torch.tensor(positives, device=self._module.base.device)
        texts = [self._documents[i] for i in drawn] + [self._questions[i] for i in asked]
        compressed_XKW = self._module.compressor.compress(texts)  # in one pass
        memories_DKW, queries_QKW = compressed_XKW.split([len(drawn), len(asked)])
        remembered_DKW, extra = self._remember(memories_DKW)
        aggregated = self._aggregated(queries_QKW, remembered_DKW, positives_Q)
        answer = self._answer_loss(aggregated, asked)
        report = {"answer": answer.detach()}
        loss = answer + extra
        similarity_QD = pooled(queries_QKW) @ pooled(remembered_DKW).T
        if config.matching:
            matching = self_matching_loss(
                pooled(queries_QKW), pooled(remembered_DKW), positives_Q, config.lambda_
            )
            report["matching"] = matching.detach()
            loss = loss + config.matching * matching
        report["found_in_batch"] = (similarity_QD.argmax(1) == positives_Q).float().mean()
        return {"loss": loss, **report}

    def _draw(self, step: int) -> tuple[list[int], list[int], list[int]]:
        """Documents, questions, and each question's document in this batch."""
        size = min(self._config.documents, len(self._answerable))
        epoch, place = divmod(step, len(self._answerable) // size)
        order = np.random.default_rng((self._seed, 1, epoch)).permutation(self._answerable)
        drawn = order[place * size : (place + 1) * size].tolist()
        rng = np.random.default_rng((self._seed, 2, step))
        asked, positives = [], []
        for number, document in enumerate(drawn):
            for question in rng.permutation(self._asked[document])[
                : self._config.questions_per_document
            ]:
                asked.append(int(question))
                positives.append(number)
        return drawn, asked, positives

    def _aggregated(self, queries_QKW: Tensor, bank_DKW: Tensor, positives_Q: Tensor) -> Tensor:
        """M* of each question: from its own and the most similar other memories, or from all."""
        if not self._config.top_k:
            return self._module.aggregator.whole_bank(queries_QKW, bank_DKW)
        with torch.no_grad():
            similarity_QD = pooled(queries_QKW) @ pooled(bank_DKW).T
            similarity_QD.scatter_(1, positives_Q[:, None], torch.inf)  # always among them
            best_QM = similarity_QD.topk(min(self._config.top_k, len(bank_DKW)), dim=1).indices
        aggregated: Tensor = self._module.aggregator(queries_QKW, bank_DKW[best_QM].flatten(1, 2))
        return aggregated

    def _answer_loss(self, aggregated_QKW: Tensor, asked: list[int]) -> Tensor:
        prepared = prepare_reading(
            [[self._questions[i] for i in asked]],
            [[self._answers[i] for i in asked]],
            [],
            READING_START,
        )
        batch = move(prepared, self._reader.device)
        own_Q1 = torch.arange(len(asked), device=self._reader.device)[:, None]
        batch.packing.groups[0].memories_BM = own_Q1
        prefix = self._module.aligner(aggregated_QKW)
        with_memory = self._reader.logits(read(self._reader, batch, prefix))
        if not self._config.alpha:
            return answer_cross_entropy(with_memory, batch.labels_T)
        with torch.no_grad():
            batch.packing.groups[0].memories_BM = None
            without = self._reader.logits(read(self._reader, batch, None))
        return memory_aware_cross_entropy(with_memory, without, batch.labels_T, self._config.alpha)
