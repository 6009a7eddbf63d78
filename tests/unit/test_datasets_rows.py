"""StreamingQA, ArchivalQA, RealTimeQA and jsonl: small files in their formats, their errors."""

import csv
import gzip
import json

import pytest

from cmt.datasets import load_archivalqa, load_jsonl, load_realtimeqa, load_streamingqa
from cmt.errors import DocumentError, InputError

STREAMING = (
    "question,answers,text\n"
    '"Who won?","Ada Moss\\Moss","Ada Moss won, again."\n'
    "Who lost?,Ivo,Ivo lost on Sunday.\n"
    'What happened again?,won,"Ada Moss won, again."\n'
)
ARCHIVAL = (
    "question,answer,ans_paragraph,ans_text,doc_id,para_num\n"
    "Second?,two,Paragraph two.,whole text two,77,2\n"
    "Other?,other,Another document.,all other,12,0\n"
    "First?,one,Paragraph one.,whole text one,77,1\n"
    "Again?,two,Paragraph two.,whole text two,77,2\n"
)


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def lines(path, *records):
    return write(path, "".join(json.dumps(record) + "\n" for record in records))


def test_streamingqa_groups_the_questions_of_a_passage(tmp_path):
    dataset = load_streamingqa(write(tmp_path / "test.csv", STREAMING))
    assert [d.text for d in dataset.documents] == ["Ada Moss won, again.", "Ivo lost on Sunday."]
    assert [(q.text, q.document) for q in dataset.questions] == [
        ("Who won?", 0),
        ("What happened again?", 0),
        ("Who lost?", 1),
    ]
    assert dataset.questions[0].answers == ("Ada Moss", "Moss")
    assert dataset.documents[1].id == "streamingqa-test-00001"


@pytest.mark.parametrize("name", ["val.csv", "streamingqa_val.csv"])
def test_a_split_is_found_in_a_folder(tmp_path, name):
    write(tmp_path / name, STREAMING)
    assert len(load_streamingqa(tmp_path, split="val").questions) == 3


def test_splits_that_are_wrong_missing_or_ambiguous(tmp_path):
    file = write(tmp_path / "val.csv", STREAMING)
    with pytest.raises(InputError, match=r"expected split in .*'test'.*, got 'dev'"):
        load_streamingqa(tmp_path, split="dev")
    with pytest.raises(InputError, match=r"expected one file test\.csv .*, got none"):
        load_streamingqa(tmp_path, split="test")
    with pytest.raises(InputError, match="leave split out, got split 'val'"):
        load_streamingqa(file, split="val")
    with pytest.raises(InputError, match="no such file or folder"):
        load_archivalqa(tmp_path / "nothing")
    write(tmp_path / "a_val.csv", STREAMING)
    with pytest.raises(InputError, match=r"got a_val\.csv, val\.csv"):
        load_streamingqa(tmp_path, split="val")


def test_archivalqa_orders_paragraphs_within_a_document(tmp_path):
    dataset = load_archivalqa(write(tmp_path / "x.csv", ARCHIVAL))
    texts = [d.text for d in dataset.documents]
    assert texts == ["Paragraph one.", "Paragraph two.", "Another document."]
    assert dataset.articles == (0, 0, 1)
    assert [q.text for q in dataset.questions] == ["First?", "Second?", "Again?", "Other?"]
    whole = load_archivalqa(tmp_path / "x.csv", passage="ans_text")
    assert whole.documents[0].text == "whole text one"


def test_archivalqa_errors(tmp_path):
    file = write(tmp_path / "x.csv", ARCHIVAL.replace(",77,1", ",77,first"))
    with pytest.raises(InputError, match="line 4: expected a number in para_num, got 'first'"):
        load_archivalqa(file)
    with pytest.raises(InputError, match=r"expected passage in .*, got 'text'"):
        load_archivalqa(file, passage="text")
    wrong = write(tmp_path / "y.csv", ARCHIVAL.replace("other,Another", "nowhere,Another"))
    with pytest.raises(DocumentError, match=r"line 3.*the answer 'nowhere' is nowhere"):
        load_archivalqa(wrong)
    left = load_archivalqa(wrong, strict=False)
    assert len(left.questions) == 3
    assert len(left.skipped) == 1


