"""Documents that disagree: of memories on one subject that match about as well, the later is read.

Two memories are on one subject where their keys are alike; they match about as well where their
logits are close. Then the one whose document holds from a later day on takes the other's place,
and the other is shown as a source that was passed over. How often that helps, and what it costs
where dates mean nothing, `benchmarks/freshness.py` measures.

Shape legend: C candidates of a question.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

SAME_SUBJECT = 0.7
"""Least cosine of two memories' keys."""
CLOSE = 4.0
"""Most that the earlier one's logit (of matching, see `reranking.py`) may be higher by."""
LATER = 24 * 3600.0
"""Seconds; documents loaded one after the other on one day are not each other's successors."""


def prefer_later(
    logits: Sequence[float], starts: Sequence[float], alike_CC: np.ndarray
) -> tuple[list[int], dict[int, int]]:
    """Candidates in the order in which to read them, and which of the others gave way to which.

    Args:
        logits: How well each candidate matches.
        starts: From when on its document holds, in seconds since 1970.
        alike_CC: Cosines of the candidates' keys.

    Returns:
        Places of the candidates that are kept, best first, a later one in the place of the best
        it took over from; and for each place passed over the one that is read instead.
    """
    order = sorted(range(len(logits)), key=lambda place: -logits[place])  # stable
    successor: dict[int, int] = {}
    for place in order:
        later = [
            other
            for other in order
            if starts[other] >= starts[place] + LATER
            and alike_CC[place, other] >= SAME_SUBJECT
            and logits[other] >= logits[place] - CLOSE
        ]
        if later:
            successor[place] = max(later, key=lambda other: (starts[other], logits[other]))
    kept: dict[int, None] = {}  # in order, each once
    replaced: dict[int, int] = {}
    for place in order:
        last = place
        while last in successor:  # ends, since each is later than the one before
            last = successor[last]
        kept.setdefault(last)
        if last != place:
            replaced[place] = last
    return list(kept), replaced
