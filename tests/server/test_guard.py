"""Who may ask what, how much and how often; and what an error gives away."""

import json
import socket
import time
from contextlib import ExitStack

import httpx2
import pytest

from cmt.errors import BankError, InputError
from cmt.memory import Memory
from cmt.server import Settings
from cmt.server.guard import _Rates
from tests.server.running import serving

TOKEN = "a-token-of-many-characters"
CHAT = {"model": "tiny-llama", "messages": [{"role": "user", "content": "Who?"}]}


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org"])  # noqa: S104
def test_other_addresses_need_a_token(host):
    with pytest.raises(InputError, match="expected a token"):
        Settings(host=host)
    assert Settings(host=host, token=TOKEN).host == host


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost"])
def test_this_machine_needs_none(host):
    assert Settings(host=host).token is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"token": "short"}, "at least 16 characters"),
        ({"token": "ü" * 20}, "printable ASCII"),
        ({"port": 70000}, "a port from 0 to 65535"),
        ({"batch_size": 0}, "batch_size above 0"),
        ({"requests_per_second": -1}, "requests_per_second of at least 0"),
    ],
)
def test_settings_without_meaning_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        Settings(**settings)


def test_a_token_opens_everything_but_the_page_and_health(memory):
    with serving(memory, token=TOKEN) as address, httpx2.Client(base_url=address) as client:
        assert client.get("/").status_code == client.get("/healthz").status_code == 200
        for path in (
            "/v1/models",
            "/v1/memories",
            "/v1/stats",
            "/v1/verify",
            "/metrics",
            "/openapi.json",
            "/none",
        ):
            for given in (None, "Bearer wrong", f"Basic {TOKEN}", TOKEN, "Bearer"):
                headers = {} if given is None else {"authorization": given}
                answer = client.get(path, headers=headers)
                assert answer.status_code == 401, (path, given)
                assert answer.json()["error"]["code"] == "invalid_api_key"
        right = {"authorization": f"Bearer {TOKEN}", "host": "anything.example"}
        assert client.get("/v1/models", headers=right).status_code == 200


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "", "[::1", "a@b"])
def test_without_a_token_other_names_are_refused(client, host):
    answer = client.get("/v1/memories", headers={"host": host})
    assert answer.status_code in (400, 403)


def test_without_a_token_other_sites_are_refused(client):
    site = {"origin": "https://evil.example", "content-type": "text/plain"}
    answer = client.post("/v1/memories", headers=site, content="{}")
    assert answer.json()["error"]["code"] == "forbidden_origin"
    own = {"origin": str(client.base_url).rstrip("/")}
    assert client.get("/v1/memories", headers=own).status_code == 200


def test_a_body_that_is_too_large_is_refused(memory):
    with serving(memory, max_body_bytes=1000) as address, httpx2.Client() as client:
        url = f"{address}/v1/memories"
        answer = client.post(url, json={"documents": [{"text": "x" * 2000}]})
        assert (answer.status_code, answer.json()["error"]["code"]) == (413, "too_large")
        chunks = (b"x" * 400 for _ in range(10))  # says no length
        answer = client.post(f"{url}/file", content=chunks)
        assert (answer.status_code, answer.json()["error"]["code"]) == (413, "too_large")
    assert memory.count().documents == 3


def test_a_body_that_does_not_come_is_given_up(memory):
    with serving(memory, body_seconds=0.2) as address:
        host, port = address.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=30) as connection:
            head = f"POST /v1/memories HTTP/1.1\r\nHost: {host}\r\nContent-Length: 99\r\n"
            connection.sendall(f"{head}Content-Type: application/json\r\n\r\n{{".encode())
            assert b"408" in connection.recv(100)


@pytest.mark.parametrize("said", [b"", b"GET /healthz HTTP/1.1\r\nHos"])
def test_who_connects_and_asks_nothing_keeps_nobody_out(memory, said):
    with serving(memory, head_seconds=0.2, connections=3) as address:
        host, port = address.removeprefix("http://").split(":")
        with ExitStack() as stack:
            for _ in range(3):
                silent = stack.enter_context(socket.create_connection((host, int(port)), 30))
                silent.sendall(said)
            assert silent.recv(100) == b""  # closed
            assert httpx2.get(f"{address}/healthz").status_code == 200


def test_a_long_answer_is_no_silence(memory, monkeypatch):
    steps = Memory.steps

    def slow(self, *args, **kwargs):
        time.sleep(0.5)
        return steps(self, *args, **kwargs)

    monkeypatch.setattr(Memory, "steps", slow)
    with serving(memory, head_seconds=0.05) as address, httpx2.Client(timeout=60) as client:
        assert client.post(f"{address}/v1/chat/completions", json=CHAT).status_code == 200


