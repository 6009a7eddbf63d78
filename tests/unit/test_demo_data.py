"""The demo's passages and questions fit together and carry their licences."""

import json
from importlib.resources import files

DEMO = files("cmt") / "demo"


def records(name):
    return [json.loads(line) for line in (DEMO / name).read_text("utf-8").splitlines()]


def test_documents_are_complete_and_of_moderate_length():
    documents = records("documents.jsonl")
    assert 35 <= len(documents) <= 45
    assert len({d["id"] for d in documents}) == len(documents)
    assert len({d["text"] for d in documents}) == len(documents)
    assert len({d["title"] for d in documents}) >= 10
    for document in documents:
        assert list(document) == ["id", "title", "text", "source", "license"]
        assert document["text"] == document["text"].strip()
        assert 60 <= len(document["text"].split()) <= 200
        assert document["source"].startswith("https://en.wikipedia.org/wiki/")
        assert " " not in document["source"]
        assert document["license"] == "CC-BY-SA-3.0"


def test_every_answer_stands_in_its_document():
    texts = {d["id"]: d["text"] for d in records("documents.jsonl")}
    questions = records("questions.jsonl")
    assert 10 <= len(questions) <= 15
    assert len({q["id"] for q in questions}) == len(questions)
    for question in questions:
        assert list(question) == ["id", "question", "answers", "document", "license"]
        assert question["question"].endswith("?")
        assert question["license"] == "CC-BY-4.0"
        for answer in question["answers"]:
            assert answer in texts[question["document"]]
            assert len(answer.split()) <= 4


def test_the_answer_is_in_no_other_document():
    """Otherwise a wrong memory could give the right answer."""
    documents = records("documents.jsonl")
    for question in records("questions.jsonl"):
        holding = [d["id"] for d in documents if question["answers"][0] in d["text"]]
        assert holding == [question["document"]]


def test_notice_names_source_licences_and_counts():
    notice = (DEMO / "NOTICE.md").read_text("utf-8")
    for expected in ("SQuADShifts", "CC BY 4.0", "CC BY-SA 3.0", "never used in training"):
        assert expected in notice
    documents = records("documents.jsonl")
    articles = {d["title"] for d in documents}
    assert f"{len(documents)} passages from {len(articles)} articles" in " ".join(notice.split())
    assert f"{len(records('questions.jsonl'))} questions" in notice


def test_it_stays_a_small_sample():
    size = sum(len((DEMO / name).read_bytes()) for name in ("documents.jsonl", "questions.jsonl"))
    assert size < 60_000
