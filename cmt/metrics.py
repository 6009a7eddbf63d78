"""The figures every method is judged by: SQuAD's EM and F1, the peers' prefix EM, recall.

All scores of one question are in [0, 1]; a table multiplies their mean by 100.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from cmt.errors import InputError

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalise(text: str) -> str:
    """SQuAD v1.1's official normalisation, in its order.

    Lower case; ASCII punctuation removed (not replaced: "U.S." becomes "us"); the words
    a, an, the removed; white space collapsed. Other scripts' punctuation, the curly quote and
    the long dash among it, stays, as in the official script.
    """
    text = text.lower().translate(_WITHOUT_PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", text).split())


def exact_match(prediction: str, answers: Sequence[str]) -> float:
    """SQuAD's EM: 1.0 when the prediction equals any gold answer after `normalise`, else 0.0.

    Raises:
        InputError: `answers` is empty or is one text instead of a sequence of texts.
    """
    _check_answers(answers)
    predicted = normalise(prediction)
    return float(any(predicted == normalise(answer) for answer in answers))


def f1(prediction: str, answers: Sequence[str]) -> float:
    """SQuAD's F1: overlap of the normalised words as bags, the best over the gold answers.

    As in the official v1.1 script, a pair without a common word scores 0.0, even when both are
    empty after normalisation (there `exact_match` is 1.0).

    Raises:
        InputError: `answers` is empty or is one text instead of a sequence of texts.
    """
    _check_answers(answers)
    predicted = normalise(prediction).split()
    return max(_f1_of_words(predicted, normalise(answer).split()) for answer in answers)


def prefix_exact_match(prediction: str, answers: Sequence[str]) -> float:
    """The EM that CaMeLS, MAC and MBC report, CMT's figures beside theirs; not SQuAD's.

    In those codebases' `exact_match(prediction, truth, match_length=False)` the target is one
    gold answer, the shortest in characters (the first of equals). Prediction and target are both
    normalised as SQuAD does; then the normalised prediction is cut to the normalised target's
    number of *characters*, and the two are compared. So "1984 in Paris" matches "198", and a
    target that is empty after normalisation matches everything.

    Their F1 is taken against that same single target: `f1(prediction, [shortest(answers)])`.

    Raises:
        InputError: `answers` is empty or is one text instead of a sequence of texts.
    """
    target = normalise(shortest(answers))
    return float(normalise(prediction)[: len(target)] == target)


def shortest(answers: Sequence[str]) -> str:
    """The shortest gold answer in characters, the first of equals: the peers' target.

    Raises:
        InputError: `answers` is empty or is one text instead of a sequence of texts.
    """
    _check_answers(answers)
    return min(answers, key=len)


def recall_at(ranks: Sequence[int | None], k: int) -> float:
    """Share of the questions whose right document is among the k best matches.

    Args:
        ranks: One a question: the right document's place among the matches, counted from 1,
            or None when it isn't among them at all.
        k: How many matches are looked at, at least 1.

    Raises:
        InputError: No ranks, a rank below 1, or k below 1.
    """
    if k < 1:
        raise InputError(f"recall_at: expected k of at least 1, got {k}")
    if len(ranks) == 0:
        raise InputError("recall_at: expected at least one rank, got none")
    wrong = [rank for rank in ranks if rank is not None and rank < 1]
    if wrong:
        raise InputError(f"recall_at: expected ranks counted from 1, got {wrong[0]}")
    return sum(rank is not None and rank <= k for rank in ranks) / len(ranks)


def bootstrap_interval(
    values: Sequence[float] | npt.NDArray[Any],
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of `values`, as (low, high).

    The values are taken as independent; questions on one document are only nearly so. The same
    arguments give the same interval.

    Raises:
        InputError: No values, a confidence outside (0, 1), or fewer than one resample.
    """
    if len(values) == 0:
        raise InputError("bootstrap_interval: expected at least one value, got none")
    if not 0 < confidence < 1:
        raise InputError(
            f"bootstrap_interval: expected a confidence between 0 and 1, got {confidence}"
        )
    if resamples < 1:
        raise InputError(f"bootstrap_interval: expected at least 1 resample, got {resamples}")
    sample = np.asarray(values, dtype=np.float64)
    random = np.random.default_rng(seed)
    means = [random.choice(sample, size=sample.size).mean() for _ in range(resamples)]
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)


def _f1_of_words(predicted: list[str], gold: list[str]) -> float:
    common = (Counter(predicted) & Counter(gold)).total()
    if common == 0:
        return 0.0
    precision = common / len(predicted)
    recall = common / len(gold)
    return 2 * precision * recall / (precision + recall)


def _check_answers(answers: Sequence[str]) -> None:
    if isinstance(answers, str):
        raise InputError(f"expected a sequence of gold answers, got the single text {answers!r}")
    if len(answers) == 0:
        raise InputError("expected at least one gold answer, got none")
