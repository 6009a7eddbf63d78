"""The bank over HTTP, against a running server."""

import json
import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import httpx2
import pytest

from cmt.memory import Memory
from tests.server.running import serving

TOWER = {"text": "The tower of Selka was built in 1900 by Ada Moss.", "id": "selka"}


def ids(client, **params):
    return [one["id"] for one in client.get("/v1/memories", params=params).json()["data"]]


def events(response):
    lines = [line for line in response.text.split("\n\n") if line]
    assert lines.pop() == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines]


def test_what_is_added_is_stored_found_changed_and_forgotten(client, memory):
    report = client.post("/v1/memories", json={"documents": [TOWER]}).json()
    assert (report["added"], report["failed"]) == (["selka"], [])
    assert memory.get("selka").text == TOWER["text"]

    found = client.post("/v1/memories/search", json={"query": "Who?", "top_k": 9}).json()["data"]
    assert "selka" in [source["document_id"] for source in found]

    changed = client.patch("/v1/memories/selka", json={"title": "Selka", "tags": ["tower"]}).json()
    assert (changed["title"], changed["text"]) == ("Selka", TOWER["text"])
    newer = {"text": "It fell in 1950.", "date": None, "supersede": True}
    changed = client.patch("/v1/memories/selka", json=newer).json()
    assert (changed["text"], changed["tags"]) == ("It fell in 1950.", ["tower"])
    assert memory.history("selka")[0].text == TOWER["text"]

    dated = client.patch("/v1/memories/selka", json={"date": "2024-05-31"}).json()
    assert dated["date"] == "2024-05-31"
    undated = {"text": "It was built again in 1960.", "supersede": True}
    changed = client.patch("/v1/memories/selka", json=undated).json()
    held, newest = memory.history("selka")[-2:]
    assert held.date == "2024-05-31" < held.superseded_at == newest.date == changed["date"]

    assert client.delete("/v1/memories/selka").json()["deleted"] is True
    assert client.get("/v1/memories/selka").status_code == 404
    assert client.delete("/v1/memories/selka").status_code == 404
    assert client.patch("/v1/memories/selka", json={"title": "x"}).status_code == 404


def test_what_is_forgotten_while_it_is_being_changed_does_not_come_back(memory, monkeypatch):
    begun, go_on = threading.Event(), threading.Event()
    compress = Memory._compress

    def slow(self, *args):
        begun.set()
        assert go_on.wait(30)
        return compress(self, *args)

    monkeypatch.setattr(Memory, "_compress", slow)
    with serving(memory) as address, httpx2.Client(base_url=address, timeout=60) as client:
        with ThreadPoolExecutor() as threads:
            path = "/v1/memories/arbon"
            changing = threads.submit(client.patch, path, json={"text": "It fell."})
            assert begun.wait(30)
            assert client.delete(path).status_code == 200
            go_on.set()
            assert changing.result().status_code == 404
        assert client.get(path).status_code == 404


def test_lists_come_in_pages_and_by_namespace_and_tag(client):
    page = client.get("/v1/memories", params={"limit": 2}).json()
    assert [one["id"] for one in page["data"]] == ["arbon", "rivers"]
    assert (page["total"], page["has_more"]) == (3, True)
    assert "text" not in page["data"][0] and page["data"][0]["metadata"] == {"page": 3}
    rest = client.get("/v1/memories", params={"limit": 2, "offset": 2}).json()
    assert ([one["id"] for one in rest["data"]], rest["has_more"]) == (["mirna"], False)
    client.post("/v1/memories", json={"documents": [{**TOWER, "namespace": "towers"}]})
    assert ids(client, namespace="towers") == ["selka"]
    assert ids(client, tag="sea") == ["arbon", "rivers"]
    assert client.get("/v1/memories/selka").status_code == 404
    path = "/v1/memories/selka"
    assert client.get(path, params={"namespace": "towers"}).json()["namespace"] == "towers"


