"""`cmt serve` in a process of its own, told to stop in the middle of work."""

import json
import os
import re
import signal
import subprocess
import sys
import threading

import httpx2
import pytest
from click.testing import CliRunner

from cmt.bank import Bank
from cmt.checkpoint import save_pretrained
from cmt.cli import main
from tests import tiny

CHAT = {"model": "model", "messages": [{"role": "user", "content": "Who?"}]}


@pytest.fixture
def process(tmp_path, compressor):
    save_pretrained(compressor, tmp_path / "checkpoint")
    tiny.save(tmp_path / "model")
    command = [sys.executable, "-m", "cmt.cli", "serve", "--port", "0"]
    command += ["--bank", str(tmp_path / "bank.sqlite"), "--model", str(tmp_path / "model")]
    command += ["--checkpoint", str(tmp_path / "checkpoint"), "--requests-per-second", "0"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop("CMT_TOKEN", None)
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as started:
        yield started
        started.kill()


def address(process):
    seen = []
    for line in process.stderr:
        seen.append(line)
        if found := re.search(r"running on (http://[\d.]+:\d+)", line):
            return found[1]
    raise AssertionError("".join(seen))


def test_a_signal_ends_it_without_losing_an_answer_or_a_document(process, tmp_path):
    url = address(process)
    acknowledged, streamed, refused = [], [], []
    some = threading.Event()

    def learn(client_number):
        with httpx2.Client(base_url=url, timeout=60) as client:
            for n in range(1000):
                name = f"fact-{client_number}-{n}"
                documents = [{"id": name, "text": f"Fact {name} is about the sea."}]
                try:
                    answer = client.post("/v1/memories", json={"documents": documents})
                except httpx2.TransportError:  # no longer listening
                    return
                if answer.status_code != 200:
                    refused.append(answer.json()["error"]["code"])
                    return
                acknowledged.extend(answer.json()["added"])
                if len(acknowledged) > 4:
                    some.set()

    def ask():
        body = {**CHAT, "stream": True, "max_tokens": 100}
        with httpx2.stream("POST", f"{url}/v1/chat/completions", json=body, timeout=60) as got:
            streamed.append("".join(got.iter_text()))

    learners = [threading.Thread(target=learn, args=(number,)) for number in range(3)]
    for thread in learners:
        thread.start()
    assert some.wait(60)
    asker = threading.Thread(target=ask)
    asker.start()
    with httpx2.Client(base_url=url, timeout=60) as client:
        while "cmt_batch_questions_count 1.0" not in client.get("/metrics").text:
            assert asker.is_alive() or streamed
    process.send_signal(signal.SIGTERM)
    for thread in (asker, *learners):
        thread.join(60)
        assert not thread.is_alive()
    assert process.wait(60) in (0, -signal.SIGTERM)

    (text,) = streamed
    assert text.endswith("data: [DONE]\n\n")
    last = json.loads(text.split("\n\n")[-3].removeprefix("data: "))
    assert last["choices"][0]["finish_reason"] in ("stop", "length")
    assert set(refused) <= {"stopping"}
    with Bank.open(tmp_path / "bank.sqlite", None, read_only=True) as bank:
        held = {document.id for document in bank.documents()}
        assert set(acknowledged) <= held and len(acknowledged) > 4
        assert bank.verify() == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--host", "0.0.0.0"], "expected a token for a service that others can reach"),  # noqa: S104
        (["--token-file", "/none"], "expected a file with a token, got /none"),
    ],
)
def test_an_open_door_is_refused_before_anything_is_loaded(options, message, monkeypatch):
    monkeypatch.delenv("CMT_TOKEN", raising=False)
    result = CliRunner().invoke(main, ["serve", "--model", "./no-such-model", *options])
    assert result.exit_code == 2
    assert message in result.stderr


def test_the_token_is_read_from_the_environment_too(monkeypatch):
    monkeypatch.setenv("CMT_TOKEN", "short")
    result = CliRunner().invoke(main, ["serve"])
    assert result.exit_code == 2 and "at least 16 characters" in result.stderr


def test_without_its_packages_it_names_the_extra(monkeypatch):
    for name in [name for name in sys.modules if name.startswith("cmt.server")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "fastapi", None)
    result = CliRunner().invoke(main, ["serve"])
    assert result.exit_code == 2 and "pip install -e '.[serve]'" in result.stderr
