"""Answers swapped for others of their kind: the text stays consistent, its form is kept."""

from __future__ import annotations

import gzip
import json
import random
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from cmt.datasets import hold_out, load_jsonl, load_squad
from cmt.datasets.inventing import NameMaker
from cmt.datasets.qa import QADataset, Question
from cmt.datasets.substitutes import Core, Pools, asked_for
from cmt.datasets.substitution import occurrences, substituted
from cmt.errors import InputError
from cmt.records import Document

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "make_substituted.py"
PEOPLE = "Ada Moss,Jon Sand,Una Bell,Lea Frost,Ivo Kern,Mia Roth,Max Orlik,Eva Lund,Tom Hale".split(
    ","
)
CITIES = "Selka Mirna Torvik Ulmen Varga Orlov Brenna Kelm Dorsa".split()
STONES = "granite marble slate basalt chalk flint quartz gneiss tuff".split()


def page(number: int) -> tuple[str, list[tuple[str, str]]]:
    who, city, stone, year = PEOPLE[number], CITIES[number], STONES[number], str(1810 + number)
    text = (
        f"The tower was built by {who} in {year}. It stands in the town of {city}, is made of "
        f"{stone} and cost $2,500 in {year}. {stone.title()} is heavy. On May 5, {who} was there."
    )
    return text, [
        ("Who built the tower?", who),
        (f"In what year did {who} build the tower?", year),
        (f"What town has the tower of {who}?", city),
        ("What stone is the tower made of?", stone),
        ("How much did it cost?", "$2,500"),
        ("When was the builder there?", "On May 5"),
    ]


def dataset(pages: Sequence[tuple[str, list[tuple[str, str]]]] = ()) -> QADataset:
    pages = [page(number) for number in range(9)] + list(pages)
    return QADataset(
        name="towers",
        documents=tuple(
            Document(text=text, id=f"towers-{n}", title=f"Tower {n}")
            for n, (text, _) in enumerate(pages)
        ),
        articles=tuple(range(len(pages))),
        questions=tuple(
            Question(id=f"{n}-{place}", text=question, answers=(answer,), document=n)
            for n, (_, asked) in enumerate(pages)
            for place, (question, answer) in enumerate(asked)
        ),
    )


def changed(text: str, *asked: tuple[str, str], seed: int = 0) -> tuple[str, dict[str, str]]:
    """The last document's version, and its answers by the question's number."""
    given = dataset([(text, list(asked))])
    made = substituted(given, share=1.0, seed=seed)
    [place] = [n for n, d in enumerate(made.documents) if d.id == "towers-9-v1"]
    answers = {
        q.id.removesuffix("-v1"): q.answers[0] for q in made.questions if q.document == place
    }
    return made.documents[place].text, answers


def test_everything_changes_together_and_nothing_else() -> None:
    given = dataset()
    made = substituted(given, copies=2, share=1.0)
    assert len(made.documents) == 18
    assert len(made.questions) == len(given.questions) * 2
    before = {question.id: question for question in given.questions}
    for question in made.questions:
        document = made.documents[question.document]
        old = before[question.id.rsplit("-v", 1)[0]]
        [answer] = question.answers
        assert answer in document.text
        assert answer != old.answers[0]
        assert not any(occurrences(Core(text=old.answers[0], kind="phrase"), document.text))
        assert document.title == given.documents[old.document].title
        copies = 2
        assert made.articles[question.document] // copies == given.articles[old.document]
    for index, document in enumerate(made.documents):
        own = [question for question in made.questions if question.document == index]
        who, year, city, stone, cost, day = (question.answers[0] for question in own)
        assert document.text == (
            f"The tower was built by {who} in {year}. It stands in the town of {city}, is made of "
            f"{stone} and cost {cost} in {year}. {stone.title()} is heavy. {day}, {who} was there."
        )
        assert own[1].text == f"In what year did {who} build the tower?"
        assert own[2].text == f"What town has the tower of {who}?"
        assert (who in PEOPLE, city in CITIES, stone in STONES) == (True, True, True)
        assert re.fullmatch(r"\$[2-9],[1-9]00|\$1,[1-9]00", cost)
        assert 1700 < int(year) < 1900
        assert re.fullmatch(r"On [A-Z][a-z]+ \d{1,2}", day)


def test_the_same_seed_makes_the_same() -> None:
    given = dataset()
    made = substituted(given, copies=2, seed=3)
    assert made == substituted(given, copies=2, seed=3)
    assert made.documents != substituted(given, copies=2, seed=4).documents
    texts = [document.text for document in made.documents]
    assert len(set(texts)) == len(texts)


def test_a_share_changes_some() -> None:
    given = dataset()
    old = {question.id: question.answers for question in given.questions}
    made = substituted(given, copies=2, share=0.4)
    kept = sum(q.answers == old[q.id.rsplit("-v", 1)[0]] for q in made.questions)
    assert 0 < kept < len(made.questions)


