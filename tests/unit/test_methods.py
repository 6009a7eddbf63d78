"""The matrix: every method of the benchmark keeps the interface's promises, on a tiny model."""

from __future__ import annotations

from pathlib import Path

import pytest

from cmt.methods import ABLATIONS, METHODS, Method, Row
from cmt.methods.method import Reads
from tests import small
from tests.unit import method_pieces

ROWS = {**METHODS, **ABLATIONS}
DATA = small.dataset(20)
ASKED = [question.text for question in DATA.questions][:10]


@pytest.fixture(scope="module", params=list(ROWS))
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("methods")


@pytest.fixture(scope="module")
def row(name: str) -> Row:
    return ROWS[name]


@pytest.fixture(scope="module")
def method(row: Row, folder: Path) -> Method:
    return method_pieces.build(row, folder)


def test_learning_and_answering(method: Method, row: Row) -> None:
    method.reset()
    method.learn(DATA.documents[:12])
    method.learn(DATA.documents[12:])
    replies = method.answer(ASKED)
    assert len(replies) == len(ASKED)
    assert all(isinstance(reply.text, str) and reply.text_tokens > 0 for reply in replies)
    found = [reply.documents for reply in replies]
    assert [bool(own) for own in found] == [row.finds] * len(ASKED)
    for own in found:
        assert len(set(own)) == len(own) <= 5
        assert all(0 <= number < 20 for number in own)


def test_two_calls_learn_what_one_learns_and_reset_forgets(method: Method) -> None:
    method.reset()
    empty = method.stored()
    method.learn(DATA.documents[:12])
    method.learn(DATA.documents[12:])
    twice, stored = method.answer(ASKED), method.stored()
    method.reset()
    assert method.stored() == empty
    method.learn(DATA.documents)
    assert method.stored() == stored
    assert [reply.text for reply in method.answer(ASKED)] == [reply.text for reply in twice]


def test_a_memory_that_is_told_is_the_one_that_is_read(method: Method) -> None:
    if not isinstance(method, Reads):
        pytest.skip("no memories to choose from")
    method.reset()
    method.learn(DATA.documents)
    numbers = [3 * number % 20 for number in range(len(ASKED))]
    told = method.answer_from(ASKED, numbers)
    assert [reply.documents[0] for reply in told] == numbers
    method.reset()
    method.learn(DATA.documents[9:10])
    alone = method.answer_from(ASKED[3:4], [0])
    assert alone[0].text == told[3].text
    assert alone[0].memory_tokens == told[3].memory_tokens


def test_bytes_grow_with_documents_or_a_copy_is_kept(method: Method, row: Row, name: str) -> None:
    method.reset()
    none = method.stored()
    assert none.documents == 0
    method.learn(DATA.documents)
    stored = method.stored()
    assert stored.fixed == none.fixed
    if name == "closed_book":
        assert stored.documents == stored.fixed == 0
    elif row.tunes or name == "tuned_closed_book":
        assert stored.documents == 0
        assert stored.fixed > 0
    else:
        assert stored.documents > 0


def test_learning_writes_no_weight_but_a_copys(method: Method, row: Row) -> None:
    method.reset()
    before = method.reader.digest()
    method.learn(DATA.documents)
    assert (method.reader.digest() == before) == (not row.tunes)
    method.reset()
    assert method.reader.digest() == before


def test_built_again_it_is_trained_no_more_and_writes_no_base_model(
    row: Row, folder: Path, method: Method
) -> None:
    states = folder / "states"
    before = {file: file.stat().st_size for file in states.rglob("metrics.jsonl")}
    made = method_pieces.materials(folder)
    digest = made.base.digest()
    again = row.build(made, method_pieces.tiny_config(row))
    assert {file: file.stat().st_size for file in states.rglob("metrics.jsonl")} == before
    method.reset()
    for built in (method, again):
        built.learn(DATA.documents)
    assert [r.text for r in again.answer(ASKED)] == [r.text for r in method.answer(ASKED)]
    assert made.base.digest() == digest
