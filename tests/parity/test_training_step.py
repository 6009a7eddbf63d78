"""The packed training step against the same step written the plain way.

The plain way: every document alone through transformers with PEFT's own LoRA, its memory
taken out of the ordinary cache; the adapters switched off; questions in a rectangle padded
on the right, their memories put into a `DynamicCache`, the mask written out entry by entry.
Losses agree to 1e-4 and gradients nearly so; not to the bit, because float32 sums over other
shapes are taken in another order.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize, softplus
from transformers import DynamicCache

from cmt.compressor import Compressor
from cmt.reading import reading_start
from cmt.training.data import BatchConfig, TrainingBatch, TrainingData
from cmt.training.step import ObjectiveConfig, TrainingStep
from tests import small, tiny

K = 4
Cache = list[tuple[Tensor, Tensor]]  # keys and values of each layer, (1, G, tokens, E)


@dataclass
class Plainly:
    """What the compressor makes of one text."""

    memory: Cache
    key: Tensor
    vectors: Tensor
    weights: Tensor

    def late(self, other: Plainly) -> Tensor:
        """Late interaction of this question with a document."""
        best = [max(vector @ token for token in other.vectors) for vector in self.vectors]
        return (torch.stack(best) * self.weights).sum()


@dataclass
class Plain:
    """The step, sample by sample."""

    twin: PeftModel
    compressor: Compressor

    @property
    def model(self) -> nn.Module:
        return self.twin.base_model.model

    def embed(self, tokens: list[int]) -> Tensor:
        return self.model.get_input_embeddings()(torch.tensor(tokens, dtype=torch.long))

    def encode(self, tokens: list[int], memory: bool) -> Plainly:
        """Memory, key and vectors of a text; a question has no memory."""
        n, ours = len(tokens), self.compressor
        embedded = self.embed(tokens)
        parts, places = [embedded], list(range(1, n + 1))
        if memory:
            for k in range(K):
                own = [i for i in range(n) if i * K // n == k]
                mean = embedded[own].mean(0) if own else torch.zeros(embedded.shape[1])
                parts.append((mean + ours.memory_embeddings[k])[None])
                places.append(int((k + 0.5) * n / K) + 1)
        key = ours.document_key_embedding if memory else ours.question_key_embedding
        parts.append(key[None])
        places.append(n + 1)
        output = self.model.get_decoder()(
            inputs_embeds=torch.cat(parts)[None],
            position_ids=torch.tensor([places]),
            use_cache=True,
        )
        cache = [
            (layer.keys[:, :, n : n + K], layer.values[:, :, n : n + K])
            for layer in output.past_key_values.layers
        ]
        hidden = output.last_hidden_state[0]
        compared = hidden[n : n + K] if memory else hidden[:n]
        assert ours.vector_head is not None
        return Plainly(
            memory=cache,
            key=normalize(ours.key_head(hidden[-1]), dim=0),
            vectors=normalize(ours.vector_head(compared), dim=1),
            weights=softplus(ours.term_weight(compared))[:, 0],
        )

    def sink(self) -> Cache:
        with torch.no_grad(), self.twin.disable_adapter():
            layers = self.model(torch.tensor([[0]])).past_key_values.layers
        return [(layer.keys, layer.values) for layer in layers]

    def read(
        self,
        segments: list[Tensor],
        memories: list[list[Cache]] | None,
        weights: list[Tensor],
        start: int,
    ) -> list[Tensor]:
        """Logits after each token of each segment, given as embeddings (length, W)."""
        longest, count = max(map(len, segments)), len(segments)
        rows = torch.stack([nn.functional.pad(s, (0, 0, 0, longest - len(s))) for s in segments])
        cache, before = DynamicCache(), 0
        if memories is not None:
            before = 1 + len(memories[0]) * K
            for layer, sink in enumerate(self.sink()):
                pair = [
                    torch.cat(
                        [torch.cat([sink[i], *(m[layer][i] for m in own)], 2) for own in memories]
                    )
                    for i in range(2)
                ]
                cache.update(pair[0], pair[1], layer)
        mask = torch.full((count, 1, longest, before + longest), torch.finfo(torch.float32).min)
        masks = []
        for number, segment in enumerate(segments):
            own = mask[number].clone()
            for query in range(longest):
                own[0, query, before : before + min(query + 1, len(segment))] = 0
            if before:
                own[0, :, 0] = 0
                own = torch.cat(
                    [own[..., :1], weights[number].repeat_interleave(K).expand(1, longest, -1),
                     own[..., before:]], -1)  # fmt: skip
            masks.append(own)
        with self.twin.disable_adapter():
            logits = self.model(
                inputs_embeds=rows,
                position_ids=start + torch.arange(longest).expand(count, -1),
                attention_mask=torch.stack(masks),
                past_key_values=cache,
            ).logits
        return [logits[i, : len(segment)] for i, segment in enumerate(segments)]


def plain_losses(
    plain: Plain,
    data: TrainingData,
    batch: TrainingBatch,
    objectives: ObjectiveConfig,
    asked: list[tuple[list[int], list[int]]],
    stale: Tensor,
) -> dict[str, Tensor]:
    """What the step of `batch` should report; memories read are those it chose."""
    documents = [data.documents[i] for i in batch.document_ids_D.tolist()]
    start = reading_start(data.max_piece_tokens)
    encoded = [plain.encode(document, memory=True) for document in documents]
    questions = [plain.encode(question, memory=False) for question, _ in asked]
    question_keys = torch.stack([question.key for question in questions])
    positives = batch.positives_Q.tolist()
    scale = plain.compressor.log_scale.exp()
    by_key = question_keys @ torch.stack([document.key for document in encoded]).T * scale
    late = [
        torch.stack([question.late(document) for document in encoded]) for question in questions
    ]
    scores = by_key + torch.stack(late)
    negatives = [i for i, key in enumerate(stale) if key.any() and i not in batch.document_ids_D]
    stale_scores = question_keys @ stale[negatives].T * scale
    matching = cross_entropy(torch.cat([by_key, stale_scores], 1), torch.tensor(positives))
    late_matching = cross_entropy(scores, torch.tensor(positives))

    groups = [g.memories_BM.tolist() for g in batch.reading.packing.groups if len(g.memories_BM)]
    chosen = [row for group in groups[: len(groups) - 1] for row in group]
    answers, without, labels = [], [], []
    asking, asking_labels = [], []
    for number, (question, answer) in enumerate(asked):
        row = chosen[number]
        assert row[0] == positives[number]
        own = [encoded[i].memory for i in row]
        weights = scores[number, row]
        if len(row) > 1:
            places = torch.arange(len(row)) >= batch.memories
            weights = weights.masked_fill(places, torch.finfo(torch.float32).min)
        weights = weights.log_softmax(0).clamp(min=torch.finfo(torch.float32).min)
        segment = plain.embed([*question, *answer[:-1]])
        [logits] = plain.read([segment], [own], [weights], start)
        answers.append(logits[len(question) - 1 :])
        if number < batch.single:
            asking.append(logits[data.opening - 1 : len(question) - 1])
            asking_labels += question[data.opening :]
        with torch.no_grad():
            [logits] = plain.read([segment], None, [], start)
        without.append(logits[len(question) - 1 :])
        labels += answer
    adjusted = torch.cat(answers)
    if objectives.alpha:
        adjusted = (1 + objectives.alpha) * adjusted - objectives.alpha * torch.cat(without)
    answer_loss = cross_entropy(adjusted, torch.tensor(labels))

    retold = batch.retold_R.tolist()
    segments = [
        torch.cat([plain.compressor.reconstruction_embedding[None], plain.embed(documents[i][:-1])])
        for i in retold
    ]
    own = [[encoded[i].memory] for i in retold]
    logits = plain.read(segments, own, [torch.zeros(1)] * len(retold), start)  # padded together
    reconstruction = cross_entropy(
        torch.cat(logits), torch.tensor([token for i in retold for token in documents[i]])
    )
    asking_loss = cross_entropy(torch.cat(asking), torch.tensor(asking_labels))
    loss = answer_loss + objectives.matching * (matching + late_matching)
    loss = loss + objectives.reconstruction * reconstruction + objectives.asking * asking_loss
    return {
        "loss": loss,
        "answer": answer_loss,
        "matching": matching,
        "late_matching": late_matching,
        "asking": asking_loss,
        "reconstruction": reconstruction,
        "found_in_batch": (scores.argmax(1) == torch.tensor(positives)).float().mean(),
    }


def asked_in(data: TrainingData, batch: TrainingBatch) -> list[tuple[list[int], list[int]]]:
    """Questions and answers in the batch's order, read back from the compressor's input."""
    tokens, found = batch.compressor.tokens_N, []
    group = batch.compressor.packing.groups[1]
    for index, valid in zip(group.index_BT, group.valid_BT, strict=True):
        question = tokens[index[valid]].tolist()[:-1]
        [number] = [i for i, own in enumerate(data.questions) if own == question]
        found.append((question, data.answers[number]))
    return found


@pytest.mark.parametrize("alpha", [0.0, 0.5])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_packed_step_is_the_plain_step(family: str, alpha: float) -> None:
    compressor = small.compressor(family)
    data = TrainingData(
        small.dataset(),
        compressor.base.tokenizer,
        BatchConfig(
            documents=4,
            texts=1,
            questions_per_document=2,
            retold_share=0.5,
            most_memories=3,
            asked=True,
        ),
        memory_tokens=K,
        max_piece_tokens=96,
        texts=["A plain text about rivers and sand.", "Another, on silt."],
    )
    objectives = ObjectiveConfig(matching=0.5, reconstruction=0.3, alpha=alpha, stale_keys=True)
    step = TrainingStep(compressor.base, compressor, objectives, len(data.documents))
    with torch.no_grad():
        step(data[0])  # fills stale keys
    stale = step.stale_keys_XC.clone()
    assert stale.any(dim=1).sum() == 5
    twin, theirs = small.peft_twin(compressor, family)
    plain = Plain(twin, compressor)
    numbers = {data[number].memories for number in range(1, 6)}
    assert numbers == {2, 3}, "both numbers of memories are looked at"
    for number in range(1, 4):
        step.stale_keys_XC.copy_(stale)
        batch = data[number]
        assert 0 < batch.single < len(batch.positives_Q)
        report = step(batch)
        expected = plain_losses(plain, data, batch, objectives, asked_in(data, batch), stale)
        assert set(report) == set(expected)
        for name, value in expected.items():
            torch.testing.assert_close(report[name], value, atol=1e-4, rtol=1e-4, msg=name)

        own = dict(compressor.lora.named_parameters())
        gradients = torch.autograd.grad(report["loss"], [own[name] for name in theirs])
        others = torch.autograd.grad(expected["loss"], list(theirs.values()))
        for name, ours, other in zip(theirs, gradients, others, strict=True):
            assert (ours - other).norm() <= 1e-3 * other.norm() + 1e-6, name