@pytest.mark.parametrize(
    "rest",
    [
        "Weiss was Swiss.",  # a part of the name
        "The WEISS tower fell.",
        "The Weissian school began.",  # a relative of it
        "She was called CW.",  # initials
    ],
)
def test_a_name_stays_that_stands_elsewhere_in_part(rest: str) -> None:
    text, answers = changed(
        f"Clara Weiss came in 1901. {rest}", ("Who came?", "Clara Weiss"), ("When?", "1901")
    )
    assert text.startswith("Clara Weiss came in ")
    assert text.endswith(rest)
    assert answers["9-0"] == "Clara Weiss"
    assert answers["9-1"] != "1901"


def test_answers_within_answers() -> None:
    """The inner one changes, and with it the outer; those that cross stay."""
    text, answers = changed(
        "It fell in the spring of 1901 after Clara Weiss met Jon Brandt.",
        ("When did it fall?", "in the spring of 1901"),
        ("In what year did it fall?", "1901"),
        ("Who left?", "Clara Weiss"),
        ("Who else?", "Weiss met Jon Brandt"),
    )
    assert answers["9-0"] == f"in the spring of {answers['9-1']}"
    assert answers["9-1"] != "1901"
    assert answers["9-2"] == "Clara Weiss"
    assert answers["9-0"] in text


def test_clauses_and_long_answers_stay() -> None:
    long, clause = "five old men with one dog and a cart", "because they were late"
    text, answers = changed(
        f"In 1901 came {long} and left {clause}.",
        ("Who came?", long), ("Why?", clause), ("When?", "1901"),
    )  # fmt: skip
    assert answers["9-0"] == long
    assert answers["9-1"] == clause
    assert "1901" not in text


@pytest.mark.parametrize(
    ("old", "form"),
    [
        ("1984", r"(19|20)\d\d"),
        ("1980s", r"(19|20)\d0s"),
        ("12,345", r"[1-9]\d,\d{2}[1-9]"),
        ("30,000", r"[1-9]0,000"),
        ("7", r"[2-9]"),
        ("3.14", r"[1-9]\.\d\d"),
        ("0.5", r"0\.[1-9]"),
        ("100", r"[1-9]00"),
        ("4.00", r"[1-9]\.\d\d"),
        ("19th", r"(1\d|20)th"),
        ("3rd", r"(2nd|3rd|[4-9]th)"),
        ("7:30", r"\d{1,2}:\d\d"),
        ("May 5", r"[A-Z][a-z]+ \d{1,2}"),
        ("5 May", r"\d{1,2} [A-Z][a-z]+"),
        ("four", r"[a-z]+"),
        ("thirty", r"[a-z]+ty"),
    ],
)
def test_numbers_keep_their_form(old: str, form: str) -> None:
    pools, rng = Pools(dataset()), random.Random(0)
    drawn = {str(pools.draw(Core(text=old, kind="number"), rng)) for _ in range(60)}
    assert all(re.fullmatch(form, new) for new in drawn)
    assert len(drawn) > 3


def test_whole_words_only() -> None:
    text = "1984, 1984s, 11984, 3.1984, F-1984, 1984-85, 1,984 and (1984)."
    found = [
        text[start:] for start, _ in sorted(occurrences(Core(text="1984", kind="number"), text))
    ]
    assert [rest[:6] for rest in found] == ["1984, ", "1984-8", "1984)."]
    text = "Norse, Norse's, non-Norse, Norse-like, Norsemen"
    found = [
        text[start:] for start, _ in sorted(occurrences(Core(text="Norse", kind="name"), text))
    ]
    assert [rest[:7] for rest in found] == ["Norse, ", "Norse's"]


def test_what_a_question_asks_for() -> None:
    heads = frozenset(("city", "record", "label", "concept"))
    for question, expected in (
        ("Who built it?", ("who", "who")),
        ("By whom was it built?", ("who", "who")),
        ("In which old city was it?", ("what", "what city")),
        ("What is the name of the city in the east?", ("what", "what city")),
        ("What record label signed her?", ("what", "what label")),
        ("What concept explains it?", ("what", "what concept")),
        ("How many were there?", ("how", "how many")),
        ("What did they measure?", ("what", "what … measure")),
        ("The name was given what?", ("what", "what")),
        ("Name it.", ("other", "other")),
    ):
        assert asked_for(question, heads) == expected


