"""Batches: a pure function of seed and step, whole epochs, disjoint processes."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from typing import Any

import pytest
import torch

from cmt.datasets.qa import QADataset, Question
from cmt.errors import InputError
from cmt.reading import closing_tokens, opening_tokens, question_tokens
from cmt.records import Document
from cmt.training.data import BatchConfig, TrainingBatch, TrainingData
from tests import small, tiny

TOKENIZER = tiny.tokenizer()
TEXTS = ["A plain text about rivers and sand.", "Another, on silt.", "A third one."]


def data(
    dataset: QADataset | None = None, batch: dict[str, Any] | None = None, **settings: Any
) -> TrainingData:
    own = {"documents": 4, "texts": 0, "questions_per_document": 2, "group": 2, "most_memories": 3}
    return TrainingData(
        dataset or small.dataset(),
        TOKENIZER,
        BatchConfig(**{**own, **(batch or {})}),
        memory_tokens=4,
        max_piece_tokens=96,
        **settings,
    )


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, tuple | list):
        return len(a) == len(b) and all(map(same, a, b))
    if is_dataclass(a):
        return all(same(getattr(a, f.name), getattr(b, f.name)) for f in fields(a))
    return bool(a == b)


def test_a_batch_depends_on_seed_and_step_alone() -> None:
    first, second = data(seed=3, texts=TEXTS), data(seed=3, texts=TEXTS)
    second[9], second[0]
    for step in (5, 2, 11):
        torch.manual_seed(step)
        assert same(first[step], second[step])
    assert not same(first[2], first[3])
    assert not same(first[2], data(seed=4, texts=TEXTS)[2])


@pytest.mark.parametrize("documents", [2, 4])
def test_an_epoch_draws_every_document_once(documents: int) -> None:
    corpus = data(batch={"documents": documents, "most_memories": 2})
    per_epoch = corpus.steps_per_epoch()
    assert per_epoch == 8 // documents
    orders = []
    for epoch in range(3):
        steps = range(epoch * per_epoch, (epoch + 1) * per_epoch)
        drawn = [i for step in steps for i in corpus[step].document_ids_D.tolist()]
        assert sorted(drawn) == list(range(8))
        orders.append(drawn)
    assert orders[0] != orders[1] != orders[2]


def test_what_does_not_fill_a_batch_waits_for_another_epoch() -> None:
    corpus = data(batch={"documents": 3})
    assert corpus.steps_per_epoch() == 2
    left_over = set()
    for epoch in range(12):
        drawn = [i for step in (0, 1) for i in corpus[2 * epoch + step].document_ids_D.tolist()]
        assert len(set(drawn)) == 6
        left_over |= set(range(8)) - set(drawn)
    assert left_over == set(range(8)), "no document is left over for ever"


def test_processes_draw_disjoint_documents_that_make_up_the_epoch() -> None:
    parts = [
        data(batch={"documents": 2, "most_memories": 2}, process=p, processes=2) for p in (0, 1)
    ]
    assert parts[0].steps_per_epoch() == 2
    for epoch in range(3):
        drawn = [
            set(part[2 * epoch + step].document_ids_D.tolist()) for part in parts for step in (0, 1)
        ]
        assert set.union(*drawn) == set(range(8))
        assert sum(map(len, drawn)) == 8


def test_documents_of_one_article_come_together() -> None:
    corpus = data(small.dataset(12, articles=2), batch={"group": 2, "documents": 4})
    for step in range(6):
        articles = [i * 2 // 12 for i in corpus[step].document_ids_D.tolist()]
        assert articles[0] == articles[1]
        assert articles[2] == articles[3]


def segments(batch: TrainingBatch, group: int) -> list[list[int]]:
    """Token ids of each segment of a reading group."""
    found = batch.reading.packing.groups[group]
    return [
        batch.reading.tokens_N[index[valid]].tolist()
        for index, valid in zip(found.index_BT, found.valid_BT, strict=True)
    ]


def test_questions_answers_and_documents_belong_together() -> None:
    dataset = small.dataset()
    corpus = data(dataset, batch={"retold_share": 0.5, "texts": 2}, texts=TEXTS)
    questions = question_tokens(TOKENIZER, [q.text for q in dataset.questions])
    for step in range(8):
        batch = corpus[step]
        drawn = batch.document_ids_D.tolist()
        assert len(drawn) == 6
        assert all(i >= 8 for i in drawn[4:]), "plain texts come last"
        asked = segments(batch, 0) + segments(batch, 1)
        labels = batch.reading.labels_T[: batch.reading.answers].tolist()
        assert batch.single == len(segments(batch, 0)) == 4
        for place, segment in zip(batch.positives_Q.tolist(), asked, strict=True):
            [number] = [i for i, q in enumerate(questions) if segment[: len(q)] == q]
            question = dataset.questions[number]
            assert question.document == drawn[place]
            shortest = min(question.answers, key=len)
            answer = TOKENIZER(" " + shortest, add_special_tokens=False)["input_ids"] + [1]
            assert segment[len(questions[number]) :] == answer[:-1], "the last is only predicted"
            assert labels[: len(answer)] == answer
            labels = labels[len(answer) :]
        assert labels == []
        retold = [corpus.documents[drawn[i]] for i in batch.retold_R.tolist()]
        assert segments(batch, 2) == [[0, *document[:-1]] for document in retold]
        assert set(batch.retold_R.tolist()) >= {4, 5}, "plain texts are always retold"
        assert len(retold) == 2 + 2
        labels = batch.reading.labels_T[batch.reading.answers :].tolist()
        assert labels == [token for document in retold for token in document]
        assert 2 <= batch.memories <= batch.most_memories == 3


def test_targets_predict_the_labels() -> None:
    """The token after a target's place, where it is read at all, is its label."""
    batch = data(batch={"retold_share": 0.5})[0].reading
    starts: list[int] = []
    ends, place = set(), 0
    for group in batch.packing.groups:
        for length in group.valid_BT.sum(1).tolist():
            starts.append(place)
            place += length
            ends.add(place - 1)
    assert place == len(batch.tokens_N)
    for target, label in zip(batch.targets_T.tolist(), batch.labels_T.tolist(), strict=True):
        if target not in ends:
            assert batch.tokens_N[target + 1] == label
    for start in starts:
        assert batch.positions_N[start] == 97, "past the sink and the longest piece"


