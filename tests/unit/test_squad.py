"""Reading SQuAD's format, its errors, and the parts a dataset is divided into."""

import gzip
import json
import sys
from types import SimpleNamespace

import pytest

from cmt.datasets import (
    QADataset,
    Question,
    hold_out,
    load_squad,
    load_squad_from_hub,
    peers_protocol,
    stream,
)
from cmt.datasets.squad import PEERS_RANGES
from cmt.errors import DocumentError, InputError
from cmt.records import Document


def question(id_, text, *answers):
    return {
        "id": id_,
        "question": text,
        "answers": [{"text": a, "answer_start": 0} for a in answers],
    }


def small_squad():
    """Two articles, three passages, four questions."""
    return {
        "version": "1.1",
        "data": [
            {
                "title": "Caf%C3%A9_culture",
                "paragraphs": [
                    {
                        "context": "The first café opened in 1650 in Oxford.",
                        "qas": [
                            question("q0", " When did it open? ", "1650", "in 1650", "1650"),
                            question("q1", "Where?", "Oxford"),
                        ],
                    },
                    {
                        "context": "Tea came later.",
                        "qas": [question("q2", "What came later?", "Tea")],
                    },
                ],
            },
            {
                "title": "Moon",
                "paragraphs": [
                    {
                        "context": "The Moon has no air.",
                        "qas": [question("q3", "What is absent?", "air")],
                    }
                ],
            },
        ],
    }


def written(tmp_path, data, name="dev-v1.1.json"):
    path = tmp_path / name
    path.write_text(json.dumps(data), encoding="utf-8")
    return path


def numbered(articles):
    """A dataset with one document an entry and as many questions on it as its position."""
    return QADataset(
        name="numbered",
        documents=tuple(Document(text=f"text {i}", id=f"d{i}") for i in range(len(articles))),
        articles=tuple(articles),
        questions=tuple(
            Question(id=f"q{i}.{j}", text="?", answers=("text",), document=i)
            for i in range(len(articles))
            for j in range(i)
        ),
    )


def test_flattens_in_file_order(tmp_path):
    dataset = load_squad(written(tmp_path, small_squad()))
    assert dataset.name == "squad-dev"
    assert [d.id for d in dataset.documents] == [f"squad-dev-0000{i}" for i in range(3)]
    assert [d.title for d in dataset.documents] == ["Café culture", "Café culture", "Moon"]
    assert dataset.documents[1].text == "Tea came later."
    assert dataset.articles == (0, 0, 1)
    assert [q.id for q in dataset.questions] == ["q0", "q1", "q2", "q3"]
    assert [q.document for q in dataset.questions] == [0, 0, 1, 2]
    assert dataset.questions[0].text == "When did it open?"
    assert dataset.questions[0].answers == ("1650", "in 1650")
    assert dataset.questions_by_document() == [[0, 1], [2], [3]]
    assert dataset.skipped == ()


def test_gzip_and_plain_read_the_same(tmp_path):
    plain = written(tmp_path, small_squad())
    packed = tmp_path / "dev-v1.1.json.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    assert load_squad(packed) == load_squad(plain)


def test_a_folder_needs_a_split(tmp_path):
    written(tmp_path, small_squad())
    train = tmp_path / "train-v1.1.json.gz"
    train.write_bytes(gzip.compress(json.dumps(small_squad()).encode()))
    assert load_squad(tmp_path, split="dev").name == "squad-dev"
    assert load_squad(str(tmp_path), split="train").documents[2].id == "squad-train-00002"
    with pytest.raises(InputError, match="is a folder: expected split 'train' or 'dev', got None"):
        load_squad(tmp_path)
    train.unlink()
    with pytest.raises(
        InputError, match=r"expected train-v1.1.json or train-v1.1.json.gz, found neither"
    ):
        load_squad(tmp_path, split="train")


def test_the_name_begins_the_ids(tmp_path):
    path = written(tmp_path, small_squad(), "new_wiki_v1.0.json")
    assert load_squad(path).documents[0].id == "new_wiki_v1.0-00000"
    assert load_squad(path, name="wiki").documents[0].id == "wiki-00000"


