"""Streams, retention, robustness, forgetting, choice: with methods whose answers are known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from cmt.base_model import BaseModel
from cmt.errors import InputError
from cmt.evaluation import costs
from cmt.evaluation.choosing import trials
from cmt.evaluation.costs import Cost, metered
from cmt.evaluation.forgetting import knowledge, text_loss
from cmt.evaluation.stream import (
    mixed,
    reading,
    retention,
    robustness,
    run_stream,
    sampled,
    stream_and_retention,
)
from cmt.evaluation.stream_costs import measure_costs
from cmt.methods import METHODS
from cmt.methods.answering import AnswerConfig
from cmt.methods.method import Reply, Stored
from cmt.methods.tuned_copy import copy_of
from cmt.records import Document
from tests import small, tiny
from tests.unit import method_pieces

DATA = small.dataset(20)
ANSWERS = {question.text: question.answers[0] for question in DATA.questions}
TEXT_OF = {q.text: DATA.documents[q.document].text for q in DATA.questions}
UNRELATED = [Document(text=f"Nothing about it, number {i}.") for i in range(30)]


class Forgetful:
    """Answers from the last `capacity` documents, finds them at rank 2."""

    def __init__(self, capacity: int = 1000) -> None:
        self.reader: BaseModel = tiny.base_model()
        self.capacity = capacity
        self.calls: list[int] = []
        self.reset()

    def reset(self) -> None:
        self.texts: list[str] = []

    def learn(self, documents: Sequence[Document]) -> None:
        self.calls.append(len(documents))
        self.texts += [document.text for document in documents]

    def answer(self, questions: Sequence[str]) -> list[Reply]:
        known = self.texts[-self.capacity :]
        replies = []
        for question in questions:
            own = TEXT_OF[question]
            text = ANSWERS[question] if own in known else "no"
            place = self.texts.index(own) if own in self.texts else 0
            other = 0 if place else 1
            replies.append(
                Reply(text=text, text_tokens=10, memory_tokens=4, documents=(other, place))
            )
        return replies

    def stored(self) -> Stored:
        return Stored(documents=8 * len(self.texts), fixed=100)


class Clocked(Forgetful):
    """Takes a second to learn a document, a hundred to answer, however many the questions."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, bytes_a_document: int = 8) -> None:
        self.now = 0.0
        self.asked: list[int] = []
        self.bytes_a_document = bytes_a_document
        monkeypatch.setattr(costs, "time", SimpleNamespace(perf_counter=lambda: self.now))
        super().__init__(capacity=10)

    def learn(self, documents: Sequence[Document]) -> None:
        self.now += len(documents)
        super().learn(documents)

    def answer(self, questions: Sequence[str]) -> list[Reply]:
        self.now += 100
        self.asked.append(len(questions))
        return super().answer(questions)

    def stored(self) -> Stored:
        return Stored(documents=self.bytes_a_document * len(self.texts), fixed=100)


def test_a_stream_is_learned_asked_and_measured() -> None:
    method = Forgetful()
    method.learn(DATA.documents[:3])  # forgotten first
    method.calls.clear()
    result = run_stream(method, DATA, window=8)
    assert method.calls == [8, 8, 4]
    assert (result.documents, result.questions) == (20, 40)
    assert result.scores.exact_match == 100
    assert result.recall == {1: 0.0, 5: 100.0}
    # "in 1823" is right, but not the shortest answer: F1 2/3
    assert result.shortest_f1 == pytest.approx(100 * (1 + 2 / 3) / 2)
    costs = result.costs
    assert (costs.bytes_stored, costs.fixed_bytes) == (8, 100)
    assert (costs.text_tokens, costs.memory_tokens) == (10, 4)
    assert costs.learn_peak_bytes is None  # no device memory on a CPU
    assert costs.learn_seconds > 0
    assert costs.answer_seconds > 0


def test_half_forgotten_is_half_right() -> None:
    result = run_stream(Forgetful(capacity=10), DATA)
    assert result.scores.exact_match == 50


def test_retention_asks_the_first_documents_again_and_again() -> None:
    points = retention(Forgetful(capacity=10), DATA, first=6, step=5)
    assert [point.documents for point in points] == [6, 11, 16, 20]
    assert all(point.questions == 12 for point in points)
    expected = [100, 100 * 5 / 6, 0, 0]
    assert [point.scores.exact_match for point in points] == pytest.approx(expected)


def test_retention_of_a_stream_that_is_too_short() -> None:
    with pytest.raises(InputError, match="expected at least 21 documents in towers, got 20"):
        retention(Forgetful(), DATA, first=21)
    with pytest.raises(InputError, match="expected step of at least 1, got 0"):
        retention(Forgetful(), DATA, first=2, step=0)