def test_long_documents_and_answers_are_cut() -> None:
    dataset = QADataset(
        name="long",
        documents=tuple(Document(text="word " * 300) for _ in range(2)),
        articles=(0, 0),
        questions=tuple(
            Question(id=str(i), text="What?", answers=("many words " * 30,), document=i)
            for i in range(2)
        ),
    )
    corpus = data(dataset, batch={"documents": 2, "most_memories": 2, "max_answer_tokens": 5})
    assert [len(document) for document in corpus.documents] == [96, 96]
    assert [len(answer) for answer in corpus.answers] == [6, 6]
    assert all(answer[-1] == 1 for answer in corpus.answers)


def test_documents_without_questions_are_not_drawn() -> None:
    whole = small.dataset()
    dataset = QADataset(
        name="gaps",
        documents=whole.documents,
        articles=whole.articles,
        questions=tuple(q for q in whole.questions if q.document != 3),
    )
    corpus = data(dataset, batch={"documents": 7})
    assert sorted(corpus[0].document_ids_D.tolist()) == [0, 1, 2, 4, 5, 6, 7]


def test_without_several_every_question_reads_one_memory() -> None:
    batch = data(batch={"several_share": 0.0, "retold_share": 0.0, "most_memories": 1})[0]
    assert batch.single == len(batch.positives_Q) == 8
    assert batch.memories == 1
    assert len(batch.reading.packing.groups) == 1


@pytest.mark.parametrize(
    ("batch", "settings", "message"),
    [
        ({"documents": 9}, {}, "at least 9 documents with questions .* got 8"),
        ({}, {"processes": 3}, "at least 12 documents with questions .* got 8"),
        (
            {"most_memories": 5},
            {},
            "most_memories from 2 to the 4 documents of a batch .* got 5",
        ),
        ({"most_memories": 1}, {}, "most_memories from 2 to the 4 documents .* got 1"),
        ({}, {"texts": ["fine", ""]}, "a token in every document, got none in no. 9"),
    ],
)
def test_a_corpus_that_cannot_fill_a_batch(
    batch: dict[str, Any], settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        data(batch=batch, **settings)


def test_texts_count_as_memories_to_read_beside() -> None:
    corpus = data(batch={"most_memories": 5, "texts": 1}, texts=TEXTS)
    assert corpus[0].compressor.documents == 5


def test_a_tokenizer_without_an_end() -> None:
    tokenizer = tiny.tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(InputError, match="a tokenizer with an end token"):
        TrainingData(
            small.dataset(),
            tokenizer,
            BatchConfig(documents=4),
            memory_tokens=4,
            max_piece_tokens=96,
        )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"documents": 0}, "documents of at least 1, got 0"),
        ({"texts": -1}, "texts of at least 0, got -1"),
        ({"questions_per_document": 0}, "questions_per_document of at least 1, got 0"),
        ({"group": 0}, "group of at least 1, got 0"),
        ({"most_memories": 0}, "most_memories of at least 1, got 0"),
        ({"max_answer_tokens": 0}, "max_answer_tokens of at least 1, got 0"),
        ({"retold_share": 1.1}, "retold_share from 0 to 1, got 1.1"),
        ({"several_share": -0.1}, "several_share from 0 to 1, got -0.1"),
        ({"dropped_share": 1.1}, "dropped_share from 0 to 1, got 1.1"),
        ({"compared_share": 2.0, "asked": True}, "compared_share from 0 to 1, got 2.0"),
        ({"compared_share": 0.3}, r"asked=True where .* \(compared_share=0.3\), got asked=False"),
    ],
)
def test_a_batch_without_sense(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=f"expected {message}"):
        BatchConfig(**settings)


