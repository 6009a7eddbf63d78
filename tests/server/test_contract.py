"""The service against its own OpenAPI document (Schemathesis), and against bytes at random."""

import json
import random

import httpx2
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.config import SchemathesisConfig
from schemathesis.specs.openapi import checks as openapi_checks

from cmt.server import Settings, create_app
from tests.server.running import FACTS, open_memory, serving

CHECKS = [
    schemathesis.checks.not_a_server_error,
    openapi_checks.status_code_conformance,
    openapi_checks.content_type_conformance,
    openapi_checks.response_schema_conformance,
]
ROUTES = (
    "/v1/chat/completions",
    "/v1/memories",
    "/v1/memories/search",
    "/v1/memories/file",
    "/v1/memories/arbon",
    "/v1/purge",
)


@pytest.fixture(scope="module")
def shared(tmp_path_factory, compressor):
    with open_memory(tmp_path_factory.mktemp("contract"), compressor) as opened:
        yield opened


@pytest.fixture(scope="module")
def shared_address(shared):
    with serving(shared, max_new_tokens=4, max_body_bytes=100_000) as running:
        yield running


@pytest.fixture(scope="module")
def document(shared):
    return create_app(shared, Settings()).openapi()


def test_every_operation_does_what_the_document_says(document, shared_address):
    config = SchemathesisConfig.from_dict({"generation": {"allow-x00": True}})
    operations = [
        found.ok()
        for found in schemathesis.openapi.from_dict(document, config=config).get_all_operations()
    ]
    assert len(operations) == 16
    for operation in operations:
        for mode in schemathesis.GenerationMode:
            if mode.is_negative and not (operation.body or operation.query):
                continue  # nothing in it can be wrong

            @given(case=operation.as_strategy(generation_mode=mode))
            @settings(
                max_examples=10,
                deadline=None,
                derandomize=True,
                database=None,
                suppress_health_check=list(HealthCheck),
            )
            def keeps_its_word(case):
                response = case.call(
                    base_url=shared_address, headers={"connection": "close"}, timeout=60
                )
                case.validate_response(response, checks=CHECKS)

            keeps_its_word()


def test_the_document_promises_no_error_in_another_form(document):
    for path in document["paths"].values():
        for operation in path.values():
            assert "422" not in operation["responses"]
            error = operation["responses"]["400"]["content"]["application/json"]["schema"]
            assert error == {"$ref": "#/components/schemas/ErrorBody"}


def _bad_bodies(generator):
    """Bytes that are nearly a request: cut, mixed up, deep, or of another kind."""
    good = json.dumps({"model": "tiny-llama", "messages": [{"role": "user", "content": "Who?"}]})
    added = json.dumps({"documents": [{"text": "A text.", "metadata": {"a": [1, None]}}]})
    yield from (
        b"",
        b"null",
        b"[]",
        b'"text"',
        b"{",
        b"\xff\xfe",
        b"[" * 50_000,
        b'{"documents": [{"text": "\\ud800"}]}',
        b'{"documents": [{"text": "a", "\\ud800": 1}]}',
        b'{"documents": [{"text": "a", "metadata": {"n": NaN}}]}',
        b'{"documents": [{"text": "a", "metadata": {"n": 1e999}}]}',
        b'{"documents": [{"text": "a", "metadata": {"n": ' + b"9" * 5000 + b"}}]}",
        b'{"documents": [{"text": "a", "metadata": ' + b'{"a":' * 3000 + b"1" + b"}" * 3003,
        b'{"query": "\\u0000"}',
        b'{"query": "Who?", "top_k": 1e400}',
        b'{"model": "tiny-llama", "messages": [{"role": "user", "content": "\\udfff"}]}',
        b'{"model": "tiny-llama", "seed": 99999999999999999999, "messages": []}',
    )
    for text in (good, added):
        for _ in range(20):
            data = bytearray(text.encode())
            for _ in range(generator.randint(1, 4)):
                place = generator.randrange(len(data))
                data[place : place + generator.randint(0, 3)] = generator.randbytes(2)
            yield bytes(data)


@pytest.mark.parametrize("route", ROUTES)
def test_bad_requests_are_refused_in_openais_form_and_nothing_is_lost(
    shared_address, shared, route
):
    method = "PATCH" if route.endswith("arbon") else "POST"
    kinds = ["application/json", "text/plain", "application/octet-stream"]
    generator = random.Random(5)
    with httpx2.Client(base_url=shared_address, timeout=60) as client:
        for body in _bad_bodies(generator):
            params = {"kind": generator.choice(["pdf", "jsonl", "csv", "html", "md", "exe"])}
            headers = {"content-type": kinds[0] if generator.random() < 0.8 else kinds[1]}
            answer = client.request(method, route, content=body, headers=headers, params=params)
            assert answer.status_code < 500, (body[:100], answer.text)
            if answer.status_code >= 400:
                assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
        assert client.get("/healthz").status_code == 200
        held = {one["id"] for one in client.get("/v1/memories?limit=200").json()["data"]}
    assert {fact.id for fact in FACTS} - held <= {"arbon"}  # a random patch may have moved it
    assert shared.bank.verify() == []


@pytest.mark.parametrize(
    "request_line",
    [
        b"GET /v1/memories/%ff%fe HTTP/1.1",
        b"GET /v1/memories/..%2f..%2fetc%2fpasswd HTTP/1.1",
        b"GET /v1/memories/%00 HTTP/1.1",
        b"GET /../../etc/passwd HTTP/1.1",
        b"GET /v1/memories?limit=%00 HTTP/1.1",
        b"DELETE /v1/memories/ HTTP/1.1",
        b"TRACE / HTTP/1.1",
        b"BREW /v1/memories HTTP/1.1",
    ],
)
def test_odd_paths_and_methods_are_refused(shared_address, request_line):
    import socket

    host, port = shared_address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(request_line + f"\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
        answer = b""
        while part := connection.recv(10_000):
            answer += part
    assert answer.startswith(b"HTTP/1.1 4"), answer[:200]
    assert b"root:" not in answer
