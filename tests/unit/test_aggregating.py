"""The choice of an aggregation, wherever one is made: memory, evaluation, benchmark, commands."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from cmt import Aggregation
from cmt.checkpoint import save_pretrained
from cmt.cli import main
from cmt.errors import InputError
from cmt.evaluation.qa import evaluate
from cmt.evaluation.stream import run_stream
from cmt.generation import Sampling, collect
from cmt.methods.answering import AnswerConfig
from cmt.methods.kv_memory import KvMemory, KvMemoryConfig
from tests import small, tiny
from tests.server.running import open_memory
from tests.unit.test_aggregation_benchmark import squad

DATA = small.dataset(12)
ASKED = [question.text for question in DATA.questions[:5]]
SHORT = Sampling(max_new_tokens=8)
ways = pytest.mark.parametrize("how", ["concatenate", "mix", "posterior"])


@pytest.fixture
def memory(tmp_path):
    with open_memory(tmp_path, small.compressor()) as opened:
        opened.add(DATA.documents)
        yield opened


@ways
def test_memory_answers_a_batch_as_each_alone_and_as_a_stream(memory, how):
    options = {"top_k": 3, "rerank": 0, "sampling": SHORT, "aggregation": Aggregation(how=how)}
    together = memory.ask(ASKED, batch_size=3, **options)
    for question, answer in zip(ASKED, together, strict=True):
        assert memory.ask(question, **options).text == answer.text
        streamed = memory.stream(question, **options)
        assert "".join(streamed).strip() == answer.text
        ids = [match.memory_id for match in answer.matches]
        assert [match.memory_id for match in streamed.answer.matches] == ids
        assert answer.memory_tokens == 3 * 4
    reading, steps = memory.steps(ASKED, **options)
    told = reading.answers(collect(steps, len(ASKED)))
    assert [answer.text for answer in told] == [answer.text for answer in together]


def test_one_memory_is_read_the_same_way_by_all(memory):
    texts = [
        [a.text for a in memory.ask(ASKED, sampling=SHORT, aggregation=Aggregation(how=how))]
        for how in ("concatenate", "mix", "posterior")
    ]
    assert texts[0] == texts[1] == texts[2]


def test_the_temperature_is_in_the_weights_of_an_answer(memory):
    weights = []
    for temperature in (0.01, 1.0, 1e6):
        way = Aggregation(how="mix", temperature=temperature)
        answer = memory.ask(ASKED[0], top_k=3, sampling=SHORT, aggregation=way)
        weights.append([match.weight for match in answer.matches])
    cold, usual, hot = weights
    assert cold[0] > usual[0] > hot[0]
    assert cold[0] == pytest.approx(1.0)
    assert hot == pytest.approx([1 / 3] * 3, abs=1e-3)


@ways
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_the_method_answers_as_evaluation_does(how, temperature):
    compressor = small.compressor().eval().requires_grad_(False)
    expected = evaluate(
        compressor, DATA, top_k=(3,), given=False, batch_size=8, max_new_tokens=4,
        aggregation=Aggregation(how=how, temperature=temperature),
    )  # fmt: skip
    config = KvMemoryConfig(top_k=3, aggregate=how, temperature=temperature)
    method = KvMemory(compressor, config, AnswerConfig(max_new_tokens=4, batch_size=8))
    result = run_stream(method, DATA, window=64)
    assert result.scores.predictions == expected.found[3].predictions
    (reply,) = method.answer(ASKED[:1])
    alone = KvMemory(compressor, KvMemoryConfig(), AnswerConfig(max_new_tokens=4))
    alone.learn(DATA.documents)
    (single,) = alone.answer(ASKED[:1])
    assert reply.memory_tokens == 3 * 4
    times = 1 if how == "concatenate" else 3  # a question is read once a memory
    assert reply.text_tokens == times * single.text_tokens


def test_the_commands_read_as_the_library_does(memory, tmp_path):
    tiny.save(tmp_path / "model")
    save_pretrained(memory.compressor, tmp_path / "checkpoint")
    model = ["--model", tmp_path / "model", "--checkpoint", tmp_path / "checkpoint"]
    told = []
    for how in ("concatenate", "mix"):
        ask = ["ask", ASKED[0], "--json", "--top-k", 3, "--max-new-tokens", 8, "--aggregate", how]
        result = CliRunner().invoke(main, [str(part) for part in (*ask, *model, "--bank",
                                           memory.bank.path)])  # fmt: skip
        assert result.exit_code == 0, result.output
        told.append(json.loads(result.stdout)["text"])
        way = Aggregation(how=how)
        assert told[-1] == memory.ask(ASKED[0], top_k=3, sampling=SHORT, aggregation=way).text
    data = squad(tmp_path / "squad.json")
    measure = ["eval", data, "--limit", 4, "--top-k", 3, "--json", "--aggregate", "posterior"]
    options = [*measure, "--match-temperature", 2, *model]
    result = CliRunner().invoke(main, [str(part) for part in options])
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert told["aggregation"] == {"how": "posterior", "temperature": 2.0}
    assert len(told["found"]["3"]["predictions"]) == 4


def test_what_is_no_aggregation_is_refused():
    with pytest.raises(InputError, match="among concatenate, mix, posterior, got 'sum'"):
        KvMemoryConfig(aggregate="sum")
    with pytest.raises(InputError, match="a temperature of matching above 0, got -1"):
        KvMemoryConfig(temperature=-1)
    for command in (["ask", "Who?"], ["eval", "squad.json"]):
        result = CliRunner().invoke(main, [*command, "--aggregate", "sum"])
        assert result.exit_code == 2
        assert "'sum' is not one of 'concatenate', 'mix', 'posterior'" in result.output
    result = CliRunner().invoke(main, ["eval", "squad.json", "--match-temperature", "0"])
    assert result.exit_code == 2
    assert "0.0 is not in the range x>0" in result.output
