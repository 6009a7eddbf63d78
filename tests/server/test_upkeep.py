"""The bank's life over HTTP: history, statistics, purge, verification."""

import json
import logging
import socket
import sqlite3
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager

import httpx2
from click.testing import CliRunner

from cmt.bank import Bank
from cmt.cli import main
from cmt.errors import BankError
from cmt.memory import Memory
from cmt.records import Document
from tests.server.running import serving, serving_with

CHAT = {"model": "tiny-llama", "messages": [{"role": "user", "content": "Who?"}]}
OVER = Document(text="The market of Selka closed.", id="over", expires_at="2020-01-01")


def until(holds):
    """Wait for what another thread does."""
    deadline = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_the_history_of_a_document_is_told_in_time_order(client, memory):
    path, params = "/v1/memories/notes/selka", {"namespace": "towers", "history": True}
    for text, date in (("It rose.", "2020-01-01"), ("It fell.", "2022"), ("It leaned.", "2021")):
        document = {"text": text, "date": date, "id": "notes/selka", "namespace": "towers"}
        client.post("/v1/memories", json={"documents": [{**document, "supersede": True}]})
    told = client.get(path, params=params).json()
    assert told["object"] == "list"
    versions = [(one["text"], one["date"], one["superseded_at"]) for one in told["data"]]
    assert versions == [
        (stored.text, stored.date, stored.superseded_at)
        for stored in memory.history("notes/selka", namespace="towers")
    ]
    assert [text for text, _, _ in versions] == ["It rose.", "It leaned.", "It fell."]
    assert [bool(superseded) for _, _, superseded in versions] == [True, True, False]
    latest = client.get(path, params={"namespace": "towers"}).json()
    assert latest == told["data"][-1]
    assert len(client.get("/v1/memories/arbon", params={"history": True}).json()["data"]) == 1
    assert client.get(path, params={"history": True}).status_code == 404  # not in this namespace


def test_the_statistics_are_those_of_the_command(client, memory):
    memory.add([OVER, Document(text="It fell.", id="mirna", date="2026", supersede=True)])
    told = client.get("/v1/stats").json()
    assert (told["documents"], told["superseded"], told["expired"]) == (4, 1, 1)
    command = ["stats", "--json", "--bank", str(memory.bank.path)]
    expected = json.loads(CliRunner().invoke(main, command).stdout)
    del expected["bank"], told["object"]  # a path is nobody's business
    assert told == expected


def test_what_has_expired_is_purged_and_history_where_that_is_asked(client, memory):
    memory.add([OVER, Document(text="It fell.", id="mirna", date="2026", supersede=True)])
    held = memory.count()
    told = client.post("/v1/purge", json={"history": False}).json()
    assert told == {"object": "memory.purge", "purged": ["over"]}
    assert memory.count().documents == held.documents - 1
    assert client.get("/v1/memories/over").status_code == 404
    assert client.post("/v1/purge").json()["purged"] == []
    assert client.post("/v1/purge", json={"history": True}).json()["purged"] == ["mirna"]
    assert [one.text for one in memory.history("mirna")] == ["It fell."]
    answer = client.post("/v1/purge", json={"namespace": "default"})
    assert answer.status_code == 400 and "namespace" in answer.json()["error"]["message"]


def test_a_purge_waits_for_the_documents_in_hand(memory, monkeypatch):
    begun, go_on, calls = threading.Event(), threading.Event(), []
    add, purge = Bank.add, Bank.purge

    def slow_add(self, *args, **kwargs):
        begun.set()
        assert go_on.wait(30)
        calls.append("add")
        return add(self, *args, **kwargs)

    def noted_purge(self, **kwargs):
        calls.append("purge")
        return purge(self, **kwargs)

    monkeypatch.setattr(Bank, "add", slow_add)
    monkeypatch.setattr(Bank, "purge", noted_purge)
    with serving(memory) as address, httpx2.Client(base_url=address, timeout=60) as client:
        with ThreadPoolExecutor() as threads:
            body = {"documents": [{"text": "It fell."}]}
            adding = threads.submit(client.post, "/v1/memories", json=body)
            assert begun.wait(30)
            purging = threads.submit(client.post, "/v1/purge")
            time.sleep(0.1)
            go_on.set()
            assert adding.result().status_code == purging.result().status_code == 200
    assert calls == ["add", "purge"]


