"""Where training documents come from: the corpus, and further questions beside it."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np

from cmt.datasets.qa import QADataset, joined


def with_extra(dataset: QADataset, extra: QADataset, *, more: bool) -> QADataset:
    """Both as one dataset: its first documents and questions are those of `dataset`.

    No text is there twice, as its own wrong match: questions of `extra` on a text of `dataset`
    are asked of the document there with `more`, and left out without. Articles are kept apart.
    """
    whole = joined([dataset, extra], name=dataset.name)
    own = len(dataset.documents), len(dataset.questions)
    if more:
        return whole
    kept = [q for n, q in enumerate(whole.questions) if n < own[1] or q.document >= own[0]]
    return replace(whole, questions=tuple(kept))


class Epochs:
    """Documents in an order of each epoch's own: groups of one article together, shuffled."""

    def __init__(
        self, articles: dict[int, list[int]], size: int, group: int, key: tuple[int, int]
    ) -> None:
        """Order documents.

        Args:
            articles: Documents of each article.
            size: Documents a batch; what fills no whole batch waits for another epoch.
            group: Documents of one article that stay together, at most.
            key: Seed of the order, with the number of the source.
        """
        self.articles, self.size, self.group, self.key = articles, size, group, key
        self.documents = sum(map(len, articles.values()))
        self._epoch: tuple[int, np.ndarray] = (-1, np.zeros(0, dtype=np.int64))

    def batches(self) -> int:
        """Batches of an epoch."""
        return self.documents // self.size

    def batch(self, turn: int) -> list[int]:
        """The documents of a batch; `turn` counts over all epochs."""
        epoch, place = divmod(turn, self.batches())
        drawn: list[int] = self._order(epoch)[place * self.size :][: self.size].tolist()
        return drawn

    def _order(self, epoch: int) -> np.ndarray:
        if self._epoch[0] != epoch:
            rng = np.random.default_rng((*self.key, epoch))
            groups = []
            for article in sorted(self.articles):
                shuffled = rng.permutation(self.articles[article])
                bounds = [*range(0, len(shuffled), self.group), len(shuffled)]
                groups += [shuffled[a:b] for a, b in pairwise(bounds)]
            order = np.concatenate([groups[i] for i in rng.permutation(len(groups))])
            self._epoch = epoch, order
        return self._epoch[1]
