"""What a training batch holds: how many documents of which kind, and what is asked of them."""

from __future__ import annotations

import math
from dataclasses import dataclass

from cmt.errors import InputError


@dataclass(kw_only=True, slots=True)
class BatchConfig:
    """What a batch holds.

    Attributes:
        documents: Question-bearing documents a batch.
        extra: Documents a batch from the run's further questions (`extra`), beside those.
        texts: Plain texts a batch, only retold.
        questions_per_document: At most so many, drawn anew each time.
        more_questions: At most so many of the further questions, where they are on a document's
            own text, beside its own.
        group: Documents of one article drawn together, hard negatives for matching.
        retold_share: Share of the documents to retell.
        several_share: Share of the questions that read several memories at once.
        most_memories: Largest number of memories read at once.
        max_answer_tokens: Longer answers are cut.
        cropped_share: Share of the documents of which only some sentences in a row are read, with
            the questions that these answer.
        joined_share: Share of the documents that are joined with a neighbour, where both are
            short, with the questions of both.
        dropped_share: Share of each question's own tokens that are left out where it is matched,
            not where it is read, so that it can't be known by heart.
        asked: Whether questions that read one memory are to be predicted from it too.
        compared_share: Share of those questions that are also read after another memory that
            matches them well, for `ObjectiveConfig.reranking`; wants `asked`.
        size_shares: How often a step compresses into each of the compressor's `sizes`, as shares
            of all steps; (): each as often as any other.
    """

    documents: int = 128
    extra: int = 0
    texts: int = 0
    questions_per_document: int = 4
    more_questions: int = 0
    group: int = 6
    cropped_share: float = 0.0
    joined_share: float = 0.0
    retold_share: float = 0.33
    several_share: float = 0.5
    most_memories: int = 4
    max_answer_tokens: int = 24
    dropped_share: float = 0.0
    asked: bool = False
    compared_share: float = 0.0
    size_shares: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        """Refuse what can't be filled."""
        least = {
            "documents": 1,
            "extra": 0,
            "texts": 0,
            "questions_per_document": 1,
            "more_questions": 0,
            "group": 1,
            "most_memories": 1,
            "max_answer_tokens": 1,
        }
        for name, bound in least.items():
            if getattr(self, name) < bound:
                raise InputError(f"expected {name} of at least {bound}, got {getattr(self, name)}")
        for name in ("retold", "several", "cropped", "joined", "dropped", "compared"):
            share = getattr(self, f"{name}_share")
            if not 0 <= share <= 1:
                raise InputError(f"expected {name}_share from 0 to 1, got {share}")
        if self.cropped_share + self.joined_share > 1:
            raise InputError(
                f"expected cropped_share and joined_share of at most 1 together, "
                f"got {self.cropped_share} and {self.joined_share}"
            )
        if self.compared_share and not self.asked:
            raise InputError(
                f"expected asked=True where questions are compared "
                f"(compared_share={self.compared_share}), got asked=False"
            )
        shares = self.size_shares
        if shares and not (min(shares) >= 0 and math.isclose(sum(shares), 1)):
            raise InputError(f"expected size_shares of at least 0 that sum to 1, got {shares}")
