"""Late interaction against its formula, written out in loops."""

from __future__ import annotations

import torch
from torch.nn import functional

from cmt.late_interaction import QuestionVectors, late_scores, shortlist_scores, stacked


def questions(*lengths: int) -> QuestionVectors:
    random = torch.Generator().manual_seed(0)
    total = sum(lengths)
    return QuestionVectors(
        vectors_TV=functional.normalize(torch.randn(total, 6, generator=random), dim=-1),
        weights_T=torch.rand(total, generator=random),
        owners_T=torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths)),
        lengths=lengths,
    )


def documents(count: int) -> torch.Tensor:
    random = torch.Generator().manual_seed(1)
    return functional.normalize(torch.randn(count, 3, 6, generator=random), dim=-1)


def test_scores_are_the_formula() -> None:
    """s(q, M) = Σ_t w_t · max_j ⟨q_t, m_j⟩."""
    asked, known = questions(4, 1, 3), documents(5)
    scores = late_scores(asked, known, 3)
    assert scores.shape == (3, 5)
    for q in range(3):
        for d in range(5):
            expected = sum(
                float(weight) * max(float(vector @ token) for token in known[d])
                for vector, weight, owner in zip(
                    asked.vectors_TV, asked.weights_T, asked.owners_T, strict=True
                )
                if owner == q
            )
            torch.testing.assert_close(float(scores[q, d]), expected, atol=1e-6, rtol=1e-5)


def test_rows_are_the_questions_alone() -> None:
    asked, known = questions(4, 1, 3), documents(5)
    scores = late_scores(asked, known, 3)
    some = asked.rows([2, 0])
    assert some.owners_T.tolist() == [0] * 3 + [1] * 4
    torch.testing.assert_close(late_scores(some, known, 2), scores[[2, 0]])


def test_gradients_reach_both_sides_and_the_weights() -> None:
    asked, known = questions(2, 2), documents(3).requires_grad_()
    asked.vectors_TV.requires_grad_()
    asked.weights_T.requires_grad_()
    late_scores(asked, known, 2)[0, 1].backward()
    assert known.grad is not None
    assert known.grad[1].any()
    assert not known.grad[[0, 2]].any()
    assert asked.vectors_TV.grad is not None
    assert asked.vectors_TV.grad[:2].any()
    assert not asked.vectors_TV.grad[2:].any()
    assert asked.weights_T.grad is not None
    assert asked.weights_T.grad[:2].any()


def test_a_shortlist_has_the_scores_of_all() -> None:
    """Each question with documents of its own, whatever else is asked."""
    asked, known = questions(4, 1, 3), documents(5)
    everything = late_scores(asked, known, 3)
    chosen = torch.tensor([[4, 0], [1, 1], [2, 3]])
    found = shortlist_scores(asked, known, chosen)
    torch.testing.assert_close(found, everything.gather(1, chosen))
    for q in range(3):
        alone = shortlist_scores(asked.rows([q]), known, chosen[[q]])
        torch.testing.assert_close(alone[0], found[q])


def test_fewer_vectors_are_filled_up_without_a_change() -> None:
    asked = questions(4, 1, 3)
    known = [*documents(3), documents(4)[3, :2], documents(5)[4, :1]]
    together = stacked(known)
    assert together.shape == (5, 3, 6)
    scores = late_scores(asked, together, 3)
    for d, own in enumerate(known):
        torch.testing.assert_close(scores[:, [d]], late_scores(asked, own[None], 3))
