"""Questions that a tuned copy writes, kept where another answers alike."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cmt.base_model import BaseModel
from cmt.datasets import cloze_questions
from cmt.methods.asking_tuned import TunedAsker, writing_tuned
from cmt.methods.few_shot import after_passages, unsolved
from cmt.methods.materials import Materials
from cmt.methods.tuned_copy import QaTuningConfig, answer_tokens, copy_of, tune
from cmt.tokens import token_ids
from tests import small
from tests.unit import method_pieces

DATA = small.dataset(2)
TEXTS = [document.text for document in DATA.documents]
ASKED = {(q.text, min(q.answers, key=len)) for q in DATA.questions}
BY_HEART = QaTuningConfig(learning_rate=3e-3, questions=4, most_epochs=1000)


@pytest.fixture(scope="module")
def copies(tmp_path_factory: pytest.TempPathFactory) -> tuple[BaseModel, BaseModel]:
    """A writer and a reader that know two documents' questions by heart."""
    folder = tmp_path_factory.mktemp("copies")
    materials = method_pieces.materials(folder, steps=200, training=DATA, qa_training=DATA)
    return writing_tuned(materials, BY_HEART), _reader(materials)


def _reader(materials: Materials) -> BaseModel:
    reader = copy_of(materials.base)
    passages, line = token_ids(reader.tokenizer, TEXTS), token_ids(reader.tokenizer, ["\n"])[0]
    questions = token_ids(reader.tokenizer, [unsolved([], q.text) for q in DATA.questions])
    prompts = [
        after_passages([passages[q.document]], line, tokens)
        for q, tokens in zip(DATA.questions, questions, strict=True)
    ]
    answers = answer_tokens(reader, [q.answers for q in DATA.questions], 24)
    tune(reader, prompts, answers, materials, BY_HEART, materials.folder / "reader")
    return reader


@pytest.mark.parametrize("batch_size", [1, 8])
def test_questions_known_by_heart_are_written_and_agreed(
    copies: tuple[BaseModel, BaseModel], batch_size: int
) -> None:
    asker = TunedAsker(*copies, temperature=0.0, batch_size=batch_size)
    asked = list(asker([*TEXTS, "Nothing."]))
    assert {(one.question, one.answer) for own in asked[:2] for one in own} == ASKED
    assert [one.form for one in asked[0]] == [one.question.split()[0].lower() for one in asked[0]]
    assert not asked[2], "an answer that isn't in the text is none"
    assert (asker.written >= 4, asker.agreed) == (True, 4)


def test_what_another_reader_answers_otherwise_is_left_out(
    copies: tuple[BaseModel, BaseModel],
) -> None:
    writer, reader = copies
    # the writer itself answers alike, but writes on where an answer ends
    assert list(TunedAsker(writer, writer, temperature=0.0)(TEXTS)) == [[], []]
    made = cloze_questions(TEXTS, asker=TunedAsker(writer, reader, temperature=0.0), most=1)
    assert len(made.questions) == 2


def test_a_copy_is_loaded_where_it_was_tuned(tmp_path_factory: pytest.TempPathFactory) -> None:
    materials = method_pieces.materials(tmp_path_factory.mktemp("again"), training=DATA)
    first, second = (writing_tuned(materials, replace(BY_HEART)) for _ in range(2))
    assert first.digest() == second.digest() != materials.base.digest()