def test_csv_files_that_are_none(tmp_path):
    with pytest.raises(InputError, match=r"columns question, answers, text, got .*: text missing"):
        load_streamingqa(write(tmp_path / "a.csv", "question,answers\nWho?,Ada\n"))
    with pytest.raises(InputError, match="got no header"):
        load_streamingqa(write(tmp_path / "b.csv", ""))
    with pytest.raises(InputError, match="line 2: expected a value for text, got a short row"):
        load_streamingqa(write(tmp_path / "c.csv", "question,answers,text\nWho?,Ada\n"))
    (tmp_path / "d.csv").write_bytes(b"question,answers,text\n\xff\xfe,a,b\n")
    with pytest.raises(InputError, match="expected text in UTF-8"):
        load_streamingqa(tmp_path / "d.csv")
    limit = csv.field_size_limit(1000)  # of the whole process, and other readers raise it
    try:
        with pytest.raises(InputError, match="expected a csv file"):
            load_streamingqa(write(tmp_path / "e.csv", f"question,answers,text\n{'x' * 2000},a,b"))
    finally:
        csv.field_size_limit(limit)


def test_jsonl_with_and_without_what_is_optional(tmp_path):
    file = lines(
        tmp_path / "mine.jsonl",
        {"text": "The sea is near.", "question": "What is near?", "answers": ["sea"]},
        {
            "text": "The rock is far.",
            "question": "What is far?",
            "answers": ["rock"],
            "id": "q",
            "title": "Rocks",
            "date": "2024-05-01",
            "article": "a",
        },
        {"text": "A hill.", "question": "What?", "answers": ["hill"], "article": "a"},
    )
    packed = tmp_path / "packed.jsonl.gz"
    packed.write_bytes(gzip.compress(file.read_bytes() + b"\n\n"))
    for dataset in (load_jsonl(file), load_jsonl(packed, name="mine")):
        assert [d.id for d in dataset.documents] == [f"mine-0000{i}" for i in range(3)]
        assert [d.date for d in dataset.documents] == [None, "2024-05-01", None]
        assert dataset.documents[1].title == "Rocks"
        assert dataset.articles == (0, 1, 1)
        assert dataset.questions[1].id == "q"


def test_jsonl_errors(tmp_path):
    with pytest.raises(InputError, match=r"line 1\.answers: expected a list, got text"):
        load_jsonl(lines(tmp_path / "a.jsonl", {"text": "A.", "question": "?", "answers": "A"}))
    with pytest.raises(InputError, match="line 1: expected a JSON object, got '\\[1\\]'"):
        load_jsonl(write(tmp_path / "b.jsonl", "[1]\n"))
    with pytest.raises(InputError, match="line 2: expected a JSON object, got 'no'"):
        load_jsonl(write(tmp_path / "c.jsonl", "\nno\n"))
    with pytest.raises(InputError, match="can't be read"):
        load_jsonl(tmp_path / "missing.jsonl")
    with pytest.raises(DocumentError, match="is nowhere in its passage"):
        load_jsonl(lines(tmp_path / "d.jsonl", {"text": "A.", "question": "?", "answers": ["B"]}))


def news(date, evidence, answer):
    return {"date": date, "evidence": evidence, "question": "What?", "answers": [answer], "id": "x"}


def test_realtimeqa_is_in_the_order_of_its_dates(tmp_path):
    file = lines(
        tmp_path / "news.jsonl",
        news("2024-02-01", "Later news.", "Later"),
        news("2020-01-03", "Early news.", "Early"),
        news("2022-01-01", "Middle news.", "not in it"),
    )
    dataset = load_realtimeqa(file)
    assert [d.date for d in dataset.documents] == ["2020-01-03", "2022-01-01", "2024-02-01"]
    assert [q.answers for q in dataset.questions] == [("Early",), ("Later",)]
    assert len(dataset.skipped) == 1
    with pytest.raises(DocumentError, match="is nowhere"):
        load_realtimeqa(file, strict=True)


def test_realtimeqa_without_a_date(tmp_path):
    record = news("2024-02-01", "News.", "News")
    del record["date"]
    with pytest.raises(InputError, match="expected a date with every passage, got none for 'News"):
        load_realtimeqa(lines(tmp_path / "news.jsonl", record))
