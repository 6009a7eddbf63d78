"""Which prompts are answered together."""

from __future__ import annotations

import pytest

from cmt.errors import InputError
from cmt.methods.answering import AnswerConfig, _batches, generated
from tests import tiny


def lengths(batches: list[list[int]], of: list[int]) -> list[list[int]]:
    return [[of[i] for i in rows] for rows in batches]


def test_batches_hold_so_many_prompts_and_tokens() -> None:
    of = [9, 2, 5, 2, 30, 3]
    prompts = [[0] * n for n in of]
    made = list(_batches(prompts, AnswerConfig(batch_size=3, batch_tokens=12)))
    assert lengths(made, of) == [[2, 2, 3], [5], [9], [30]]  # two of 9 would be 18 tokens
    assert sorted(i for rows in made for i in rows) == list(range(6))
    assert list(_batches(prompts, AnswerConfig(batch_size=64))) == [[1, 3, 5, 2, 0, 4]]
    assert list(_batches([], AnswerConfig())) == []


def test_answers_do_not_depend_on_the_batch() -> None:
    prompts = [[5, 6, 7], [8], [9, 10, 11, 12, 13], [14, 15]]
    together = generated(tiny.base_model(), prompts, AnswerConfig(max_new_tokens=4))
    apart = generated(tiny.base_model(), prompts, AnswerConfig(max_new_tokens=4, batch_tokens=6))
    assert together == apart


def test_numbers_below_1_are_refused() -> None:
    with pytest.raises(InputError, match="expected batch_tokens of at least 1, got 0"):
        AnswerConfig(batch_tokens=0)
