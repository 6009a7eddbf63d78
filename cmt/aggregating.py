"""How the memories found for a question are read together: the choice, for all who read them.

Side by side as one prefix (aggregation.py), or separately, their distributions mixed (mixing.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from cmt.aggregation import Prefix, aggregate, aggregate_resident, matching_weights
from cmt.errors import InputError
from cmt.mixing import separate, separate_resident

WAYS = ("concatenate", "mix", "posterior")


@dataclass(frozen=True, kw_only=True, slots=True)
class Aggregation:
    """How memories are read together.

    Attributes:
        how: "concatenate": side by side, weighted in attention; "mix": separately, their
            next-token distributions mixed; "posterior": mixed with weights that follow how well
            a memory explains the answer so far.
        temperature: Of the softmax that makes weights of matching scores; below 1 the best
            memory counts more, above 1 less.
    """

    how: str = "posterior"
    temperature: float = 1.0

    def __post_init__(self) -> None:
        """Refuse values without meaning."""
        if self.how not in WAYS:
            raise InputError(f"expected an aggregation among {', '.join(WAYS)}, got {self.how!r}")
        if not 0 < self.temperature < math.inf:
            raise InputError(f"expected a temperature of matching above 0, got {self.temperature}")

    @property
    def is_separate(self) -> bool:
        """Whether each memory is read by itself, and the question once a memory."""
        return self.how != "concatenate"

    def weights(self, scores: Sequence[float] | Tensor) -> Tensor:
        """Weights of memories with these logits of matching, over the last dimension."""
        return matching_weights(scores, 1 / self.temperature)

    def prefix(
        self, memories: Sequence[Sequence[Tensor]], weights: Sequence[Sequence[float] | Tensor]
    ) -> Prefix:
        """What is read before each question; arguments and errors as `aggregate`'s."""
        if self.is_separate:
            return separate(memories, weights, posterior=self.how == "posterior")
        return aggregate(memories, weights)

    def resident_prefix(self, memories: Tensor, chosen_QM: Tensor, scores_QM: Tensor) -> Prefix:
        """The same from memories that lie in one tensor, without a loop.

        Args:
            memories: All of them, (D, L, 2, G, K, E).
            chosen_QM: Which are read before each question.
            scores_QM: Their logits of matching.
        """
        weights_QM = self.weights(scores_QM)
        if self.is_separate:
            posterior = self.how == "posterior"
            return separate_resident(memories, chosen_QM, weights_QM, posterior=posterior)
        return aggregate_resident(memories, chosen_QM, weights_QM)


DEFAULT_AGGREGATION = Aggregation()
"""The best on validation where several memories are read (docs/LOG.md); one is read alike."""
