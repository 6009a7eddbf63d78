"""One training step: compress, match, aggregate, read, and the losses of all four.

Shape legend: D documents, Q questions, B questions reading several memories, M memories
they read, R documents retold, P questions compared, C key size, X documents of the corpus.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cmt.base_model import BaseModel
from cmt.compressor import Compressor, Encoded
from cmt.head_loss import head_token_losses
from cmt.late_interaction import late_scores
from cmt.objectives import (
    contrastive_matching_loss,
    matching_cross_entropy,
    pairwise_reranking_loss,
)
from cmt.reading import read
from cmt.training.data import TrainingBatch


@dataclass(kw_only=True, slots=True)
class ObjectiveConfig:
    """How the losses are weighed; the answer's cross-entropy has weight 1.

    Attributes:
        matching: Weight of the contrastive matching loss of keys; late interaction, where the
            compressor has it, adds a loss of its own with the same weight.
        reconstruction: Weight of retelling documents from their memory.
        asking: Weight of predicting questions from their document's memory, where the batches
            have them as targets (`BatchConfig.asked`).
        reranking: Weight of telling a question's own memory from another by the question's
            likelihood, where the batches compare them (`BatchConfig.compared_share`).
        likelihood_scale: What a log-likelihood counts in that loss, as in re-ranking.
        alpha: α of the memory-aware objective; 0 is plain cross-entropy.
        stale_keys: Keep the last key of every document as a further negative. Measured to
            harm at high learning rates (docs/LOG.md).
        distractor_noise: Standard deviation of the noise on scores by which the other
            memories of a question are picked, to read or to compare, in units of the scaled score.
    """

    matching: float = 0.5
    reconstruction: float = 0.3
    asking: float = 0.2
    reranking: float = 0.2
    likelihood_scale: float = 0.2
    alpha: float = 0.0
    stale_keys: bool = False
    distractor_noise: float = 2.0


class TrainingStep(nn.Module):
    """The whole step as one module, so that Accelerate can wrap it for several processes.

    Attributes:
        stale_keys_XC: Where `ObjectiveConfig.stale_keys` keeps them, each process its own (a saved
            state holds the first one's); else None.
    """

    stale_keys_XC: Tensor | None

    def __init__(
        self,
        base: BaseModel,
        compressor: Compressor,
        config: ObjectiveConfig,
        corpus: int,
        *,
        compiled: bool = False,
    ) -> None:
        """Make a step over `compressor`; `corpus` is the number of documents in all.

        `compiled` compiles the losses behind the output head (CUDA).
        """
        super().__init__()
        self._compiled = compiled
        self._base = (base,)
        self.compressor = compressor
        self.config = config
        keys = None
        if config.stale_keys:
            keys = torch.zeros(corpus, compressor.config.key_size, device=base.device)
        self.register_buffer("stale_keys_XC", keys)
        self.register_load_state_dict_pre_hook(_without_unused_keys)  # type: ignore[no-untyped-call]

    def forward(self, batch: TrainingBatch) -> dict[str, Tensor]:
        """Losses and measurements of a batch, each a scalar; ``"loss"`` is to be minimised."""
        base, config = self._base[0], self.config
        encoded = self.compressor(batch.compressor)
        scores_QD = encoded.question_keys_QC @ encoded.document_keys_DC.T * self.compressor.scale()
        matching = self._matching(encoded, batch)
        report = {}
        if encoded.question_vectors is not None and encoded.document_vectors_DKV is not None:
            scores_QD = scores_QD + late_scores(
                encoded.question_vectors, encoded.document_vectors_DKV, len(scores_QD)
            )
            report["late_matching"] = matching_cross_entropy(scores_QD, batch.positives_Q)
        self._aggregate(batch, scores_QD)
        reading = batch.reading
        hidden = read(base, reading, encoded.memories, self.compressor.reconstruction_embedding)
        parts = [reading.answers, reading.retold, reading.asked + len(reading.compared_T)]
        answers, retold, asked = hidden.split(parts)
        labels, retold_labels, asked_labels = reading.labels_T.split(parts)
        without = None
        if config.alpha > 0:
            with torch.no_grad():
                plain = read(base, reading, None, self.compressor.reconstruction_embedding)
            without = plain[: reading.answers]
        answer = head_token_losses(
            base, answers, labels, without, config.alpha, compiled=self._compiled
        ).mean()
        report |= {"answer": answer, "matching": matching}
        if len(retold):
            report["reconstruction"] = head_token_losses(
                base, retold, retold_labels, compiled=self._compiled
            ).mean()
        if len(asked):
            losses_T = head_token_losses(base, asked, asked_labels, compiled=self._compiled)
            report["asking"] = losses_T[: reading.asked].mean()
            if batch.compared:
                report["reranking"] = _compared(losses_T, batch, config.likelihood_scale)
        loss = answer
        for name, weight in (
            ("matching", config.matching),
            ("late_matching", config.matching),
            ("reconstruction", config.reconstruction),
            ("asking", config.asking),
            ("reranking", config.reranking),
        ):
            if name in report:
                loss = loss + weight * report[name]
        report["found_in_batch"] = (scores_QD.argmax(1) == batch.positives_Q).float().mean()
        return {"loss": loss, **{name: value.detach() for name, value in report.items()}}

    def _matching(self, encoded: Encoded, batch: TrainingBatch) -> Tensor:
        stale, allowed = None, None
        if self.stale_keys_XC is not None:
            stale = self.stale_keys_XC.clone()
            allowed = stale.any(dim=1)
            allowed[batch.document_ids_D] = False
            self.stale_keys_XC[batch.document_ids_D] = encoded.document_keys_DC.detach().float()
        return contrastive_matching_loss(
            encoded.question_keys_QC,
            encoded.document_keys_DC,
            batch.positives_Q,
            self.compressor.scale(),
            stale,
            allowed,
        )

    def _aggregate(self, batch: TrainingBatch, scores_QD: Tensor) -> None:
        """Say which memories each group reads, and with what weights (see `aggregation.py`)."""
        groups = list(batch.reading.packing.groups)
        if batch.single:
            groups.pop(0).memories_BM = batch.positives_Q[: batch.single, None]
        if batch.single < len(batch.positives_Q):
            place = slice(batch.single, None)
            scores_BD = scores_QD[place]
            others = self._others(batch.positives_Q[place], scores_BD, batch.most_memories - 1)
            chosen_BM = torch.cat([batch.positives_Q[place, None], others], dim=1)
            # always the same number of places, so that one compiled graph serves all steps
            places_M = torch.arange(batch.most_memories, device=chosen_BM.device)
            chosen_scores = scores_BD.gather(1, chosen_BM)
            chosen_scores = chosen_scores.masked_fill(places_M >= batch.memories, -torch.inf)
            group = groups.pop(0)
            group.memories_BM = chosen_BM
            group.weights_BM = chosen_scores.log_softmax(1)
        if batch.compared:
            place = slice(batch.compared)
            groups.pop(0).memories_BM = self._others(batch.positives_Q[place], scores_QD[place], 1)
        if len(batch.retold_R):
            groups.pop(0).memories_BM = batch.retold_R[:, None]
        assert not groups, "every group of the reading pass reads some memory"

    def _others(self, own_B: Tensor, scores_BD: Tensor, count: int) -> Tensor:
        """Documents that match each question well and aren't its own, (B, count)."""
        noise_BD = torch.randn_like(scores_BD) * self.config.distractor_noise
        others_BD = (scores_BD.detach() + noise_BD).scatter(1, own_B[:, None], -torch.inf)
        return others_BD.topk(count, dim=1).indices


def _without_unused_keys(
    module: TrainingStep, state: dict[str, Tensor], prefix: str, *_: object
) -> None:
    """States saved when runs without stale keys held them too, all 0, still load."""
    if module.stale_keys_XC is None:
        state.pop(f"{prefix}stale_keys_XC", None)


def _compared(losses_T: Tensor, batch: TrainingBatch, scale: float) -> Tensor:
    """The loss of compared questions; `losses_T` are of the questions asked, then of those."""
    owners_T = batch.reading.compared_T
    after_other_T = losses_T[batch.reading.asked :]
    own_P, other_P = (
        -losses_T.new_zeros(batch.compared).index_add(0, owners_T, some_T)
        for some_T in (losses_T[: len(owners_T)], after_other_T)
    )
    return pairwise_reranking_loss(own_P, other_P, scale)