def test_the_total_counts_what_is_listed(client):
    documents = [
        {"text": "Over.", "id": "over", "expires_at": "2020-01-01"},
        {"text": "Towers.", "id": "towers", "namespace": "towers", "tags": ["sea"]},
        {"text": "More.", "id": "more", "namespace": "towers"},
    ]
    client.post("/v1/memories", json={"documents": documents})
    for params in ({}, {"namespace": "towers"}, {"tag": "sea"}, {"namespace": "none"}):
        listed = ids(client, **params)
        page = client.get("/v1/memories", params={**params, "limit": 1}).json()
        assert (page["total"], page["has_more"]) == (len(listed), len(listed) > 1), params


def test_a_damaged_document_hides_no_other(client, memory):
    assert client.get("/v1/map").json()["total"] == 3
    client.post("/v1/memories", json={"documents": [TOWER]})
    with closing(sqlite3.connect(memory.bank.path)) as other, other:
        other.execute("UPDATE documents SET title = 'x' WHERE id = 'rivers'")
    assert ids(client) == ["arbon", "mirna", "selka"]
    drawn = {point["document_id"] for point in client.get("/v1/map").json()["points"]}
    assert drawn == {"arbon", "mirna", "selka"}
    found = client.post("/v1/memories/search", json={"query": "Who?", "top_k": 9}).json()["data"]
    assert {source["document_id"] for source in found} == {"arbon", "mirna", "selka"}
    assert client.delete("/v1/memories/rivers").json()["deleted"] is True
    assert client.get("/v1/memories").json()["total"] == 3


def test_an_id_may_look_like_a_path(client):
    name = "notes/2026/a b?.txt"
    client.post("/v1/memories", json={"documents": [{**TOWER, "id": name}]})
    path = "/v1/memories/notes/2026/a%20b%3F.txt"
    assert client.get(path).json()["id"] == name
    assert client.delete(path).json()["id"] == name


@pytest.mark.parametrize("name", [".", "..", "notes/../arbon", "./a", "a/.", "x" * 513, "a\nb"])
def test_an_id_that_no_url_can_name_is_refused(client, memory, name):
    line = json.dumps({"text": "One.", "id": name}).encode()
    report = client.post("/v1/memories/file", params={"kind": "jsonl"}, content=line).json()
    assert "expected an id" in report["failed"][0]["reason"]
    answer = client.post("/v1/memories", json={"documents": [{**TOWER, "id": name}]})
    assert answer.status_code == 400 or answer.json()["failed"]
    assert memory.count().documents == 3


def test_one_that_fails_does_not_stop_the_others(client, memory):
    wrong = [{"text": "Wrong.", name: "31.01.2020"} for name in ("expires_at", "date")]
    documents = [{"text": "Sound.", "date": "2026-01"}, *wrong, TOWER]
    report = client.post("/v1/memories", json={"documents": documents}).json()
    assert len(report["added"]) == 2
    assert ["ISO 8601" in failure["reason"] for failure in report["failed"]] == [True, True]


def test_a_date_that_is_none_is_refused(client, memory):
    answer = client.patch("/v1/memories/arbon", json={"date": "foo"})
    assert answer.status_code == 400
    assert "expected date as in" in answer.json()["error"]["message"]
    assert memory.get("arbon").date == "2024-05-31"


def test_versions_have_their_places_in_time(client):
    def found(**filters):
        body = {"query": "Who?", "top_k": 9, "prefer_later": False, **filters}
        data = client.post("/v1/memories/search", json=body).json()["data"]
        return [one["excerpt"] for one in data if one["document_id"] == "arbon"]

    text = "The lighthouse of Arbon was built in 1823 by Clara Weiss."
    path, supersede = "/v1/memories/arbon", {"supersede": True}
    for name, date in (("Ada", "2099-01-01"), ("Bea", "2023-01-01")):
        answer = client.patch(path, json={"text": name, "date": date, **supersede}).json()
        assert (answer["text"], answer["date"]) == (name, date)
    bea = client.patch(path, json={"text": "Bea", "date": "2022", **supersede}).json()
    assert (bea["text"], bea["date"], bea["superseded_at"]) == ("Bea", "2022", "2023-01-01")
    assert found() == found(as_of="2024-06-01") == [text]
    assert found(as_of="2099-01-01") == ["Ada"]
    assert found(as_of="2023-06-01") == ["Bea"]
    assert client.get(path).json()["text"] == "Ada"
    assert "arbon" in ids(client)
    client.patch(path, json={"text": "Cid", "date": "2098", **supersede})
    cid = client.patch(path, json={"text": "Cid", **supersede}).json()
    assert (cid["text"], cid["superseded_at"]) == ("Cid", "2098")
    assert cid["date"] < "2098" and found() == ["Cid"]


