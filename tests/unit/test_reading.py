"""How questions, answers and documents are laid out to be read."""

from __future__ import annotations

import torch

from cmt.reading import prepare_reading, question_tokens, read, reading_start
from tests import small, tiny


def test_question_tokens_are_the_template() -> None:
    tokenizer = tiny.tokenizer()
    first, second = question_tokens(tokenizer, ["  Who built it? ", "When?"])
    assert tokenizer.decode(first) == "Question: Who built it?\nAnswer:"
    assert tokenizer.decode(second) == "Question: When?\nAnswer:"
    assert question_tokens(tokenizer, []) == []


def test_reading_starts_past_the_sink_and_the_longest_piece() -> None:
    assert reading_start(320) == 321


def test_layout() -> None:
    batch = prepare_reading(
        [[[10, 11], [12]], [[13, 14, 15]]],
        [[[20, 21, 22], [23]], [[24, 25]]],
        [[30, 31, 32]],
        start=7,
    )
    # an answer's last token is predicted, never read; a retold document's place 0 is opened
    assert batch.tokens_N.tolist() == [10, 11, 20, 21, 12, 13, 14, 15, 24, 0, 30, 31]
    assert batch.positions_N.tolist() == [7, 8, 9, 10, 7, 7, 8, 9, 10, 7, 8, 9]
    assert batch.openings.tolist() == [9]
    assert batch.targets_T.tolist() == [1, 2, 3, 4, 7, 8, 9, 10, 11]
    assert batch.labels_T.tolist() == [20, 21, 22, 23, 24, 25, 30, 31, 32]
    assert batch.answers == 6
    assert [group.valid_BT.sum(1).tolist() for group in batch.packing.groups] == [[4, 1], [4], [3]]


def test_layout_of_questions_that_are_compared() -> None:
    batch = prepare_reading(
        [[[9, 10, 11], [9, 12], [9, 13, 14]], [[9, 15]]],
        [[[20], [21], [22]], [[23]]],
        [[30, 31]],
        start=0,
        asked_after=1,
        compared=2,
    )
    # once more, the first two, but for their last tokens, which are predicted
    own = [9, 10, 11, 9, 12, 9, 13, 14, 9, 15]
    assert batch.tokens_N.tolist() == [*own, 9, 10, 9, 0, 30]
    lengths = [group.valid_BT.sum(1).tolist() for group in batch.packing.groups]
    assert lengths == [[3, 2, 3], [2], [2, 1], [2]]
    assert (batch.answers, batch.retold, batch.asked) == (4, 2, 5)
    assert batch.labels_T[6:].tolist() == [10, 11, 12, 13, 14, 10, 11, 12]
    assert batch.targets_T[6:].tolist() == [0, 1, 3, 5, 6, 10, 11, 12]
    assert batch.compared_T.tolist() == [0, 0, 1]


def test_a_group_without_segments_is_left_out() -> None:
    batch = prepare_reading([[], [[1, 2]]], [[], [[3]]], [], start=0)
    [group] = batch.packing.groups
    assert group.index_BT.tolist() == [[0, 1]]
    assert batch.openings.tolist() == []


def test_reading_gives_a_state_for_every_target() -> None:
    base = tiny.base_model()
    batch = prepare_reading([small.tokens(5, 7)], [small.tokens(3, 2)], [], start=0)
    with torch.no_grad():
        assert read(base, batch, None).shape == (5, 32)


def test_gradients_reach_the_memories_and_not_the_model() -> None:
    base = tiny.base_model()
    batch = prepare_reading([small.tokens(5)], [small.tokens(3)], small.tokens(4), start=30)
    for group in batch.packing.groups:
        group.memories_BM = torch.zeros(1, 1, dtype=torch.long)
    memories = [
        (torch.randn(1, 4, 2, 8, requires_grad=True), torch.randn(1, 4, 2, 8, requires_grad=True))
        for _ in range(3)
    ]
    opening = torch.randn(32, requires_grad=True)
    read(base, batch, memories, opening).pow(2).sum().backward()
    assert all(part.grad is not None and part.grad.any() for pair in memories for part in pair)
    assert opening.grad is not None
    assert opening.grad.any()
    assert all(parameter.grad is None for parameter in base.model.parameters())