def test_missing_file(tmp_path):
    with pytest.raises(InputError, match=r"nowhere.json: no such file or folder; expected a SQuAD"):
        load_squad(tmp_path / "nowhere.json")


def test_a_file_has_no_split(tmp_path):
    with pytest.raises(InputError, match="is a file: leave split out, got split 'dev'"):
        load_squad(written(tmp_path, small_squad()), split="dev")


@pytest.mark.parametrize("content", [b"not json", b"\xff\xfe\x00broken", b""])
def test_not_json(tmp_path, content):
    path = tmp_path / "dev.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"dev.json: expected JSON in UTF-8"):
        load_squad(path)


@pytest.mark.parametrize("cut", [5, 30, -1])
def test_broken_gzip(tmp_path, cut):
    path = tmp_path / "dev.json.gz"
    path.write_bytes(gzip.compress(json.dumps(small_squad()).encode())[:cut])
    with pytest.raises(InputError, match=r"dev.json.gz: can't be read"):
        load_squad(path)


def without(record, key):
    del record[key]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda d: without(d, "data"), r"dev-v1.1.json: data: expected a list, got nothing"),
        (
            lambda d: d["data"].insert(0, "text"),
            r"data\[0\]: expected an object, got text",
        ),
        (
            lambda d: without(d["data"][1], "title"),
            r"data\[1\].title: expected text, got nothing",
        ),
        (
            lambda d: without(d["data"][0]["paragraphs"][1], "context"),
            r"data\[0\].paragraphs\[1\].context: expected text, got nothing",
        ),
        (
            lambda d: d["data"][0]["paragraphs"][1].update(qas={}),
            r"data\[0\].paragraphs\[1\].qas: expected a list, got an object",
        ),
        (
            lambda d: d["data"][0]["paragraphs"][0]["qas"][1].update(question=7),
            r"data\[0\].paragraphs\[0\].qas\[1\].question: expected text, got the int 7",
        ),
        (
            lambda d: without(d["data"][0]["paragraphs"][0]["qas"][0]["answers"][2], "text"),
            r"qas\[0\].answers\[2\].text: expected text, got nothing",
        ),
    ],
)
def test_a_wrong_field_is_named_with_its_path(tmp_path, spoil, message):
    data = small_squad()
    spoil(data)
    path = written(tmp_path, data)
    for strict in (True, False):
        with pytest.raises(InputError, match=message):
            load_squad(path, strict=strict)


def test_a_list_at_the_top(tmp_path):
    with pytest.raises(InputError, match=r"dev-v1.1.json: expected an object, got a list"):
        load_squad(written(tmp_path, []))


def test_no_passage_at_all(tmp_path):
    with pytest.raises(InputError, match="squad-dev: expected at least one usable passage"):
        load_squad(written(tmp_path, {"data": []}))


def unusable():
    """`small_squad` with one of each thing that strict=False leaves out."""
    data = small_squad()
    first, second = data["data"][0]["paragraphs"]
    first["qas"].append(question("q4", "Who?", "Nobody", "Oxford"))
    first["qas"].append(question("q5", "Why?", "Nobody"))
    first["qas"].append(question("q6", "How?"))
    first["qas"].append(question("q7", " ", "1650"))
    first["qas"].append(question("q8", "Which?", " "))
    second["context"] = " \n"
    return data


def test_strict_raises_at_an_answer_that_is_nowhere_in_its_passage(tmp_path):
    with pytest.raises(
        DocumentError,
        match=r"paragraphs\[0\].qas\[2\].answers\[0\]: the answer 'Nobody' is nowhere in its",
    ):
        load_squad(written(tmp_path, unusable()))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda p: p.update(context=" "), r"paragraphs\[0\]: expected a passage of text, got an"),
        (lambda p: p["qas"][0].update(answers=[]), r"qas\[0\]: expected at least one answer"),
        (lambda p: p["qas"][0].update(question=""), r"qas\[0\]: expected a question, got an empty"),
        (lambda p: p["qas"][1]["answers"][0].update(text=""), r"answers\[0\]: expected an answer"),
    ],
)
def test_strict_raises_at_anything_empty(tmp_path, spoil, message):
    data = small_squad()
    spoil(data["data"][0]["paragraphs"][0])
    with pytest.raises(DocumentError, match=message):
        load_squad(written(tmp_path, data))


