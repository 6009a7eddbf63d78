"""The loss through the frozen head against the plain functions of `objectives`."""

from __future__ import annotations

import shutil
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from cmt import head_loss
from cmt.base_model import BaseModel
from cmt.head_loss import head_token_losses
from cmt.objectives import (
    answer_cross_entropy,
    memory_aware_cross_entropy,
    memory_aware_logits,
)
from cmt.training import step as step_module
from cmt.training.data import BatchConfig, TrainingData
from cmt.training.step import ObjectiveConfig, TrainingStep
from tests import small, tiny

HIDDEN = 32


def base_with(bias: bool = False, family: str = "llama") -> BaseModel:
    base = tiny.base_model(family)
    if bias:
        torch.manual_seed(1)
        head = nn.Linear(HIDDEN, tiny.VOCABULARY).requires_grad_(False)
        base.model.set_output_embeddings(head)
        assert base.model.get_output_embeddings() is head
    return base


def targets(count: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states with memory and without, and labels."""
    torch.manual_seed(2)
    hidden, without = torch.randn(2, count, HIDDEN).to(dtype)
    return hidden.requires_grad_(), without, torch.randint(tiny.VOCABULARY, (count,))


def plainly(
    base: BaseModel, hidden: Tensor, labels: Tensor, without: Tensor, alpha: float
) -> Tensor:
    logits = base.logits(hidden)
    if not alpha:
        return answer_cross_entropy(logits, labels)
    with torch.no_grad():
        other = base.logits(without)
    return memory_aware_cross_entropy(logits, other, labels, alpha)


def fused(
    base: BaseModel, hidden: Tensor, labels: Tensor, without: Tensor, alpha: float, **how: int
) -> Tensor:
    other = without if alpha else None
    return head_token_losses(base, hidden, labels, other, alpha, **how).mean()


def gradient(loss: Tensor, hidden: Tensor, weight: float = 0.3) -> Tensor:
    """The gradient of the loss, weighed as in a step."""
    [found] = torch.autograd.grad(loss * weight, hidden)
    return found


@pytest.mark.parametrize("alpha", [0.0, 0.5])
@pytest.mark.parametrize(("count", "chunk"), [(12, 4), (11, 4), (3, 4), (1, 4), (5, 1)])
@pytest.mark.parametrize(("family", "bias"), [("llama", False), ("gpt2", False), ("llama", True)])
def test_loss_and_gradient_are_the_plain_ones(
    family: str, bias: bool, count: int, chunk: int, alpha: float
) -> None:
    base = base_with(bias, family)
    hidden, without, labels = targets(count)
    expected = plainly(base, hidden, labels, without, alpha)
    loss = fused(base, hidden, labels, without, alpha, chunk=chunk)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradient(loss, hidden), gradient(expected, hidden))
    with torch.no_grad():
        alone = fused(base, hidden, labels, without, alpha, chunk=chunk)
    torch.testing.assert_close(alone, expected.detach())
    assert not fused(base, hidden.detach(), labels, without, alpha).requires_grad


@pytest.mark.parametrize("alpha", [0.0, 0.5])
@pytest.mark.parametrize("kind", ["bfloat16", "autocast", "autocast over bfloat16 states"])
@pytest.mark.parametrize("bias", [False, True])
def test_in_bfloat16_only_the_last_rounding_differs(kind: str, bias: bool, alpha: float) -> None:
    base = base_with(bias)
    if kind == "bfloat16":
        base.model.to(torch.bfloat16)
    states = torch.float32 if kind == "autocast" else torch.bfloat16
    hidden, without, labels = targets(11, states)
    with torch.autocast("cpu", torch.bfloat16, enabled=kind != "bfloat16"):
        expected = plainly(base, hidden, labels, without, alpha)
        loss = fused(base, hidden, labels, without, alpha, chunk=4)
    torch.testing.assert_close(loss, expected)
    ours, theirs = gradient(loss, hidden), gradient(expected, hidden)
    assert ours.dtype == states
    assert (ours - theirs).norm() <= 2**-7 * theirs.norm()


def test_a_certain_label_keeps_its_small_gradient_in_bfloat16() -> None:
    logits = torch.tensor([[9.0, 0.0, 0.0]], dtype=torch.bfloat16)
    _, found = head_loss._loss_and_gradient(logits, None, torch.tensor([0]), 0.0)
    exact = logits.double().softmax(1) - torch.tensor([1.0, 0.0, 0.0])
    torch.testing.assert_close(found.double(), exact, atol=0, rtol=2**-8)


@pytest.mark.parametrize("alpha", [0.0, 0.5])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_each_token_takes_the_gradient_of_its_own_weight(family: str, alpha: float) -> None:
    base = base_with(family=family)
    hidden, without, labels = targets(7)
    weights = torch.arange(7.0) - 2
    found = head_token_losses(base, hidden, labels, without if alpha else None, alpha, chunk=3)
    logits = memory_aware_logits(base.logits(hidden), base.logits(without), alpha).detach()
    expected = torch.stack([
        nn.functional.cross_entropy(row, label) for row, label in zip(logits, labels, strict=True)
    ])  # fmt: skip
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected)
    [gradient_TW] = torch.autograd.grad((found * weights).sum(), hidden)
    for place, weight in enumerate(weights.tolist()):
        alone = plainly(base, hidden[place : place + 1], labels[place : place + 1],
                        without[place : place + 1], alpha)  # fmt: skip
        [own] = torch.autograd.grad(alone * weight, hidden)
        torch.testing.assert_close(gradient_TW[place], own[place])


@pytest.mark.parametrize("alpha", [0.0, 0.5])
def test_memory_aware_states_take_no_gradient(alpha: float) -> None:
    base = base_with()
    hidden, without, labels = targets(6)
    without.requires_grad_()
    loss = head_token_losses(base, hidden, labels, without, alpha, chunk=4).mean()
    assert torch.autograd.grad(loss, without, allow_unused=True) == (None,)


def test_alpha_says_nothing_without_a_second_reading() -> None:
    base = base_with()
    hidden, _, labels = targets(6)
    ours = head_token_losses(base, hidden, labels, None, 0.5).mean()
    theirs = answer_cross_entropy(base.logits(hidden), labels)
    torch.testing.assert_close(gradient(ours, hidden), gradient(theirs, hidden))
    with torch.no_grad():
        alone = head_token_losses(base, hidden, labels, None, 0.5).mean()
        torch.testing.assert_close(alone, theirs)


@pytest.mark.parametrize("alpha", [0.0, 0.5])
def test_a_head_that_trains_gets_its_gradient(alpha: float) -> None:
    base = base_with(bias=True)
    head = base.model.get_output_embeddings().requires_grad_(True)
    hidden, without, labels = targets(6)
    wanted = [hidden, *head.parameters()]
    expected = torch.autograd.grad(plainly(base, hidden, labels, without, alpha), wanted)
    found = torch.autograd.grad(fused(base, hidden, labels, without, alpha, chunk=4), wanted)
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours, theirs)


def test_a_head_that_is_more_than_linear() -> None:
    class Capped(nn.Linear):
        def forward(self, states: Tensor) -> Tensor:
            return super().forward(states).tanh()

    base = base_with()
    base.model.set_output_embeddings(Capped(HIDDEN, tiny.VOCABULARY).requires_grad_(False))
    hidden, without, labels = targets(6)
    ours, theirs = (way(base, hidden, labels, without, 0.0) for way in (fused, plainly))
    assert torch.equal(ours, theirs)
    assert torch.equal(gradient(ours, hidden), gradient(theirs, hidden))


@pytest.mark.parametrize("alpha", [0.0, 0.5])
def test_the_gradient_can_be_differentiated_again(alpha: float) -> None:
    base = base_with()
    hidden, without, labels = targets(6)
    found = []
    for way in (fused, plainly):
        loss = way(base, hidden, labels, without, alpha)
        [first] = torch.autograd.grad(loss, hidden, create_graph=True)
        found.append(torch.autograd.grad(first.pow(2).sum(), hidden)[0])
    torch.testing.assert_close(*found)


def test_backward_keeps_one_vector_a_target() -> None:
    base = base_with()
    hidden, without, labels = targets(64)
    kept: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        fused(base, hidden, labels, without, 0.5, chunk=16)
    assert kept
    assert all(tensor.shape[-1:] != (tiny.VOCABULARY,) for tensor in kept)


@pytest.mark.parametrize("alpha", [0.0, 0.5])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_whole_step_is_the_plain_step(
    family: str, alpha: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    compressor = small.compressor(family)
    batches = BatchConfig(documents=4, retold_share=0.5, most_memories=3, asked=True,
                          compared_share=0.5)  # fmt: skip
    data = TrainingData(
        small.dataset(), compressor.base.tokenizer, batches, memory_tokens=4, max_piece_tokens=96
    )
    step = TrainingStep(compressor.base, compressor, ObjectiveConfig(alpha=alpha), 8)
    parameters = dict(compressor.named_parameters())

    def run() -> tuple[dict[str, Tensor], tuple[Tensor, ...]]:
        torch.manual_seed(0)
        report = step(data[0])
        return report, torch.autograd.grad(
            report["loss"], list(parameters.values()), allow_unused=True, materialize_grads=True
        )

    def plain(
        base: BaseModel, hidden: Tensor, labels: Tensor, without: Tensor | None = None,
        alpha: float = 0.0, compiled: bool = False,
    ) -> Tensor:  # fmt: skip
        assert not compiled
        logits = base.logits(hidden)
        if without is not None:
            with torch.no_grad():
                other = base.logits(without)
            logits = memory_aware_logits(logits, other, alpha)
        return nn.functional.cross_entropy(logits, labels, reduction="none")

    fused_whole = run()
    monkeypatch.setattr(step_module, "head_token_losses", partial(head_token_losses, chunk=5))
    found = {"whole": fused_whole, "by chunks": run()}
    monkeypatch.setattr(step_module, "head_token_losses", plain)
    expected, gradients = run()
    assert {"answer", "reconstruction", "asking", "reranking"} <= set(expected)
    for report, ours in found.values():
        assert list(report) == list(expected)
        for name, value in expected.items():
            torch.testing.assert_close(report[name], value, msg=name)
        for name, our, other in zip(parameters, ours, gradients, strict=True):
            assert (our - other).norm() <= 1e-4 * other.norm() + 1e-7, name


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="compiling needs g++")
def test_compiled_is_the_same_and_compiled_once() -> None:
    base = base_with()
    counts = torch._dynamo.utils.counters["stats"]
    graphs = []
    for count in (40, 41, 47, 64):
        hidden, without, labels = targets(count)
        for alpha in (0.0, 0.5):
            expected = plainly(base, hidden, labels, without, alpha)
            loss = fused(base, hidden, labels, without, alpha, chunk=16, compiled=True)
            torch.testing.assert_close(loss, expected)
            torch.testing.assert_close(gradient(loss, hidden), gradient(expected, hidden))
        graphs.append(counts["unique_graphs"])
    assert len(set(graphs)) == 1, graphs