def test_progress_is_streamed_and_grows(client, memory):
    documents = [{"text": f"Fact number {n}.", "id": f"fact-{n}"} for n in range(20)]
    body = {"documents": documents, "stream": True}
    reports = events(client.post("/v1/memories", json=body))
    counts = [len(report["added"]) for report in reports]
    assert counts == sorted(counts) and counts[-1] == 20 and len(counts) > 1
    assert memory.count().documents == 23


def test_files_are_read_by_their_kind(client, memory):
    lines = b'{"text": "One.", "id": "one"}\n{"text": ""}\n{"text": "Two.", "title": "T"}\n'
    params = {"kind": "jsonl", "name": "facts.jsonl"}
    report = client.post("/v1/memories/file", params=params, content=lines).json()
    assert len(report["added"]) == 2
    assert "facts.jsonl" in report["failed"][0]["document"]
    report = client.post("/v1/memories/file", params={"name": "a.txt"}, content=b"Plain.").json()
    assert memory.get(report["added"][0]).title == "a.txt"
    report = client.post("/v1/memories/file", params={"kind": "pdf"}, content=b"no pdf").json()
    assert len(report["failed"]) == 1 and report["added"] == []


def test_a_search_may_weigh_words_but_reads_nothing_together(client, memory):
    asked = {"query": "Who built the lighthouse?", "top_k": 3, "lexical": 5.0}
    found = client.post("/v1/memories/search", json=asked).json()["data"]
    expected = memory.search(asked["query"], top_k=3, lexical=5.0)
    assert [one["weight"] for one in found] == pytest.approx([match.weight for match in expected])
    answer = client.post("/v1/memories/search", json={**asked, "aggregate": "mix"})
    assert answer.status_code == 400 and "aggregate" in answer.json()["error"]["message"]


def test_an_edited_file_replaces_what_was_learned_from_it(client, memory):
    params = {"id": "notes/selka.txt", "name": "selka.txt", "date": "2026-01-31"}
    params |= {"namespace": "towers", "tags": ["sea", "tower"], "expires_at": "2999-01-01"}

    def post(content, **more):
        told = client.post("/v1/memories/file", params={**params, **more}, content=content)
        assert told.status_code == 200, told.text
        return told.json()

    assert post(b"It was built in 1900.")["added"] == ["notes/selka.txt"]
    assert post(b"It was built in 1900.")["unchanged"] == ["notes/selka.txt"]
    assert post(b"It was built in 1901.")["updated"] == ["notes/selka.txt"]
    (held,) = memory.history("notes/selka.txt", namespace="towers")
    assert (held.text, held.title) == ("It was built in 1901.", "selka.txt")
    assert (held.date, held.expires_at) == ("2026-01-31", "2999-01-01")
    assert held.tags == ("sea", "tower")
    post(b"It fell in 1950.", supersede=True, date="2026-02-01")
    texts = [version.text for version in memory.history("notes/selka.txt", namespace="towers")]
    assert texts == ["It was built in 1901.", "It fell in 1950."]
    assert memory.count().documents == 4


