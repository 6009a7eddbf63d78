"""What `cmt serve` can be told: bounds by name, and how questions are answered by default."""

import io
import sys
from dataclasses import fields

import httpx2
import pytest
from click.testing import CliRunner

from cmt.cli import main
from cmt.commands.serve import _OPTIONS, _bounds
from cmt.errors import InputError
from cmt.generation import Sampling
from cmt.server import Settings
from cmt.server.jobs import Wish
from tests.server.running import serving

QUESTION = "Who built the lighthouse of Arbon?"


def refused(*options):
    result = CliRunner().invoke(main, ["serve", "--model", "./no-such-model", *options])
    assert result.exit_code == 2
    return result.stderr


def test_the_help_tells_every_bound_with_its_default():
    told = CliRunner().invoke(main, ["serve", "--help"]).output
    for field in fields(Settings):
        if field.name not in _OPTIONS:
            assert f" {field.name}={field.default:.10g} " in told.replace("\n", " \n"), field.name


def test_bounds_are_set_by_name_with_the_type_of_their_default():
    made = _bounds(["waiting_questions=8", "question_seconds=5", "head_seconds=2.5"], Settings)
    assert made == {"waiting_questions": 8, "question_seconds": 5.0, "head_seconds": 2.5}
    assert type(made["waiting_questions"]) is int and type(made["question_seconds"]) is float


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--set", "wating_questions=8"], "got 'wating_questions=8'"),
        (["--set", "token=none"], "expected --set NAME=VALUE of batch_wait_seconds, waiting_"),
        (["--set", "waiting_questions"], "expected a whole number for waiting_questions, got ''"),
        (["--set", "max_documents=1e3"], "expected a whole number for max_documents, got '1e3'"),
        (["--set", "body_seconds=soon"], "expected a number for body_seconds, got 'soon'"),
        (["--set", "burst=0"], "expected burst above 0, got 0"),
        (
            ["--set", "purge_every_seconds=-1"],
            "expected purge_every_seconds of at least 0, got -1",
        ),
        (["--set", "body_seconds=inf"], "expected a finite body_seconds, got inf"),
        (["--set", "max_memories=2"], "expected rerank of at most 2 (max_memories), got 4"),
        (["--top-k", "17"], "expected top_k of at most 16 (max_memories), got 17"),
        (["--since", "yesterday"], "expected since as in 2026-01-31"),
    ],
)
def test_what_has_no_meaning_is_refused_before_anything_is_loaded(options, message):
    assert message in refused(*options)


def test_a_lexical_weight_without_bm25s_is_refused_at_the_start(monkeypatch):
    monkeypatch.setitem(sys.modules, "bm25s", None)
    assert "expected bm25s for a lexical weight" in refused("--lexical", "1")


def test_the_options_become_settings(monkeypatch):
    made = []

    def stop(_, settings):
        made.append(settings)
        raise InputError("enough")

    monkeypatch.setattr("cmt.memory.Memory.open", lambda *_, **__: io.StringIO())
    monkeypatch.setattr("cmt.server.create_app", stop)
    options = ["--top-k", "3", "--rerank", "0", "--aggregate", "mix", "--min-score", "0.5"]
    options += ["--lexical", "1", "--all-namespaces", "--tag", "sea", "--as-of", "2026-01-31"]
    options += ["--set", "max_new_tokens=512", "--requests-per-second", "100"]
    assert "enough" in refused(*options)
    assert made[0].wish == Wish(
        top_k=3,
        rerank=0,
        aggregate="mix",
        min_score=0.5,
        lexical=1.0,
        namespace=None,
        tags=("sea",),
        as_of="2026-01-31",
    )
    assert (made[0].max_new_tokens, made[0].burst) == (512, 400)


def test_a_question_is_answered_as_the_service_is_set_unless_it_says_otherwise(memory):
    wish = Wish(min_score=1.0, top_k=2, rerank=0, tags=("sea",), lexical=1.0)
    body = {"model": "tiny-llama", "messages": [{"role": "user", "content": QUESTION}]}
    with serving(memory, wish=wish) as address, httpx2.Client(base_url=address) as client:

        def asked(**own):
            return client.post("/v1/chat/completions", json={**body, **own}, timeout=60).json()

        answer = asked()
        assert answer["choices"][0]["message"]["content"] == "I don't know."
        assert {one["document_id"] for one in answer["cmt"]["sources"]} == {"arbon", "rivers"}
        own = {"min_score": None, "top_k": 1, "tags": [], "lexical": 0, "rerank": 4}
        expected = memory.ask(QUESTION, sampling=Sampling(max_new_tokens=8))
        assert asked(**own, max_tokens=8)["choices"][0]["message"]["content"] == expected.text
        assert asked(top_k=None, lexical=None, tags=None, memory=None)["cmt"]["abstained"]

        found = client.post("/v1/memories/search", json={"query": QUESTION}).json()["data"]
        assert {one["document_id"] for one in found} == {"arbon", "rivers"}
        found = client.post("/v1/memories/search", json={"query": QUESTION, "tags": []}).json()
        assert len(found["data"]) == 3
