"""BM25 over texts: the library's own scores and order, and texts without a word."""

from __future__ import annotations

import bm25s
import numpy as np

from cmt.bm25 import Texts

TEXTS = [
    "The lighthouse of Arbon was built in 1823 by Clara Weiss.",
    "Rivers carry sand, silt and clay to the sea.",
    "The delta of Mirna grows 12 metres a year; the lighthouse of Mirna stands on it.",
]


def test_scores_are_the_librarys() -> None:
    questions = ["Where is the delta of Mirna?", "the of and", "", "Zyx?"]
    scores = Texts(bm25s, TEXTS).scores(questions)
    index = bm25s.BM25()
    index.index(bm25s.tokenize(TEXTS, stopwords="en", show_progress=False), show_progress=False)
    np.testing.assert_allclose(scores[0], index.get_scores(["where", "delta", "mirna"]), rtol=1e-6)
    assert scores[0].argmax() == 2
    assert not scores[1:].any()  # stop words alone, nothing, a word that no text has
    assert scores.dtype == np.float32


def test_the_best_are_those_of_the_highest_scores() -> None:
    texts = Texts(bm25s, TEXTS)
    questions = ["the lighthouse in the delta of Mirna", "silt and a lighthouse in Arbon"]
    order = (-texts.scores(questions)).argsort(1).tolist()
    assert [own[0] for own in order] == [2, 0]
    for k in (1, 2, 3, 9):
        assert texts.best(questions, k) == [tuple(own[:k]) for own in order]
    assert texts.stored_bytes() > 0


def test_texts_without_a_word_are_as_good_as_each_other() -> None:
    texts = Texts(bm25s, ["the", "of"])
    assert texts.scores(["the delta"]).tolist() == [[0.0, 0.0]]
    assert texts.best(["the delta", ""], 1) == [(0,), (0,)]
    assert texts.best(["the delta"], 9) == [(0, 1)]
    assert texts.stored_bytes() == 0
    none = Texts(bm25s, [])
    assert none.scores(["the delta"]).shape == (1, 0)
    assert none.best(["the delta"], 3) == [()]