def test_names_are_invented(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cmt.datasets.inventing.SEEN", 1)  # so few names are spelled one way
    known = {word for name in PEOPLE + CITIES for word in name.split()}
    made = substituted(dataset(), copies=3, share=1.0, invented=1.0)
    given = [q for q in made.questions if q.text.startswith("Who built")]
    assert len(given) > 20
    for question in given:
        text = made.documents[question.document].text
        assert text.count(question.answers[0]) == 2  # everywhere, as a drawn one
        assert known.isdisjoint(question.answers[0].split())
    drawn = {q.answers[0] for q in substituted(dataset(), copies=3, share=1.0).questions}
    assert drawn.issuperset(PEOPLE)
    assert made == substituted(dataset(), copies=3, share=1.0, invented=1.0)


def test_a_name_keeps_its_form(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cmt.datasets.inventing.SEEN", 1)
    starts, ends = "Sel Mir Tor Bren Kal Var".split(), "ka na vik orna isa elin".split()
    cities = [start + end for start in starts for end in ends]
    maker = NameMaker([*cities, *(f"{city} River" for city in cities)], common=["May"])
    rng = random.Random(3)
    for name, form in (
        ("Torvik River", r"(?!Torvik)[A-Z][a-z]+ River"),
        ("Lake of the Selkan-Mirna", r"(?!Lake)[A-Z][a-z]+ of the [A-Z][a-z]+-[A-Z][a-z]+"),
        ("J. R. Torna", r"[A-Z]\. [A-Z]\. [A-Z][a-z]+"),
    ):
        made = {maker.like(name, rng) for _ in range(20)}
        assert len(made) > 5, made
        assert all(re.fullmatch(form, str(one)) for one in made), made
    assert maker.like("River", rng) is None  # its only word tells a kind
    assert maker.like("May 1823", rng) is None
    assert NameMaker([]).like("Torvik", rng) is None  # nothing to spell like


def test_users_mistakes() -> None:
    with pytest.raises(InputError, match="at least 1 copy a document, got copies=0"):
        substituted(dataset(), copies=0)
    with pytest.raises(InputError, match=r"share from 0 to 1, got 1\.5"):
        substituted(dataset(), share=1.5)
    with pytest.raises(InputError, match=r"invented from 0 to 1, got -0\.1"):
        substituted(dataset(), invented=-0.1)
    with pytest.raises(InputError, match="expected an answer that can be changed, found none"):
        substituted(dataset(), share=0)
    with pytest.raises(InputError, match="without null characters, got 'In 1901"):
        changed("In 1901\0it fell.", ("When?", "1901"))


def squad_file(file: Path) -> Path:
    """The nine pages as articles of SQuAD's format."""
    articles = []
    for number in range(9):
        text, asked = page(number)
        qas = [
            {"id": f"{number}-{n}", "question": q, "answers": [{"text": a}]}
            for n, (q, a) in enumerate(asked)
        ]
        articles.append({"title": f"T{number}", "paragraphs": [{"context": text, "qas": qas}]})
    file.write_bytes(gzip.compress(json.dumps({"data": articles}).encode()))
    return file


def run(folder: Path, *arguments: str) -> str:
    command = [sys.executable, str(SCRIPT), *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout


def test_the_script_leaves_held_out_articles_out(tmp_path: Path) -> None:
    squad_file(tmp_path / "train.json.gz")
    said = run(tmp_path, "train.json.gz", "out.jsonl.gz", "--articles", "2", "--share", "1")
    assert "14 documents, 84 questions" in said
    made = load_jsonl(tmp_path / "out.jsonl.gz")
    assert len(made.documents) == 14
    assert len(set(made.articles)) == 14  # two copies of seven
    assert {document.title for document in made.documents} < {f"T{n}" for n in range(9)}


def test_the_script_takes_further_questions_with_squad(tmp_path: Path) -> None:
    """Those on a text that SQuAD has join SQuAD's own on it."""
    training, _ = hold_out(load_squad(squad_file(tmp_path / "train.json.gz")), articles=1)
    known, asked = training.documents[0].text, "Who was there on May 5?"
    new = "Sir Rob Ross came to the mill in 1877."
    more = [
        {"text": known, "question": asked, "answers": training.questions[0].answers, "title": "M"},
        {"text": new, "question": "When did he come?", "answers": ["1877"], "title": "N"},
    ]
    lines = "\n".join(json.dumps({"id": f"more-{n}", **one}) for n, one in enumerate(more))
    (tmp_path / "more.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    files = ("train.json.gz", "more.jsonl.gz", "out.jsonl.gz")
    said = run(tmp_path, *files, "--articles", "1", "--share", "1", "--copies", "1")
    assert "9 documents, 50 questions, " in said
    made = load_jsonl(tmp_path / "out.jsonl.gz")
    titles = {document.title for document in training.documents}
    assert {document.title for document in made.documents} == titles | {"N"}
    assert len(set(made.articles)) == 9
    own = [q for q in made.questions if q.document == 0]
    assert (len(own), own[-1].text.split()[0]) == (7, "Who")
    assert own[-1].answers == own[0].answers != training.questions[0].answers
    [last] = [q for q in made.questions if q.text == "When did he come?"]
    assert last.answers != ("1877",)
    assert last.answers[0] in made.documents[last.document].text