def test_one_pass_is_stream_and_retention(monkeypatch: pytest.MonkeyPatch) -> None:
    method = Clocked(monkeypatch)
    result, points = stream_and_retention(method, DATA, first=6, step=5, window=4)
    assert method.calls == [4, 2, 4, 1, 4, 1, 4]
    assert method.asked == [12, 12, 12, 12, 40]
    assert result.costs.learn_seconds == 1  # the questions on the way are not counted
    assert result.costs.answer_seconds == 100 / 40
    assert points == retention(Clocked(monkeypatch), DATA, first=6, step=5)
    assert result == run_stream(Clocked(monkeypatch), DATA)
    with pytest.raises(InputError, match="expected at least 21 documents in towers, got 20"):
        stream_and_retention(Clocked(monkeypatch), DATA, first=21)


@pytest.mark.parametrize("row", ["closed_book", "uniform", "kv_memory", "cmt_paper"])
def test_a_methods_answers_are_the_same_in_one_pass(row: str, tmp_path: Path) -> None:
    method = method_pieces.build(METHODS[row], tmp_path)
    result, points = stream_and_retention(method, DATA, first=6, step=7, window=4)
    apart = run_stream(method, DATA, window=4)
    assert result.scores == apart.scores  # and so every answer
    assert result.recall == apart.recall
    assert points == retention(method, DATA, first=6, step=7)


def test_costs_are_measured_on_a_part_of_the_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    method = Clocked(monkeypatch)
    made = measure_costs(method, DATA, learned=12, asked=7, warm=3, window=5)
    assert method.calls == [3, 5, 5, 2, 5, 3]  # to warm up, metered, the rest of the stream
    assert method.asked == [6, 7]
    assert method.texts == [document.text for document in DATA.documents]
    assert (made.documents, made.questions, made.learned) == (12, 7, 20)
    assert made.costs.learn_seconds == 1
    assert made.costs.answer_seconds == 100 / 7
    assert (made.costs.bytes_stored, made.costs.fixed_bytes) == (8, 100)
    assert (made.costs.text_tokens, made.costs.memory_tokens) == (10, 4)
    assert made.costs.learn_peak_bytes is None


