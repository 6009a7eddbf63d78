"""The metrics against hand-computed values and the official script's edge cases."""

import numpy as np
import pytest

from cmt.errors import InputError
from cmt.metrics import (
    bootstrap_interval,
    exact_match,
    f1,
    normalise,
    prefix_exact_match,
    recall_at,
    shortest,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The Denver Broncos", "denver broncos"),
        ("  many \t spaces\n", "many spaces"),
        ("U.S.", "us"),
        ("state-of-the-art", "stateoftheart"),  # punctuation goes first, so no article is left
        ("A an THE", ""),
        ("anthem theatre", "anthem theatre"),  # articles are whole words only
        ("$1,200.50", "120050"),
        ("!?.", ""),
        ("Beyoncé’s", "beyoncé’s"),  # only ASCII punctuation is removed
        ("1990–91", "1990–91"),
        ("a\u00a0b", "b"),  # a no-break space is white space
        ("ÉCOLE", "école"),
        ("", ""),
    ],
)
def test_normalise(text, expected):
    assert normalise(text) == expected


@pytest.mark.parametrize(
    ("prediction", "answers", "expected"),
    [
        ("the Denver Broncos!", ["Denver Broncos"], 1.0),
        ("Denver", ["Denver Broncos"], 0.0),
        ("24", ["twenty-four", "24"], 1.0),
        ("The", ["an"], 1.0),  # both empty after normalisation
        ("", ["Paris"], 0.0),
        ("Paris, France", ["Paris"], 0.0),
    ],
)
def test_exact_match(prediction, answers, expected):
    assert exact_match(prediction, answers) == expected


@pytest.mark.parametrize(
    ("prediction", "answers", "expected"),
    [
        ("Denver Broncos", ["the Denver Broncos"], 1.0),
        ("Denver", ["Denver Broncos"], 2 / 3),  # precision 1, recall 1/2
        ("in the city of Paris", ["Paris"], 2 / 5),  # precision 1/4 (in city of paris), recall 1
        ("Denver", ["Carolina Panthers", "Denver Broncos"], 2 / 3),  # the best gold counts
        ("no no yes", ["no yes yes"], 2 / 3),  # bags, not sets: one no, one yes in common
        ("", ["Paris"], 0.0),
        ("the", ["a"], 0.0),  # the official script's zero where EM is one
        ("Carolina", ["Denver"], 0.0),
    ],
)
def test_f1(prediction, answers, expected):
    assert f1(prediction, answers) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("prediction", "answers", "expected"),
    [
        ("Denver Broncos in 2016", ["Denver Broncos"], 1.0),  # SQuAD's EM says 0
        ("1984 in Paris", ["198"], 1.0),  # characters, not words
        ("Denver", ["Denver Broncos"], 0.0),  # a prediction shorter than the target
        ("Denver Broncos", ["the Broncos of Denver", "Broncos"], 0.0),  # target: Broncos
        ("five", ["five", "nine"], 1.0),  # the first of equally short answers is the target
        ("nine", ["five", "nine"], 0.0),
        ("the U.S. army", ["US"], 1.0),  # both normalised before the cut
        ("anything", ["The"], 1.0),  # an empty target matches everything
    ],
)
def test_prefix_exact_match(prediction, answers, expected):
    assert prefix_exact_match(prediction, answers) == expected


def test_prefix_exact_match_is_never_stricter_than_exact_match_on_one_answer():
    for prediction in ("Paris", "Paris, France", "in Paris", "", "the Paris"):
        assert prefix_exact_match(prediction, ["Paris"]) >= exact_match(prediction, ["Paris"])


def test_shortest_is_the_first_of_equals():
    assert shortest(["three", "two", "one"]) == "two"


@pytest.mark.parametrize("metric", [exact_match, f1, prefix_exact_match])
def test_no_gold_answer_is_an_error(metric):
    with pytest.raises(InputError, match="at least one gold answer, got none"):
        metric("Paris", [])


@pytest.mark.parametrize("metric", [exact_match, f1, prefix_exact_match])
def test_a_text_in_place_of_a_sequence_of_answers_is_an_error(metric):
    with pytest.raises(InputError, match="got the single text 'Paris'"):
        metric("Paris", "Paris")


def test_recall_at():
    ranks = [1, 3, None, 2]
    assert [recall_at(ranks, k) for k in (1, 2, 3, 100)] == [0.25, 0.5, 0.75, 0.75]


def test_recall_at_rejects_what_it_cannot_count():
    with pytest.raises(InputError, match="ranks counted from 1, got 0"):
        recall_at([1, 0], 1)
    with pytest.raises(InputError, match="k of at least 1, got 0"):
        recall_at([1], 0)
    with pytest.raises(InputError, match="at least one rank, got none"):
        recall_at([], 1)


def test_bootstrap_interval_holds_the_mean_and_repeats():
    values = [1.0] * 30 + [0.0] * 70
    low, high = bootstrap_interval(values)
    # The normal approximation: 0.3 ± 1.96·sqrt(0.3·0.7/100) = 0.21 … 0.39.
    assert low == pytest.approx(0.21, abs=0.02)
    assert high == pytest.approx(0.39, abs=0.02)
    assert bootstrap_interval(values) == (low, high)
    assert bootstrap_interval(values, seed=1) != (low, high)
    narrow = bootstrap_interval(values, confidence=0.5)
    assert low < narrow[0] < 0.3 < narrow[1] < high


def test_bootstrap_interval_of_equal_values_is_a_point():
    assert bootstrap_interval(np.full(10, 0.5)) == (0.5, 0.5)


def test_bootstrap_interval_rejects_what_it_cannot_sample():
    with pytest.raises(InputError, match="at least one value, got none"):
        bootstrap_interval([])
    with pytest.raises(InputError, match=r"between 0 and 1, got 95"):
        bootstrap_interval([1.0], confidence=95)
    with pytest.raises(InputError, match="at least 1 resample, got 0"):
        bootstrap_interval([1.0], resamples=0)
