"""Each loss against its arithmetic, written out."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from cmt.errors import InputError
from cmt.objectives import (
    answer_cross_entropy,
    contrastive_matching_loss,
    matching_cross_entropy,
    memory_aware_cross_entropy,
    memory_aware_logits,
    pairwise_reranking_loss,
    question_cross_entropy,
    reconstruction_cross_entropy,
    self_matching_loss,
)


def unit(*rows: list[float]) -> Tensor:
    return torch.nn.functional.normalize(torch.tensor(rows), dim=1)


@pytest.mark.parametrize(
    "loss",
    [
        answer_cross_entropy,
        reconstruction_cross_entropy,
        question_cross_entropy,
        matching_cross_entropy,
    ],
)
def test_cross_entropy_by_hand(loss: object) -> None:
    # p(y=0) = 3/(3+1+1) = 3/5 and p(y=2) = 2/(1+1+2) = 2/4
    logits = torch.tensor([[3.0, 1.0, 1.0], [1.0, 1.0, 2.0]]).log()
    expected = -(math.log(3 / 5) + math.log(2 / 4)) / 2
    found = loss(logits, torch.tensor([0, 2]))  # type: ignore[operator]
    assert found.item() == pytest.approx(expected)
    halved = loss(logits.bfloat16(), torch.tensor([0, 2]))  # type: ignore[operator]
    assert halved.dtype == torch.float32


def test_cross_entropy_gradient_is_probability_minus_one_at_the_label() -> None:
    logits = torch.tensor([[3.0, 1.0, 1.0]]).log().requires_grad_()
    answer_cross_entropy(logits, torch.tensor([0])).backward()
    torch.testing.assert_close(logits.grad, torch.tensor([[3 / 5 - 1, 1 / 5, 1 / 5]]))


def test_memory_aware_logits_by_hand() -> None:
    with_memory, without = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 1.0]])
    # α = 0.5: 1.5·1 − 0.5·3 = 0 and 1.5·2 − 0.5·1 = 2.5
    adjusted = memory_aware_logits(with_memory, without, 0.5)
    assert adjusted.tolist() == [[0.0, 2.5]]
    # p(y=1) = e^2.5 / (1 + e^2.5)
    loss = memory_aware_cross_entropy(with_memory, without, torch.tensor([1]), 0.5)
    assert loss.item() == pytest.approx(-math.log(math.exp(2.5) / (1 + math.exp(2.5))))


def test_alpha_0_is_plain_cross_entropy() -> None:
    with_memory, without = torch.randn(5, 7), torch.randn(5, 7)
    labels = torch.randint(0, 7, (5,))
    assert torch.equal(memory_aware_logits(with_memory, without, 0.0), with_memory)
    assert torch.equal(
        memory_aware_cross_entropy(with_memory, without, labels, 0.0),
        answer_cross_entropy(with_memory, labels),
    )


def test_memory_aware_gradient_is_amplified() -> None:
    """d/dl = (1+α)·(p − 1 at the label), p of the adjusted logits."""
    with_memory = torch.randn(3, 5, requires_grad=True)
    without, labels = torch.randn(3, 5), torch.tensor([0, 3, 2])
    memory_aware_cross_entropy(with_memory, without, labels, 0.7).backward()
    p = (1.7 * with_memory - 0.7 * without).softmax(-1).detach()
    expected = 1.7 * (p - torch.nn.functional.one_hot(labels, 5)) / 3
    torch.testing.assert_close(with_memory.grad, expected)


def brute_force(questions: Tensor, memories: Tensor, positives: list[int], lambda_: float) -> float:
    total = 0.0
    for question, i in zip(questions, positives, strict=True):
        cosine = float(question @ memories[i] / (question.norm() * memories[i].norm()))
        spread = sum(
            math.exp(-float((memories[i] - memories[j]).pow(2).sum()))
            for j in range(len(memories))
            if j != i
        )
        total += -cosine + lambda_ * math.log(spread)
    return total / len(positives)


def test_self_matching_by_hand() -> None:
    # cos((1,0), (0,2)) = 0, cos((1,0), (3,0)) = 1; ‖(0,2) − (3,0)‖² = 13
    questions = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    memories = torch.tensor([[0.0, 2.0], [3.0, 0.0]])
    loss = self_matching_loss(questions, memories, torch.tensor([0, 1]), 0.1)
    assert loss.item() == pytest.approx(-(0 + 1) / 2 + 0.1 * math.log(math.exp(-13)))


def test_self_matching_against_a_loop() -> None:
    torch.manual_seed(0)
    questions, memories = torch.randn(7, 5), torch.randn(4, 5)
    positives = [0, 3, 1, 1, 2, 0, 0]
    for lambda_ in (0.0, 0.3, 2.0):
        loss = self_matching_loss(questions, memories, torch.tensor(positives), lambda_)
        assert loss.item() == pytest.approx(
            brute_force(questions, memories, positives, lambda_), rel=1e-5
        )


def test_self_matching_draws_together_and_drives_apart() -> None:
    questions = unit([1.0, 0.2]).requires_grad_()
    memories = torch.tensor([[0.9, 0.5], [0.8, 0.6]], requires_grad=True)
    positive = torch.tensor([0])
    self_matching_loss(questions, memories, positive, 1.0).backward()
    assert questions.grad is not None
    assert memories.grad is not None
    with torch.no_grad():
        nearer = questions - 0.1 * questions.grad
        cosine = torch.nn.functional.cosine_similarity
        assert cosine(nearer, memories[:1]) > cosine(questions, memories[:1])
        apart = memories - 0.1 * memories.grad
        assert (apart[0] - apart[1]).norm() > (memories[0] - memories[1]).norm()


def test_self_matching_stays_finite_where_exp_would_underflow() -> None:
    memories = torch.tensor([[0.0, 0.0], [40.0, 0.0]], requires_grad=True)
    loss = self_matching_loss(torch.ones(1, 2), memories, torch.tensor([1]), 1.0)
    loss.backward()
    assert loss.item() == pytest.approx(-1 / math.sqrt(2) - 1600)
    assert memories.grad is not None
    assert memories.grad.isfinite().all()


def test_self_matching_of_one_memory_is_refused() -> None:
    with pytest.raises(InputError, match="memories of at least 2 documents, got 1"):
        self_matching_loss(torch.ones(1, 2), torch.ones(1, 2), torch.tensor([0]), 1.0)


def test_contrastive_by_hand() -> None:
    questions, keys = unit([1.0, 0.0], [3.0, 4.0]), unit([1.0, 0.0], [0.0, 1.0])
    # cosines: (1, 0) and (0.6, 0.8); scale 2
    first = -math.log(math.exp(2) / (math.exp(2) + math.exp(0)))
    second = -math.log(math.exp(1.6) / (math.exp(1.2) + math.exp(1.6)))
    loss = contrastive_matching_loss(questions, keys, torch.tensor([0, 1]), 2.0)
    assert loss.item() == pytest.approx((first + second) / 2)


def test_contrastive_with_stale_keys_and_mask_by_hand() -> None:
    questions, keys = unit([1.0, 0.0]), unit([1.0, 0.0], [0.0, 1.0])
    stale = unit([-1.0, 0.0], [3.0, 4.0])
    plain = math.exp(2) + math.exp(0)
    both = contrastive_matching_loss(questions, keys, torch.tensor([0]), 2.0, stale)
    total = plain + math.exp(-2) + math.exp(1.2)
    assert both.item() == pytest.approx(-math.log(math.exp(2) / total))
    allowed = torch.tensor([False, True])
    one = contrastive_matching_loss(questions, keys, torch.tensor([0]), 2.0, stale, allowed)
    assert one.item() == pytest.approx(-math.log(math.exp(2) / (plain + math.exp(1.2))))
    none = contrastive_matching_loss(
        questions, keys, torch.tensor([0]), 2.0, stale, allowed & False
    )
    assert none.item() == pytest.approx(-math.log(math.exp(2) / plain))


def test_contrastive_gradients() -> None:
    questions, keys = torch.randn(4, 3, requires_grad=True), torch.randn(3, 3, requires_grad=True)
    stale, scale = torch.randn(2, 3), torch.tensor(5.0, requires_grad=True)
    positives = torch.tensor([0, 2, 1, 1])
    allowed = torch.tensor([True, False])
    contrastive_matching_loss(questions, keys, positives, scale, stale, allowed).backward()
    with torch.no_grad():
        every = torch.cat([keys, stale[:1]])
        p = (5.0 * questions @ every.T).softmax(-1)
        p[torch.arange(4), positives] -= 1
        torch.testing.assert_close(questions.grad, 5.0 * p @ every / 4)
        torch.testing.assert_close(keys.grad, 5.0 * p[:, :3].T @ questions / 4)
        torch.testing.assert_close(scale.grad, (p * (questions @ every.T)).sum() / 4)


def test_pairwise_reranking_by_hand() -> None:
    # w·(own − other) = 0.5·2 = 1 and 0.5·(−4) = −2
    own, other = torch.tensor([-3.0, -9.0]), torch.tensor([-5.0, -5.0])
    expected = (math.log(1 + math.exp(-1)) + math.log(1 + math.exp(2))) / 2
    assert pairwise_reranking_loss(own, other, 0.5).item() == pytest.approx(expected)