def test_records_of_a_file_keep_what_is_their_own(client, memory):
    lines = [
        {"text": "One.", "id": "one", "date": "2020-01-01", "tags": ["own"]},
        {"text": "Two.", "id": "two", "namespace": "own", "expires_at": "2998-01-01"},
    ]
    content = "\n".join(map(json.dumps, lines)).encode()
    params = {"kind": "jsonl", "namespace": "n", "tags": "t", "date": "2026", "expires_at": "2999"}
    client.post("/v1/memories/file", params=params, content=content)
    one, two = (memory.get(name, namespace="n") for name in ("one", "two"))
    assert (one.date, one.tags, one.expires_at) == ("2020-01-01", ("own", "t"), "2999")
    assert (two.date, two.tags, two.expires_at) == ("2026", ("t",), "2998-01-01")


@pytest.mark.parametrize("stream", [False, True])
def test_a_file_of_several_records_has_no_single_id(client, memory, stream):
    params = {"kind": "csv", "id": "facts", "stream": stream}
    answer = client.post("/v1/memories/file", params=params, content=b"text\nOne.\nTwo.\n")
    assert answer.status_code == (200 if stream else 400)
    told = json.loads(answer.text.removeprefix("data: "))["error"]
    assert told["code"] == "invalid_value"
    assert "expected a file of one document for the id 'facts', got several" in told["message"]
    assert memory.count().documents == 3
    report = client.post(
        "/v1/memories/file", params={**params, "stream": False}, content=b"text\nOne.\n"
    ).json()
    assert report["added"] == ["facts"]


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"expires_at": "tomorrow"}, "ISO 8601"),
        ({"date": "tomorrow"}, "expected date as in 2026-01-31"),
        ({"date": "tomorrow", "stream": True}, "expected date as in 2026-01-31"),
        ({"namespace": " x"}, "expected namespace to be a word or a few"),
        ({"tags": [" x"]}, "expected a tag"),
        ({"tag": "x"}, "tag: Extra inputs"),
        ({"id": "a\nb"}, "id"),
    ],
)
def test_what_a_file_cannot_be_given_is_refused(client, memory, params, message):
    answer = client.post("/v1/memories/file", params=params, content=b"One.")
    assert answer.status_code == 400 and message in answer.json()["error"]["message"]
    assert memory.count().documents == 3


@pytest.mark.parametrize("name", ["memory", "key", "tensor", "memories", "keys", "embedding"])
def test_tensors_are_never_taken_from_a_client(client, memory, name):
    body = {"documents": [{**TOWER, name: [[0.1, 0.2]]}]}
    answer = client.post("/v1/memories", json=body)
    assert answer.status_code == 400
    assert "Extra inputs are not permitted" in answer.json()["error"]["message"]
    assert client.patch("/v1/memories/arbon", json={name: [0.5]}).status_code == 400
    assert memory.count().documents == 3


def test_the_map_shows_every_memory_and_follows_the_bank(client, memory):
    drawn = client.get("/v1/map").json()
    assert {point["document_id"] for point in drawn["points"]} == {"arbon", "rivers", "mirna"}
    assert max(abs(point["x"]) for point in drawn["points"]) == 1.0
    assert drawn["explained"][0] >= drawn["explained"][1]
    client.delete("/v1/memories/rivers")
    assert client.get("/v1/map").json()["total"] == 2
    assert len(client.get("/v1/map", params={"limit": 1}).json()["points"]) == 1


def test_metrics_count_requests_batches_and_documents(client):
    client.post("/v1/memories", json={"documents": [TOWER]})
    client.post("/v1/memories/search", json={"query": "Who?"})
    text = client.get("/metrics").text
    assert 'cmt_documents_total{outcome="added"} 1.0' in text
    assert "cmt_batch_questions_count 1.0" in text
    assert 'cmt_bank{what="documents"} 4.0' in text
    assert 'cmt_requests_total{method="POST",route="/v1/memories",status="200"} 1.0' in text
    assert client.get("/healthz").json()["status"] == "ok"


def test_the_page_may_load_nothing_from_elsewhere(client):
    answer = client.get("/")
    assert answer.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert "http://" not in answer.text.replace("http://www.w3.org/2000/svg", "")
    assert "https://" not in answer.text