def test_what_stores_nothing_is_asked_after_the_metered_part(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    method = Clocked(monkeypatch, bytes_a_document=0)
    made = measure_costs(method, DATA, learned=12, asked=100, warm=3, warm_asked=2)
    assert method.calls == [3, 12]
    assert method.asked == [2, 40]
    assert (made.documents, made.questions, made.learned) == (12, 40, 12)
    assert (made.costs.learn_seconds, made.costs.bytes_stored) == (1, 0)


def test_costs_of_a_short_stream_or_of_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    late = replace(DATA, questions=DATA.questions[-2:])  # none on the documents to warm up with
    method = Clocked(monkeypatch)
    made = measure_costs(method, late, learned=100, warm=3)
    assert method.calls == [3, 20]
    assert method.asked == [2]
    assert (made.documents, made.questions, made.learned) == (20, 2, 20)
    with pytest.raises(InputError, match="expected learned of at least 1, got 0"):
        measure_costs(method, DATA, learned=0)
    with pytest.raises(InputError, match="expected at least one question in towers, got none"):
        measure_costs(method, replace(DATA, questions=()))


class Told(Forgetful):
    """Answers from the document that it is told to read."""

    def answer_from(self, questions: Sequence[str], documents: Sequence[int]) -> list[Reply]:
        read = [self.texts[number] for number in documents]
        return [
            Reply(text=ANSWERS[question] if own == TEXT_OF[question] else "no", text_tokens=10)
            for question, own in zip(questions, read, strict=True)
        ]


def test_reading_tells_the_right_memory_from_a_wrong_one() -> None:
    scores = reading(Told(), DATA)
    assert scores["own"].exact_match == 100
    assert scores["another"].f1 == 0
    with pytest.raises(InputError, match="told which memory to read, got Forgetful"):
        reading(Forgetful(), DATA)


def test_unrelated_documents_are_mixed_in() -> None:
    mixture = mixed(DATA.documents, UNRELATED, 0.5)
    assert len(mixture.documents) == 30
    assert [mixture.documents[place] for place in mixture.places] == list(DATA.documents)
    others = [d for i, d in enumerate(mixture.documents) if i not in set(mixture.places)]
    assert len({d.text for d in others}) == 10
    assert mixed(DATA.documents, UNRELATED, 0.5) == mixture
    assert mixed(DATA.documents, UNRELATED, 0.5, seed=1) != mixture
    assert mixed(DATA.documents, UNRELATED, 0).documents == DATA.documents
    for share in (-0.1, 1.6):
        with pytest.raises(InputError, match=r"expected a share from 0 to 1\.50"):
            mixed(DATA.documents, UNRELATED, share)


def test_robustness_knows_where_documents_stand_among_the_others() -> None:
    points = robustness(Forgetful(), DATA, UNRELATED, [0.0, 1.5])
    assert [(point.documents, point.unrelated) for point in points] == [(20, 0), (50, 30)]
    assert all(point.scores.exact_match == 100 for point in points)
    assert all(point.recall == {1: 0.0, 5: 100.0} for point in points)
    (weak,) = robustness(Forgetful(capacity=25), DATA, UNRELATED, [1.5])
    assert weak.scores.exact_match < 100


def test_no_recall_where_nothing_is_looked_for() -> None:
    class Blind(Forgetful):
        def answer(self, questions: Sequence[str]) -> list[Reply]:
            return [Reply(text="no", text_tokens=1) for _ in questions]

    assert run_stream(Blind(), DATA).recall == {}


def test_streams_of_nothing() -> None:
    with pytest.raises(InputError, match="expected at least one question in towers, got none"):
        run_stream(Forgetful(), replace(DATA, questions=()))
    with pytest.raises(InputError, match="expected window of at least 1, got 0"):
        run_stream(Forgetful(), DATA, window=0)


def test_a_sample_keeps_documents_and_order() -> None:
    few = sampled(DATA, 7)
    assert few.documents == DATA.documents
    places = [DATA.questions.index(question) for question in few.questions]
    assert places == sorted(places)
    assert len(places) == 7
    assert sampled(DATA, 7) == few
    assert sampled(DATA, 40) is DATA


def test_the_loss_on_plain_text_is_that_of_its_windows() -> None:
    reader = tiny.base_model()
    text = "The lighthouse of Arbon was built in 1823. " * 40
    loss, tokens = text_loss(reader, text, 600)
    ids = reader.tokenizer(text)["input_ids"][:600]
    assert tokens == len(ids) == 600
    total = 0.0
    for window in (ids[:512], ids[512:]):
        row = torch.tensor([[reader.tokenizer.bos_token_id, *window]])
        logits = reader.model(row).logits[0, :-1].log_softmax(-1)
        total -= logits.gather(1, row[0, 1:, None]).sum().item()
    assert loss == pytest.approx(total / 600, rel=1e-5)
    with pytest.raises(InputError, match="expected a text of at least 2 tokens, got 0"):
        text_loss(reader, "", 600)


def test_knowledge_changes_with_the_readers_weights() -> None:
    reader = copy_of(tiny.base_model())
    answers = AnswerConfig(max_new_tokens=2)
    few = sampled(DATA, 4)
    before = knowledge(reader, "The sea is near. " * 20, few, "", answers)
    assert before.unrelated.f1 >= 0
    assert knowledge(reader, "The sea is near. " * 20, few, "", answers) == before
    with torch.no_grad():
        for parameter in reader.model.parameters():
            parameter.mul_(1.1)
    after = knowledge(reader, "The sea is near. " * 20, few, "", answers)
    assert after.text_loss != before.text_loss


@dataclass(frozen=True, kw_only=True)
class Capacity:
    capacity: int = 5
    colour: str = "red"


def test_the_best_setting_comes_first() -> None:
    made = trials(
        lambda config: Forgetful(config.capacity), Capacity(), {"capacity": (5, 20, 10)}, DATA
    )
    assert [trial.settings["capacity"] for trial in made] == [20, 10, 5]
    assert [trial.exact_match for trial in made] == [100, 50, 25]
    both = {"capacity": (5, 10), "colour": ("red", "blue")}
    assert len(trials(lambda config: Forgetful(config.capacity), Capacity(), both, DATA)) == 4
    with pytest.raises(InputError, match="expected a setting in capacity, colour, got 'size'"):
        trials(Forgetful, Capacity(), {"size": (1,)}, DATA)
    with pytest.raises(InputError, match="at least one value of capacity to try, got none"):
        trials(Forgetful, Capacity(), {"capacity": ()}, DATA)


def test_costs_are_measured_around_a_step() -> None:
    with metered(torch.device("cpu")) as cost:
        sum(range(10_000))
    assert cost.seconds > 0
    assert cost.peak_bytes is None


def test_costs_of_several_steps_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(costs, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    in_use, peaks = iter((100, 0)), iter((400, 300))
    for name, value in (
        ("synchronize", lambda device: None),
        ("reset_peak_memory_stats", lambda device: None),
        ("memory_allocated", lambda device: next(in_use)),
        ("max_memory_allocated", lambda device: next(peaks)),
    ):
        monkeypatch.setattr(torch.cuda, name, value)
    cost = Cost()
    for seconds in (2, 3):
        with metered(torch.device("cuda"), cost) as same:
            now[0] += seconds
        assert same is cost
        now[0] += 50  # between them
    assert cost.seconds == 5
    assert cost.peak_bytes == 300  # above what was in use before the first