def test_not_strict_leaves_out_and_tells(tmp_path):
    dataset = load_squad(written(tmp_path, unusable()), strict=False)
    assert [q.id for q in dataset.questions] == ["q0", "q1", "q4", "q3"]
    assert dataset.questions[2].answers == ("Oxford",)
    # The empty passage is gone; the others keep the ids of their places in the file.
    assert [d.id for d in dataset.documents] == ["squad-dev-00000", "squad-dev-00002"]
    assert [q.document for q in dataset.questions] == [0, 0, 0, 1]
    assert [failure.reason for failure in dataset.skipped] == [
        "the answer 'Nobody' is nowhere in its passage",
        "the answer 'Nobody' is nowhere in its passage",
        "expected at least one answer, got none",
        "expected a question, got an empty one",
        "expected an answer, got an empty text",
        "expected a passage of text, got an empty one",
    ]
    assert dataset.skipped[-1].document.endswith("dev-v1.1.json: data[0].paragraphs[1]")


def hub_rows():
    return [
        {
            "id": q["id"],
            "title": article["title"],
            "context": paragraph["context"],
            "question": q["question"],
            "answers": {"text": [a["text"] for a in q["answers"]], "answer_start": [0]},
        }
        for article in small_squad()["data"]
        for paragraph in article["paragraphs"]
        for q in paragraph["qas"]
    ]


def test_the_hub_gives_what_the_file_gives(tmp_path, monkeypatch):
    asked = []

    def load_dataset(hub_id, split):
        asked.append((hub_id, split))
        return hub_rows()

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    assert load_squad_from_hub("dev") == load_squad(written(tmp_path, small_squad()))
    assert asked == [("squad", "validation")]


def test_hub_errors(monkeypatch):
    with pytest.raises(InputError, match="expected split 'train' or 'dev', got 'validation'"):
        load_squad_from_hub("validation")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match=r"needs the datasets library.*-e '\.\[train\]'"):
        load_squad_from_hub("dev")

    def load_dataset(hub_id, split):
        raise FileNotFoundError("no such repository")

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    with pytest.raises(
        InputError, match="the hub gave no dataset 'squad', split 'train': no such repository"
    ):
        load_squad_from_hub("train")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda row: without(row, "context"), "squad: row 2.context: expected text, got nothing"),
        (
            lambda row: row.update(answers=["Tea"]),
            "squad: row 2.answers: expected an object, got a list",
        ),
        (
            lambda row: row["answers"].update(text=[None]),
            r"squad: row 2.answers.text\[0\]: expected text, got nothing",
        ),
    ],
)
def test_a_wrong_hub_row_is_named(monkeypatch, spoil, message):
    rows = hub_rows()
    spoil(rows[2])
    fake = SimpleNamespace(load_dataset=lambda hub_id, split: rows)
    monkeypatch.setitem(sys.modules, "datasets", fake)
    with pytest.raises(InputError, match=message):
        load_squad_from_hub("dev")


def test_peers_ranges_cover_the_training_questions_once():
    covered = [index for part in PEERS_RANGES.values() for index in part]
    assert covered == list(range(87_599))
    assert [len(part) for part in PEERS_RANGES.values()] == [40_006, 2_112, 39_893, 5_588]


