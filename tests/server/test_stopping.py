"""Time is up for a service that stops: who waits is told so, and what was kept of it."""

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx2
import pytest

from cmt.memory import Memory
from tests.server.running import FACTS, serving_with

DOCUMENTS = [{"text": f"Fact number {n} is about the sea.", "id": f"fact-{n}"} for n in range(100)]
CHAT = {"model": "tiny-llama", "messages": [{"role": "user", "content": "Who?"}]}


@pytest.fixture
def slow(monkeypatch):
    """Passes and tokens that take so many seconds, and whether one has begun."""
    compress, steps = Memory._compress, Memory.steps
    seconds, begun = [0.1], threading.Event()

    def slow_compress(self, *args):
        begun.set()
        time.sleep(seconds[0])
        return compress(self, *args)

    def slow_steps(self, *args, **kwargs):
        reading, tokens = steps(self, *args, **kwargs)

        def slowly():
            for step in tokens:
                begun.set()
                time.sleep(seconds[0])
                yield step

        return reading, slowly()

    monkeypatch.setattr(Memory, "_compress", slow_compress)
    monkeypatch.setattr(Memory, "steps", slow_steps)
    return seconds, begun


def stopped(memory, begun, path, body, **settings):
    """The answer to a request in whose middle the service is stopped."""
    settings = {"shutdown_seconds": 0.5, "pass_tokens": 64, **settings}
    with serving_with(memory, **settings) as (address, server), ThreadPoolExecutor() as threads:
        asking = threads.submit(httpx2.post, f"{address}{path}", json=body, timeout=60)
        assert begun.wait(30)
        server.should_exit = True
        return asking.result()


def kept(memory):
    return {document.id for document in memory.documents()} - {fact.id for fact in FACTS}


def sent(response):
    lines = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
    return [json.loads(line) for line in lines]


def no_bug(caplog):
    return not [record for record in caplog.records if record.exc_info or "ASGI" in record.message]


def test_documents_that_are_not_done_are_refused_and_those_kept_are_named(memory, slow, caplog):
    answer = stopped(memory, slow[1], "/v1/memories", {"documents": DOCUMENTS})
    assert answer.status_code == 503 and int(answer.headers["retry-after"]) > 0
    told = answer.json()
    assert told["error"]["code"] == "stopping"
    assert set(told["report"]["added"]) == kept(memory)
    assert 0 < len(kept(memory)) < len(DOCUMENTS)
    assert no_bug(caplog)


def test_a_stream_of_reports_ends_with_what_was_kept(memory, slow, caplog):
    body = {"documents": DOCUMENTS, "stream": True}
    *_, report, told = sent(stopped(memory, slow[1], "/v1/memories", body))
    assert told["error"]["code"] == "stopping"
    assert set(report["added"]) == kept(memory) and len(report["added"]) < len(DOCUMENTS)
    assert no_bug(caplog)


def test_documents_that_wait_behind_others_are_refused_with_an_empty_report(memory, slow):
    with serving_with(memory, shutdown_seconds=0.5) as (address, server):
        with ThreadPoolExecutor() as threads:
            slow[0][0] = 1.0  # the first request is in hand when time is up
            post = httpx2.Client(base_url=address, timeout=60).post
            first = threads.submit(post, "/v1/memories", json={"documents": DOCUMENTS[:1]})
            assert slow[1].wait(30)
            second = threads.submit(post, "/v1/memories", json={"documents": DOCUMENTS[1:]})
            time.sleep(0.2)
            server.should_exit = True
            assert first.result().json()["added"] == ["fact-0"]
            told = second.result().json()
    assert (told["error"]["code"], told["report"]["added"]) == ("stopping", [])
    assert kept(memory) == {"fact-0"}


def test_a_question_that_is_not_answered_in_time_is_told(memory, slow, caplog):
    slow[0][0] = 0.3
    body = {**CHAT, "max_tokens": 128}
    answer = stopped(memory, slow[1], "/v1/chat/completions", body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "stopping")
    assert "report" not in answer.json()
    slow[1].clear()
    answer = stopped(memory, slow[1], "/v1/chat/completions", {**body, "stream": True})
    assert sent(answer)[-1]["error"]["code"] == "stopping"
    assert no_bug(caplog)


@pytest.mark.parametrize("stream", [False, True])
def test_who_is_left_even_later_is_told_without_a_report(memory, slow, caplog, monkeypatch, stream):
    monkeypatch.setattr("cmt.server.running.LAST_SECONDS", 0)
    slow[0][0] = 3.0
    body = {"documents": DOCUMENTS, "stream": stream}
    if stream:
        with pytest.raises(httpx2.RemoteProtocolError):  # cut: nothing more can be told
            stopped(memory, slow[1], "/v1/memories", body)
    else:
        answer = stopped(memory, slow[1], "/v1/memories", body)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "stopping")
    assert not [record for record in caplog.records if record.exc_info]
