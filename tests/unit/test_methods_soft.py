"""Θ, ψ and π: aggregation over whole banks, alignment, quantisation, the objective's parts."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from cmt.errors import InputError
from cmt.methods.mbc import Codebook, MbcConfig
from cmt.methods.soft_memory import Aggregator, Aligner, pooled
from cmt.methods.soft_method import SoftConfig, SoftMethod
from cmt.methods.soft_training import SoftTraining
from tests import small, tiny
from tests.unit.method_pieces import SOFT

CONFIG = SoftConfig(**SOFT)


@pytest.fixture
def aggregator() -> Aggregator:
    torch.manual_seed(0)
    made = Aggregator(width=16, heads=4, blocks=2)
    for parameter in made.parameters():  # output layers begin small
        nn.init.normal_(parameter, std=0.3)
    return made.double().eval()


def bank(memories: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(memories, 3, 16, generator=generator, dtype=torch.float64)


def test_a_group_as_large_as_the_bank_is_the_whole_bank_at_once(aggregator: Aggregator) -> None:
    questions = bank(5, seed=1)
    whole = aggregator.whole_bank(questions, bank(7))
    assert whole.shape == questions.shape
    torch.testing.assert_close(aggregator.whole_bank(questions, bank(7), group=7), whole)
    torch.testing.assert_close(aggregator.whole_bank(questions, bank(7), group=99), whole)


def test_groups_are_aggregated_level_by_level(aggregator: Aggregator) -> None:
    questions, memories = bank(2, seed=1), bank(7)
    parts = [memories[0:3], memories[3:6], memories[6:7]]
    level = torch.stack([aggregator.whole_bank(questions, part) for part in parts], dim=1)
    expected = torch.stack(
        [aggregator.whole_bank(questions[i : i + 1], level[i])[0] for i in range(len(questions))]
    )
    torch.testing.assert_close(aggregator.whole_bank(questions, memories, group=3), expected)


@pytest.mark.parametrize("group", [0, 2, 3, 16])
@pytest.mark.parametrize("memories", [1, 2, 9, 17, 33])
def test_every_memory_takes_part(aggregator: Aggregator, group: int, memories: int) -> None:
    stored = bank(memories).requires_grad_()
    aggregator.whole_bank(bank(1, seed=1), stored, group=group).pow(2).sum().backward()
    assert stored.grad is not None
    assert bool((stored.grad.abs().flatten(1).sum(1) > 0).all())


def test_questions_of_a_batch_are_aggregated_alone(aggregator: Aggregator) -> None:
    questions, memories = bank(4, seed=1), bank(9)
    for group in (0, 4):
        together = aggregator.whole_bank(questions, memories, group=group)
        alone = aggregator.whole_bank(questions[2:3], memories, group=group)
        torch.testing.assert_close(together[2:3], alone)


def test_banks_and_groups_that_cant_be_aggregated(aggregator: Aggregator) -> None:
    with pytest.raises(InputError, match="expected at least one memory to aggregate, got none"):
        aggregator.whole_bank(bank(1), bank(0))
    with pytest.raises(InputError, match="expected a group of 0 or at least 2 memories, got 1"):
        aggregator.whole_bank(bank(1), bank(3), group=1)
    with pytest.raises(InputError, match="heads that divides the width 16, got 5"):
        Aggregator(16, 5, 1)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_an_untrained_prefix_has_the_scale_of_the_models_own(family: str) -> None:
    base = tiny.base_model(family)
    torch.manual_seed(0)
    aligner = Aligner(base)
    layers = aligner(torch.randn(64, 4, base.dimensions.hidden_size))
    sizes = base.dimensions
    assert len(layers) == sizes.layers
    for number, pair in enumerate(layers):
        for part, made in enumerate(pair):
            assert made.shape == (64, 4, sizes.kv_heads, sizes.head_size)
            mean = aligner.mean_LAND[number, part]
            spread = aligner.spread_LAND[number, part]
            assert bool(((made.mean((0, 1)) - mean).abs() < 2 * spread).all())


def test_training_has_the_papers_parts() -> None:
    base = tiny.base_model()
    torch.manual_seed(0)
    module = CONFIG.module(base)
    full = SoftTraining(module, small.dataset(8), CONFIG).loss_of(0)
    assert set(full) == {"loss", "answer", "matching", "found_in_batch"}
    expected = full["answer"] + CONFIG.matching * full["matching"]
    torch.testing.assert_close(full["loss"].detach(), expected)
    plain = replace(CONFIG, alpha=0.0, matching=0.0)
    without = SoftTraining(module, small.dataset(8), plain).loss_of(0)
    assert set(without) == {"loss", "answer", "found_in_batch"}
    assert without["answer"] != full["answer"]


def test_gradients_reach_every_part_and_no_weight_of_the_reader() -> None:
    base = tiny.base_model()
    torch.manual_seed(0)
    module = CONFIG.module(base)
    with torch.no_grad():  # PEFT begins with B = 0
        for parameter in module.compressor.lora.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    SoftTraining(module, small.dataset(8), CONFIG).loss_of(0)["loss"].backward()
    idle = ("key_head", "log_scale", "key_embedding", "reconstruction_embedding")
    for name, parameter in module.named_parameters():
        used = parameter.grad is not None and bool(parameter.grad.any())
        assert used != any(part in name for part in idle), name
    assert all(tensor.grad is None for _, tensor in base.own_parameters())


def test_training_lowers_the_loss() -> None:
    torch.manual_seed(0)
    config = replace(CONFIG, documents=8, alpha=0.0)
    module = config.module(tiny.base_model())
    training = SoftTraining(module, small.dataset(8), config)
    parameters = [p for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(parameters, lr=3e-3)
    losses = []
    for step in range(20):
        loss = training.loss_of(step)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])


def test_an_answer_does_not_depend_on_the_batch_it_is_in() -> None:
    from cmt.methods.answering import AnswerConfig

    torch.manual_seed(0)
    dataset = small.dataset(8)
    asked = [question.text for question in dataset.questions]
    module = CONFIG.module(tiny.base_model()).eval()
    texts = []
    for size in (1, 16):
        method = SoftMethod(module, CONFIG, AnswerConfig(max_new_tokens=4, batch_size=size))
        method.learn(dataset.documents)
        texts.append([reply.text for reply in method.answer(asked)])
    assert texts[0] == texts[1]


def test_a_hierarchy_bounds_the_questions_aggregated_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from cmt.methods import soft_method
    from cmt.methods.answering import AnswerConfig

    torch.manual_seed(0)
    dataset = small.dataset(8)
    asked = [question.text for question in dataset.questions][:6]
    config = replace(CONFIG, top_k=0, group=2)  # four groups of two memories, four tokens each
    method = SoftMethod(
        config.module(tiny.base_model()).eval(), config, AnswerConfig(max_new_tokens=4)
    )
    method.learn(dataset.documents)
    expected = [reply.text for reply in method.answer(asked)]
    sizes: list[int] = []
    prefix = SoftMethod._prefix

    def noted(self: SoftMethod, queries: torch.Tensor, *more: torch.Tensor | None) -> object:
        sizes.append(len(queries))
        return prefix(self, queries, *more)  # type: ignore[arg-type]

    monkeypatch.setattr(SoftMethod, "_prefix", noted)
    monkeypatch.setattr(soft_method, "MOST_STATES", 4 * 4 * 2)
    assert [reply.text for reply in method.answer(asked)] == expected
    assert sizes == [2, 2, 2]


def test_pooled_memories_are_unit_vectors() -> None:
    made = pooled(torch.randn(5, 4, 16))
    torch.testing.assert_close(made.norm(dim=1), torch.ones(5))


def test_codes_follow_memories_and_replace_them() -> None:
    torch.manual_seed(0)
    book = Codebook(codes=16, width=16, commitment=0.25)
    directions = torch.randn(4, 16)
    memories = (
        directions[torch.randint(4, (8, 6))] + 0.01 * torch.randn(8, 6, 16)
    ).requires_grad_()
    book.train()
    for _ in range(200):
        replaced, loss = book(memories)
    book.eval()
    assert loss < 0.01  # each direction has a code of its own
    codes = book.codes_CW.clone()
    replaced, _ = book(memories)
    assert torch.equal(book.codes_CW, codes)
    torch.testing.assert_close(replaced.detach(), book.codes_CW[book.nearest(memories)])
    replaced.sum().backward()
    assert memories.grad is not None  # straight through


def test_settings_without_meaning() -> None:
    with pytest.raises(InputError, match="expected documents of at least 2, got 1"):
        SoftConfig(documents=1)
    with pytest.raises(InputError, match="expected top_k of at least 0, got -1"):
        SoftConfig(top_k=-1)
    with pytest.raises(InputError, match="expected codes from 1 to 32768, got 0"):
        MbcConfig(codes=0)
    with pytest.raises(InputError, match="expected at least 2 documents with questions"):
        SoftTraining(CONFIG.module(tiny.base_model()), small.dataset(1, 1), CONFIG)
