"""OpenAI's own client against a running server."""

from dataclasses import replace

import openai
import pytest

from cmt.generation import Sampling
from cmt.memory import Memory
from tests import small
from tests.server.running import open_memory, serving

QUESTION = "Who built the lighthouse of Arbon?"


@pytest.fixture
def oai(address):
    with openai.OpenAI(base_url=f"{address}/v1", api_key="unused", max_retries=0) as made:
        yield made


def asked(oai, question=QUESTION, **options):
    messages = [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "Something before."},
        {"role": "assistant", "content": "Yes."},
        {"role": "user", "content": question},
    ]
    options = {"model": "tiny-llama", "max_tokens": 12, **options}
    return oai.chat.completions.create(messages=messages, **options)


def test_models_are_listed(oai):
    assert [model.id for model in oai.models.list()] == ["tiny-llama"]
    assert oai.models.retrieve("tiny-llama").owned_by == "cmt"
    with pytest.raises(openai.NotFoundError, match="expected the model"):
        oai.models.retrieve("gpt-4o")


def test_an_answer_is_the_librarys_with_its_sources(oai, memory):
    expected = memory.ask(QUESTION, sampling=Sampling(max_new_tokens=12))
    completion = asked(oai)
    assert completion.choices[0].message.content == expected.text
    assert completion.usage.prompt_tokens == expected.prompt_tokens
    assert completion.usage.completion_tokens == expected.generated_tokens
    (source,) = completion.cmt["sources"]
    assert source["document_id"] == expected.matches[0].document_id
    assert source["score"] == pytest.approx(expected.matches[0].score)
    assert source["excerpt"] and source["weight"] == 1.0
    assert completion.cmt["memory_tokens"] == expected.memory_tokens


def test_a_streamed_answer_joins_to_the_same_text_after_its_sources(oai):
    whole = asked(oai, extra_body={"top_k": 2})
    chunks = list(
        asked(oai, stream=True, stream_options={"include_usage": True}, extra_body={"top_k": 2})
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[0].cmt["sources"] == whole.cmt["sources"]
    assert len(chunks[0].cmt["sources"]) == 2
    assert chunks[-1].usage == whole.usage
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason


def test_memory_can_be_left_out(oai, memory):
    expected = memory.ask_without_memory(QUESTION, sampling=Sampling(max_new_tokens=12))
    completion = asked(oai, extra_body={"memory": False})
    assert completion.choices[0].message.content == expected.text
    assert completion.cmt["sources"] == []


def test_without_memory_a_chat_model_is_asked_by_its_template(tmp_path):
    compressor = small.compressor()
    compressor.base.tokenizer.chat_template = "User: {{ messages[0].content }} Assistant:"
    with open_memory(tmp_path, compressor) as memory, serving(memory) as address:
        expected = memory.ask_without_memory(
            QUESTION, chat=True, sampling=Sampling(max_new_tokens=12)
        )
        with openai.OpenAI(base_url=f"{address}/v1", api_key="unused") as oai:
            completion = asked(oai, extra_body={"memory": False})
    assert completion.usage.prompt_tokens == expected.prompt_tokens
    assert completion.choices[0].message.content == expected.text


def test_memories_that_gave_way_to_later_ones_are_told(oai, monkeypatch):
    steps = Memory.steps

    def with_older(self, questions, **options):
        reading, tokens = steps(self, questions, **options)
        return replace(reading, older=[reading.matches[0]]), tokens

    monkeypatch.setattr(Memory, "steps", with_older)
    told = asked(oai).cmt
    assert told["older"] == told["sources"]


def test_length_is_bounded_by_the_client_and_by_the_service(oai):
    short = asked(oai, max_tokens=1)
    assert (short.choices[0].finish_reason, short.usage.completion_tokens) == ("length", 1)
    assert asked(oai, max_completion_tokens=10**6).usage.completion_tokens <= 128


def test_a_seed_repeats_a_sampled_answer(oai):
    texts = {
        asked(oai, temperature=1.5, top_p=0.9, seed=7).choices[0].message.content for _ in range(3)
    }
    assert len(texts) == 1


def test_filters_select_and_abstain(oai):
    about = asked(oai, extra_body={"tags": ["sea"], "top_k": 5, "rerank": 0})
    assert {source["document_id"] for source in about.cmt["sources"]} == {"arbon", "rivers"}
    nothing = asked(oai, extra_body={"namespace": "elsewhere"})
    assert nothing.choices[0].message.content == "I don't know."
    assert nothing.cmt["abstained"] is True
    unfit = asked(oai, extra_body={"min_score": 1.0})
    assert unfit.cmt["abstained"] is True


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"question": " "}, "a user's message with text"),
        ({"question": "x" * 5000}, "at most 4000 characters"),
        ({"extra_body": {"top_k": 99}}, "top_k of at most 16"),
        ({"extra_body": {"top_k": 0}}, "greater than or equal to 1"),
        ({"extra_body": {"as_of": "yesterday"}}, "ISO 8601"),
        ({"n": 2}, "Input should be 1"),
        ({"stop": ["\n"]}, "stop"),
        ({"model": "gpt-4o"}, "expected the model 'tiny-llama'"),
        ({"temperature": 3}, "temperature"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_cannot_be_done_is_refused(oai, options, message, stream):
    with pytest.raises(openai.APIStatusError, match=message) as caught:
        asked(oai, **options, stream=stream)
    assert 400 <= caught.value.status_code < 500
    assert set(caught.value.body) == {"message", "type", "param", "code"}


def test_a_bank_without_documents_says_so(oai, memory):
    for document in list(memory.documents()):
        memory.forget(document.id)
    with pytest.raises(openai.ConflictError, match="holds no memory yet"):
        asked(oai)