def test_documents_have_a_longest_text_and_a_most(memory):
    limits = {"max_document_chars": 50, "max_documents": 2}
    with serving(memory, **limits) as address, httpx2.Client(base_url=address) as client:
        documents = [{"text": "x" * 51, "id": "long"}, {"text": "short", "id": "short"}]
        report = client.post("/v1/memories", json={"documents": documents}).json()
        assert report["added"] == ["short"]
        assert "at most 50 characters, got 51" in report["failed"][0]["reason"]
        answer = client.post("/v1/memories", json={"documents": documents * 2})
        assert answer.status_code == 413
        answer = client.patch("/v1/memories/short", json={"text": "x" * 51})
        assert answer.status_code == 400


def test_who_asks_too_often_must_wait(memory):
    limits = {"requests_per_second": 0.01, "burst": 3}
    with serving(memory, **limits) as address, httpx2.Client(base_url=address) as client:
        answers = [client.get("/v1/models") for _ in range(5)]
        assert [answer.status_code for answer in answers] == [200, 200, 200, 429, 429]
        assert int(answers[-1].headers["retry-after"]) > 1
        assert client.get("/healthz").status_code == 200


def test_guesses_at_the_token_must_wait_too(memory):
    limits = {"token": TOKEN, "requests_per_second": 0.01, "burst": 3}
    with serving(memory, **limits) as address, httpx2.Client(base_url=address) as client:
        wrong = {"authorization": "Bearer a-guess-at-the-token"}
        answers = [client.get("/v1/models", headers=wrong) for _ in range(5)]
    assert [answer.status_code for answer in answers] == [401, 401, 401, 429, 429]


def test_methods_of_a_clients_choice_are_counted_as_one(client):
    for method in ("BREW", "WHEN"):
        assert client.request(method, "/v1/models").status_code == 405
    text = client.get("/metrics").text
    assert 'method="other"' in text and "BREW" not in text and "WHEN" not in text


def test_the_longest_unseen_client_is_forgotten(monkeypatch):
    monkeypatch.setattr("cmt.server.guard._MOST_CLIENTS", 2)
    rates = _Rates(0.001, 1)
    assert rates.wait("a") == 0 and rates.wait("a") > 0
    rates.wait("b"), rates.wait("c")
    assert rates.wait("a") == 0


def test_a_question_that_takes_too_long_is_given_up(memory):
    with serving(memory, question_seconds=0.001) as address, httpx2.Client() as client:
        answer = client.post(f"{address}/v1/chat/completions", json=CHAT, timeout=60)
        assert (answer.status_code, answer.json()["error"]["code"]) == (504, "timeout")


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (BankError("can't read /secret/bank.sqlite"), 503, "bank_error"),
        (RuntimeError("CUDA out of memory at /secret/file.py"), 500, "internal_error"),
        (InputError("wrong in {path}"), 400, "invalid_value"),
    ],
)
def test_errors_tell_no_path_and_no_trace(memory, monkeypatch, error, status, code):
    def fail(*_, **__):
        raise type(error)(str(error).replace("{path}", str(memory.bank.path)))

    monkeypatch.setattr(Memory, "steps", fail)
    monkeypatch.setattr(Memory, "get", fail)
    monkeypatch.setattr(Memory, "add", fail)
    with serving(memory) as address, httpx2.Client(base_url=address, timeout=60) as client:
        answers = [
            client.post("/v1/chat/completions", json=CHAT),
            client.post("/v1/memories", json={"documents": [{"text": "x"}]}),
            client.get("/v1/memories/arbon"),
        ]
        for answer in answers:
            assert answer.status_code == status
            assert answer.json()["error"]["code"] == code
            for secret in ("secret", str(memory.bank.path.parent), "Traceback", ".py"):
                assert secret not in answer.text
        assert client.get("/v1/models").status_code == 200  # it goes on


def test_a_failure_while_streaming_is_told_in_the_stream(memory, monkeypatch):
    steps = Memory.steps

    def failing(self, *args, **kwargs):
        reading, _ = steps(self, *args, **kwargs)

        def fail():
            raise RuntimeError("a bug")
            yield

        return reading, fail()

    monkeypatch.setattr(Memory, "steps", failing)
    with serving(memory) as address, httpx2.Client() as client:
        answer = client.post(
            f"{address}/v1/chat/completions", json={**CHAT, "stream": True}, timeout=60
        )
    assert answer.status_code == 200
    last = json.loads(answer.text.strip().split("\n\n")[-1].removeprefix("data: "))
    assert last["error"]["code"] == "internal_error"