def test_a_bank_that_fails_to_purge_is_told_without_its_path(client, memory, monkeypatch):
    def fail(self, **_):
        raise BankError(f"bank {memory.bank.path}: the disk is full")

    monkeypatch.setattr(Bank, "purge", fail)
    answer = client.post("/v1/purge")
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "bank_error")
    assert str(memory.bank.path) not in answer.text


def test_a_service_purges_by_itself_and_tries_again_after_a_failure(memory, monkeypatch, caplog):
    purge, failed = Memory.purge, threading.Event()

    def fail_once(self, **kwargs):
        if not failed.is_set():
            failed.set()
            raise BankError("the disk is full")
        return purge(self, **kwargs)

    monkeypatch.setattr(Memory, "purge", fail_once)
    caplog.set_level(logging.INFO, "cmt.server.purging")
    superseded = Document(text="It fell.", id="mirna", date="2026", supersede=True)
    memory.add([OVER, superseded])
    with serving(memory, purge_every_seconds=0.05):
        until(lambda: "purged 1 expired" in caplog.text)
        memory.add(OVER)
        until(lambda: caplog.text.count("purged 1 expired documents") == 2)
    assert memory.count().documents == 3
    assert len(memory.history("mirna")) == 2
    assert "wasn't purged" in caplog.text and "the disk is full" in caplog.text


def test_what_is_damaged_is_named(client, memory):
    assert client.post("/v1/verify").json() == {
        "object": "memory.verification",
        "sound": True,
        "problems": [],
    }
    with closing(sqlite3.connect(memory.bank.path)) as other, other:
        other.execute("UPDATE documents SET title = 'x' WHERE id = 'rivers'")
    told = client.post("/v1/verify").json()
    assert told["sound"] is False
    (problem,) = told["problems"]
    assert (problem["document_id"], problem["memory_id"]) == ("rivers", None)
    assert "checksum" in problem["reason"]


@contextmanager
def endless(monkeypatch):
    """A search that never ends by itself; whether one has begun, and how many have ended."""
    begun, ended, over = threading.Event(), [], threading.Event()

    def verify(self, on_record):
        begun.set()
        try:
            while not over.wait(0.01):
                on_record()
        finally:
            ended.append(self)
        return []

    monkeypatch.setattr(Bank, "verify", verify)
    try:
        yield begun, ended
    finally:
        over.set()


def test_one_verification_at_a_time_beside_questions(memory, monkeypatch):
    with (
        serving(memory) as address,
        endless(monkeypatch) as (begun, ended),
        httpx2.Client(base_url=address, timeout=60) as client,
    ):
        host, port = address.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=30) as first:
            first.sendall(f"POST /v1/verify HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
            assert begun.wait(30)
            refused = client.post("/v1/verify")
            assert (refused.status_code, refused.json()["error"]["code"]) == (409, "verifying")
            assert "verified already" in refused.json()["error"]["message"]
            assert client.post("/v1/chat/completions", json=CHAT).status_code == 200
            assert client.post("/v1/purge").status_code == 200
            assert not ended
        until(lambda: ended)  # the first has left
        monkeypatch.undo()
        until(lambda: client.post("/v1/verify").status_code == 200)


def test_a_verification_that_is_not_done_in_time_is_told(memory, monkeypatch, caplog):
    with (
        endless(monkeypatch) as (begun, ended),
        ThreadPoolExecutor() as threads,
        serving_with(memory, shutdown_seconds=0.2) as (address, server),
    ):
        asking = threads.submit(httpx2.post, f"{address}/v1/verify", timeout=60)
        assert begun.wait(30)
        server.should_exit = True
        answer = asking.result()
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "stopping")
        until(lambda: ended)
    assert not [record for record in caplog.records if record.exc_info]


def test_a_failure_to_verify_is_told(client, monkeypatch):
    def fail(self, on_record):
        raise BankError("the file is gone")

    monkeypatch.setattr(Bank, "verify", fail)
    for _ in range(2):  # the second is not refused
        answer = client.post("/v1/verify")
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "bank_error")