def test_peers_protocol_divides_by_question_number():
    documents = tuple(Document(text=f"text {i}", id=f"d{i}") for i in range(876))
    dataset = QADataset(
        name="squad-train",
        documents=documents,
        articles=tuple(range(876)),
        questions=tuple(
            Question(id=str(i), text="?", answers=("text",), document=i // 100)
            for i in range(87_599)
        ),
    )
    parts = peers_protocol(dataset)
    assert parts.qa_training.questions[-1].id == "40005"
    assert parts.qa_validation.questions[0].id == "40006"
    assert parts.training.name == "squad-train-peers-training"
    assert [parts.training.questions[i].id for i in (0, -1)] == ["42118", "82010"]
    assert parts.training.documents[0].id == "d421"
    assert [parts.validation.questions[i].id for i in (0, -1)] == ["82011", "87598"]


def test_peers_protocol_refuses_another_dataset():
    with pytest.raises(InputError, match="87599 training questions, got numbered with 1"):
        peers_protocol(numbered([0, 0]))


def test_select_documents_renumbers():
    chosen = numbered([0, 0, 1, 1]).select_documents([3, 1], name="two")
    assert chosen.name == "two"
    assert [d.id for d in chosen.documents] == ["d3", "d1"]
    assert chosen.articles == (1, 0)
    assert [(q.id, q.document) for q in chosen.questions] == [
        ("q3.0", 0), ("q3.1", 0), ("q3.2", 0), ("q1.0", 1),
    ]  # fmt: skip


def test_select_questions_keeps_only_their_documents():
    chosen = numbered([0, 0, 1, 1]).select_questions([5, 0, 3])
    assert [q.id for q in chosen.questions] == ["q3.2", "q1.0", "q3.0"]
    assert [d.id for d in chosen.documents] == ["d3", "d1"]
    assert [q.document for q in chosen.questions] == [0, 1, 0]


def test_hold_out_takes_whole_articles():
    dataset = numbered([0, 0, 1, 2, 2, 3])
    training, validation = hold_out(dataset, articles=2, seed=3)
    assert len(set(validation.articles)) == 2
    assert not set(training.articles) & set(validation.articles)
    ids = [d.id for d in training.documents] + [d.id for d in validation.documents]
    assert sorted(ids) == [d.id for d in dataset.documents]
    assert len(training.questions) + len(validation.questions) == len(dataset.questions)
    assert hold_out(dataset, articles=2, seed=3) == (training, validation)
    drawn = {hold_out(dataset, articles=2, seed=s)[1].articles for s in range(20)}
    assert len(drawn) > 1


@pytest.mark.parametrize("articles", [0, 3])
def test_hold_out_leaves_something_on_both_sides(articles):
    with pytest.raises(InputError, match=rf"between 1 and 2 articles .*has 3\), got {articles}"):
        hold_out(numbered([0, 1, 2]), articles=articles)


def test_stream_takes_the_first_documents():
    part = stream(numbered([0, 0, 1, 1]), 3)
    assert part.name == "numbered-stream-3"
    assert [d.id for d in part.documents] == ["d0", "d1", "d2"]
    assert [q.id for q in part.questions] == ["q1.0", "q2.0", "q2.1"]


def test_stream_with_a_seed_shuffles_articles_and_not_passages():
    dataset = numbered([0, 0, 1, 1, 2, 2])
    orders = {stream(dataset, 6, seed=seed).articles for seed in range(20)}
    assert len(orders) > 1
    for seed in range(5):
        part = stream(dataset, 6, seed=seed)
        assert part == stream(dataset, 6, seed=seed)
        for first, second in zip(part.documents[::2], part.documents[1::2], strict=True):
            assert int(first.id[1:]) % 2 == 0
            assert int(second.id[1:]) == int(first.id[1:]) + 1


@pytest.mark.parametrize("documents", [0, 3])
def test_stream_needs_enough_documents(documents):
    with pytest.raises(InputError, match=rf"between 1 and 2 documents .*, got {documents}"):
        stream(numbered([0, 1]), documents)
    with pytest.raises(InputError, match="got 1665"):
        stream(numbered([0, 1]))


def test_an_inconsistent_dataset_is_refused():
    document = Document(text="text", id="d0")
    with pytest.raises(InputError, match="one article index a document, got 0 for 1"):
        QADataset(name="x", documents=(document,), articles=(), questions=())
    asked = Question(id="q", text="?", answers=("text",), document=1)
    with pytest.raises(InputError, match="question 'q' is on document 1, but there are 1"):
        QADataset(name="x", documents=(document,), articles=(0,), questions=(asked,))
