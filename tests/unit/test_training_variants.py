"""Cuts of documents and further questions: what is read answers what is asked."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from cmt.datasets.qa import QADataset, Question
from cmt.errors import InputError
from cmt.records import Document
from cmt.training.data import BatchConfig, TrainingData
from cmt.training.variants import Variants
from tests import small, tiny
from tests.unit.test_training_data import TEXTS, data, same, segments

TOKENIZER = tiny.tokenizer()
SENTENCES = ("Clara came in May.", "She built the tower.", "Jon paid 240 francs.", "It fell. ")


def corpus(texts: list[str], questions: list[tuple[int, str]], articles: int = 1) -> QADataset:
    return QADataset(
        name="cuts",
        documents=tuple(Document(text=text) for text in texts),
        articles=tuple(i * articles // len(texts) for i in range(len(texts))),
        questions=tuple(
            Question(id=str(i), text=f"Question {i}?", answers=(answer,), document=document)
            for i, (document, answer) in enumerate(questions)
        ),
    )


def ids(text: str) -> list[int]:
    return TOKENIZER(text, add_special_tokens=False)["input_ids"]


def windows(limit: int = 96, answers: tuple[str, ...] = ("Clara", "240 francs", "tower")) -> Any:
    text = " ".join(SENTENCES)
    dataset = corpus([text], [(0, answer) for answer in answers])
    variants = Variants(dataset, TOKENIZER, limit)
    return [variants.window(0, np.random.default_rng(seed)) for seed in range(40)]


def test_a_window_is_some_sentences_and_the_questions_they_answer() -> None:
    seen = set()
    for cut in windows():
        text = TOKENIZER.decode(cut.tokens)
        assert cut.tokens == ids(text)
        assert text in " ".join(SENTENCES)
        assert text.startswith(SENTENCES[:3])
        assert 2 <= sum(sentence.strip() in text for sentence in SENTENCES) <= 4
        expected = [n for n, a in enumerate(("Clara", "240 francs", "tower")) if a in text]
        assert cut.questions == expected != []
        seen.add(text)
    assert len(seen) >= 4


def test_an_answer_that_also_stands_elsewhere_is_not_asked_of_a_window() -> None:
    text = "Clara came in May. The sea is near. It is cold. Then Clara left."
    variants = Variants(corpus([text], [(0, "Clara"), (0, "near")]), TOKENIZER, 96)
    for seed in range(20):
        cut = variants.window(0, np.random.default_rng(seed))
        assert cut is None or cut.questions == [1]


def test_a_window_is_no_longer_than_a_piece() -> None:
    assert any(cut is None for cut in windows(limit=4))
    for cut in windows(limit=30):
        assert cut is None or len(cut.tokens) <= 30


def test_two_sentences_are_no_window() -> None:
    variants = Variants(corpus(["One is here. Two is there."], [(0, "One")]), TOKENIZER, 96)
    assert variants.window(0, np.random.default_rng(0)) is None


def test_neighbours_of_an_article_are_joined_in_their_order() -> None:
    texts = ["The sea is near.", "Clara came.", "Jon left.", "A rock."]
    questions = [(0, "near"), (1, "Clara"), (2, "Jon"), (3, "rock")]
    variants = Variants(corpus(texts, questions, articles=2), TOKENIZER, 40)
    for document in (0, 1):
        present = {document}
        cut = variants.joined(document, present)
        assert cut is not None
        assert cut.tokens == ids("The sea is near.\nClara came.")
        assert cut.questions == [0, 1]
        assert present == {0, 1}
    assert variants.joined(0, {0, 1}) is None, "the neighbour is in the batch itself"
    assert variants.joined(1, {0, 1}) is None, "the next one is of another article"
    assert Variants(corpus(texts, questions), TOKENIZER, 4).joined(0, {0}) is None


@pytest.mark.parametrize("shares", [{"cropped_share": 1.0}, {"joined_share": 1.0}])
def test_a_batch_of_cuts(shares: dict[str, float]) -> None:
    dataset = small.dataset(12, articles=2)
    settings = {"documents": 3, "group": 1, "retold_share": 1.0, "several_share": 0.0, **shares}
    wholes = {**settings, "cropped_share": 0, "joined_share": 0}
    *varied, plain = (
        TrainingData(dataset, TOKENIZER, BatchConfig(**own), memory_tokens=4, max_piece_tokens=300)
        for own in (settings, settings, wholes)
    )
    other = 0
    for step in range(8):
        assert same(varied[0][step], varied[1][step])
        batch, whole = varied[0][step], plain[step]
        assert torch.equal(batch.document_ids_D, whole.document_ids_D)
        retold = segments(batch, 1)
        other += sorted(retold) != sorted(segments(whole, 1))
        for place, asked in zip(batch.positives_Q.tolist(), segments(batch, 0), strict=True):
            [at] = [i for i, n in enumerate(batch.retold_R.tolist()) if n == place]
            text = TOKENIZER.decode(retold[at][1:])
            answer = TOKENIZER.decode(asked).split("Answer:")[1].strip()
            assert answer[:3] in text
    assert other >= 4


def extra(own: bool = False) -> QADataset:
    """Three documents with two questions each; with `own` also questions on the towers."""
    made = corpus([f"The mill of Orva {i} is red." for i in range(3)],
                  [(i // 2, "red") for i in range(6)])  # fmt: skip
    if not own:
        return made
    towers = small.dataset().documents
    return replace(
        made,
        documents=made.documents + towers,
        articles=(*made.articles, *range(1, 9)),
        questions=made.questions
        + tuple(Question(id=f"m{i}", text=f"More {i}?", answers=("rock",), document=3 + i)
                for i in range(8)),
    )  # fmt: skip


def asked_of(batch: Any) -> list[tuple[int, str]]:
    texts = [TOKENIZER.decode(s) for group in (0, 1) for s in segments(batch, group)]
    drawn = batch.document_ids_D.tolist()
    return [
        (drawn[place], text.split("\nAnswer:")[0].removeprefix("Question: "))
        for place, text in zip(batch.positives_Q.tolist(), texts, strict=True)
    ]


def test_further_documents_come_beside_the_corpus() -> None:
    batch = {"documents": 4, "extra": 2, "texts": 1, "retold_share": 0.5}
    corpus_ = data(batch=batch, extra=extra(own=True), texts=TEXTS)
    assert len(corpus_.documents) == 8 + 3 + 3
    seen = set()
    for step in range(6):
        made = corpus_[step]
        drawn = made.document_ids_D.tolist()
        assert [i // 8 for i in drawn] == [0, 0, 0, 0, 1, 1, 1]
        assert all(8 <= i < 11 for i in drawn[4:6])
        assert drawn[6] >= 11
        asked = asked_of(made)
        assert all(not text.startswith("More") for _, text in asked)
        assert sum(document >= 8 for document, _ in asked) == 4
        assert len(made.retold_R) == 3 + 1
        seen |= set(drawn[4:6])
    assert seen == {8, 9, 10}


def test_further_questions_are_asked_beside_a_documents_own() -> None:
    corpus_ = data(batch={"documents": 4, "more_questions": 1}, extra=extra(own=True))
    for step in range(6):
        made = corpus_[step]
        asked = asked_of(made)
        for document in made.document_ids_D.tolist():
            texts = [text for number, text in asked if number == document]
            assert len(texts) == 3
            assert f"More {document}?" in texts


def test_extra_data_that_is_not_asked_for_changes_nothing() -> None:
    one, other = data(seed=2), data(seed=2, extra=extra(own=True))
    for step in range(5):
        assert same(one[step], other[step])


def test_processes_draw_other_further_documents() -> None:
    batch = {"documents": 2, "extra": 1, "most_memories": 2}
    parts = [data(batch=batch, extra=extra(), process=p, processes=2) for p in (0, 1)]
    for step in range(4):
        first, second = (part[step].document_ids_D[2].item() for part in parts)
        assert step == 1 or first != second  # turns 2 and 3 are of two epochs


@pytest.mark.parametrize(
    ("batch", "settings", "message"),
    [
        ({"extra": 2}, {}, r"further questions for extra=2 and more_questions=0, got none"),
        ({"more_questions": 1}, {}, r"further questions for extra=0 and more_questions=1, got"),
        ({"extra": 4}, {"extra": extra()}, r"at least 4 documents with questions of the .* got 3"),
        ({"extra": -1}, {}, "extra of at least 0, got -1"),
        ({"more_questions": -1}, {}, "more_questions of at least 0, got -1"),
        ({"cropped_share": 1.5}, {}, "cropped_share from 0 to 1, got 1.5"),
        ({"joined_share": -0.5}, {}, "joined_share from 0 to 1, got -0.5"),
        (
            {"joined_share": 0.6, "cropped_share": 0.5},
            {},
            "cropped_share and joined_share of at most 1 together, got 0.5 and 0.6",
        ),
    ],
)
def test_what_cannot_be_drawn(batch: Any, settings: Any, message: str) -> None:
    with pytest.raises(InputError, match=f"expected {message}"):
        data(batch=batch, **settings)


def test_variants_are_made_where_they_are_asked_for_alone() -> None:
    assert isinstance(data(), TrainingData)
    assert data().variants is None
    assert data(batch={"cropped_share": 0.1}).variants is not None