def test_a_step_compresses_into_one_of_the_sizes_and_is_the_same_else() -> None:
    plain, mixed = data(seed=3), data(seed=3, memory_sizes=(1, 2))
    drawn = []
    for step in range(24):
        one, other = plain[step], mixed[step]
        drawn.append(other.compressor.memory_tokens)
        assert same(mixed[step], other)
        assert same(one.reading, other.reading)
        assert same(one.document_ids_D, other.document_ids_D)
        assert one.compressor.memory_tokens == 4
        if drawn[-1] == 4:
            assert same(one, other)
    assert set(drawn) == {1, 2, 4}


def test_shares_say_how_often_each_size_is_drawn() -> None:
    mixed = data(batch={"size_shares": (0.0, 0.75, 0.25)}, memory_sizes=(1, 2))
    drawn = [mixed[step].compressor.memory_tokens for step in range(60)]
    assert 1 not in drawn
    assert drawn.count(2) > drawn.count(4) > 0


def test_all_processes_draw_the_same_size() -> None:
    parts = [
        data(
            batch={"documents": 2, "most_memories": 2},
            memory_sizes=(2,), process=p, processes=2,
        )
        for p in (0, 1)
    ]  # fmt: skip
    for step in range(8):
        first, second = (part[step].compressor.memory_tokens for part in parts)
        assert first == second


@pytest.mark.parametrize("shares", [(0.5, 0.6), (1.5, -0.5), (float("nan"), 1.0)])
def test_shares_without_sense(shares: tuple[float, ...]) -> None:
    with pytest.raises(InputError, match="size_shares of at least 0 that sum to 1"):
        BatchConfig(size_shares=shares)


def test_shares_that_do_not_fit_the_sizes() -> None:
    with pytest.raises(InputError, match=r"one of size_shares for each memory size \(\(2, 4\)\)"):
        data(batch={"size_shares": (1.0,)}, memory_sizes=(2,))


def matched(batch: TrainingBatch) -> list[list[int]]:
    """The tokens that questions are matched by."""
    tokens, places = batch.compressor.tokens_N, batch.compressor.question_tokens
    return [part.tolist() for part in tokens[places].split(batch.compressor.question_lengths)]


def test_questions_are_matched_without_some_tokens_and_read_whole() -> None:
    whole = data()[3]
    thinned = data(batch={"dropped_share": 0.5})[3]
    assert same(thinned.reading, whole.reading)
    opening, closing = opening_tokens(TOKENIZER), closing_tokens(TOKENIZER)
    fewer = 0
    for part, full in zip(matched(thinned), matched(whole), strict=True):
        assert part[:opening] == full[:opening]
        assert part[-closing:] == full[-closing:]
        rest = iter(full[opening:-closing])
        assert all(token in rest for token in part[opening:-closing]), "in their order"
        fewer += len(full) - len(part)
    assert fewer > 0


def test_a_question_of_which_nothing_is_left_is_matched_by_its_frame() -> None:
    batch = data(batch={"dropped_share": 1.0})[0]
    frame = question_tokens(TOKENIZER, ["x"])[0]
    opening, closing = opening_tokens(TOKENIZER), closing_tokens(TOKENIZER)
    assert matched(batch) == [frame[:opening] + frame[-closing:]] * len(batch.positives_Q)


def test_a_share_of_the_questions_is_compared_and_nothing_else_changes() -> None:
    plain = data(batch={"asked": True})[2]
    batch = data(batch={"asked": True, "compared_share": 0.5})[2]
    assert batch.compared == batch.single // 2 > 0
    assert set(batch.reading.compared_T.tolist()) == set(range(batch.compared))
    assert plain.compared == 0
    assert same(plain.compressor, batch.compressor)
    own = len(plain.reading.labels_T)
    assert torch.equal(batch.reading.labels_T[:own], plain.reading.labels_T)
