"""What docs/service.md tells people to type is run, against a tiny model under the real name."""

import json
import re
from pathlib import Path

import httpx2
import pytest
from click.testing import CliRunner

from cmt.bank import Bank
from cmt.cli import main
from cmt.generation import GREEDY
from cmt.memory import DEFAULT_RERANK, DEFAULT_TOP_K
from cmt.records import Fingerprint
from cmt.server import Settings
from tests.server.running import serving

GUIDE = (Path(__file__).parents[2] / "docs" / "service.md").read_text(encoding="utf-8")
ADDRESS = "http://127.0.0.1:8000"


@pytest.fixture
def address(memory):
    with serving(memory, model_name="smollm2-135m") as running:
        yield running


def curls():
    """Method, path and JSON body of every curl command that sends JSON."""
    for command in re.findall(r"^curl .*?\n```", GUIDE, re.DOTALL | re.MULTILINE):
        method = re.search(r"-X (\w+)", command)
        body = re.search(r"-d '(.*)'", command, re.DOTALL)
        if body is None:
            continue
        path = re.search(rf"{ADDRESS}(\S+)", command)[1]
        yield method[1] if method else "POST", path, json.loads(body[1])


def test_every_curl_command_is_answered(address):
    commands = list(curls())
    assert len(commands) == 4
    with httpx2.Client(base_url=address, timeout=60) as client:
        for method, path, body in commands:
            answer = client.request(method, path, json=body)
            assert answer.status_code == 200, answer.text


def test_the_file_shown_replaces_its_old_version(address):
    ((url, _),) = re.findall(rf"'{ADDRESS}(\S+)' --data-binary (\S+)", GUIDE)
    with httpx2.Client(base_url=address, timeout=60) as client:
        assert client.post(url, content=b"First.").json()["added"] == ["notes/arbon.md"]
        assert client.post(url, content=b"Second.").json()["updated"] == ["notes/arbon.md"]


def test_the_shown_responses_have_the_fields_of_today(address):
    shown = [json.loads(block) for block in re.findall(r"```json\n(.*?)```", GUIDE, re.DOTALL)]
    with httpx2.Client(base_url=address, timeout=60) as client:
        (report, completion, *_), commands = shown, list(curls())
        for expected, (method, path, body) in zip((report, completion), commands, strict=False):
            answer = client.request(method, path, json=body).json()
            assert set(answer) == set(expected)
            if "cmt" in expected:
                assert set(answer["cmt"]) == set(expected["cmt"])
                assert set(answer["cmt"]["sources"][0]) == set(expected["cmt"]["sources"][0])


def test_the_openai_snippet_runs(address, capsys):
    (snippet,) = re.findall(r"```python\n(from openai.*?)```", GUIDE, re.DOTALL)
    exec(snippet.replace(ADDRESS, address), {})  # noqa: S102
    assert "'' " in capsys.readouterr().out


def test_the_bounds_told_are_the_settings():
    told = Settings()
    assert f"| `top_k` | {DEFAULT_TOP_K} | memories read, at most {told.max_memories} |" in GUIDE
    assert f"| `rerank` | {DEFAULT_RERANK} |" in GUIDE
    assert f"({GREEDY.max_new_tokens} unless given, at most {told.max_new_tokens})" in GUIDE
    assert f"{told.max_body_bytes // 1_000_000} MB a request" in GUIDE
    assert f"{told.max_documents:,} documents of {told.max_document_chars:,} characters" in GUIDE
    assert f"questions of {told.max_question_chars:,}" in GUIDE
    assert f"{told.waiting_questions} waiting questions" in GUIDE
    assert f"{told.question_seconds:g} s a\n  question" in GUIDE
    assert f"{told.learning_seconds:g} s for documents, {told.body_seconds:g} s for a body" in GUIDE
    assert f"{told.connections} connections" in GUIDE


def test_the_shown_command_purges(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    Bank.open("news.sqlite", Fingerprint(base_model="base", compressor="own")).close()
    (command,) = re.findall(r"^cmt (purge .*?) +#.*$", GUIDE, re.MULTILINE)
    assert CliRunner().invoke(main, command.split()).stdout == "purged 0\n"


def test_the_shown_ways_to_set_the_service_are_taken(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    commands = re.findall(r"^cmt (serve --bank news.sqlite --.*)$", GUIDE, re.MULTILINE)
    assert len(commands) == 2
    for command in commands:
        result = CliRunner().invoke(main, [*command.split(), "--model", "./no-such-model"])
        assert result.exit_code == 3, result.stderr  # only the model was missing
