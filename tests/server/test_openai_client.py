"""OpenAI's own client against a running server."""

from dataclasses import replace
from typing import get_args

import httpx2
import openai
import pytest
from openai.types.chat.completion_create_params import (
    CompletionCreateParamsNonStreaming,
    CompletionCreateParamsStreaming,
)

from cmt.aggregating import WAYS, Aggregation
from cmt.generation import Sampling
from cmt.memory import Memory
from cmt.server.chat_schemas import ChatRequest
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
        ({"stop": "x"}, "stop"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"logit_bias": {"50": 1}}, "logit_bias"),
        ({"frequency_penalty": 2}, "frequency_penalty"),
        ({"presence_penalty": -0.5}, "presence_penalty"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"reasoning_effort": "high"}, "reasoning_effort"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"extra_body": {"topk": 5}}, "topk: Extra inputs are not permitted"),
        ({"extra_body": {"aggregate": "sum"}}, "aggregate"),
        ({"extra_body": {"lexical": -1}}, "lexical"),
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


NEUTRAL = {
    "stop": [],
    "tools": [],
    "tool_choice": "auto",
    "functions": [],
    "function_call": "none",
    "logit_bias": {},
    "logprobs": False,
    "top_logprobs": 0,
    "n": 1,
    "frequency_penalty": 0.0,
    "presence_penalty": 0,
    "response_format": {"type": "text"},
    "modalities": ["text"],
    "reasoning_effort": "none",
    "verbosity": "medium",
}
IGNORED = {
    "metadata": {"a": "b"},
    "parallel_tool_calls": True,
    "prediction": {"type": "content", "content": "Clara Weiss"},
    "prompt_cache_key": "key",
    "prompt_cache_options": {"mode": "implicit"},
    "prompt_cache_retention": "24h",
    "safety_identifier": "someone",
    "service_tier": "auto",
    "store": True,
    "user": "someone",
}


def test_what_asks_for_nothing_or_does_not_change_the_answer_is_taken(oai):
    expected = asked(oai).choices[0].message.content
    assert asked(oai, **NEUTRAL, **IGNORED).choices[0].message.content == expected
    absent = dict.fromkeys([*NEUTRAL, *IGNORED, "audio", "moderation", "web_search_options"])
    assert asked(oai, **absent).choices[0].message.content == expected
    streamed = {"include_usage": False, "include_obfuscation": False}
    chunks = asked(oai, stream=True, stream_options=streamed)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == expected


def test_every_parameter_of_openais_client_is_known():
    for params in (CompletionCreateParamsNonStreaming, CompletionCreateParamsStreaming):
        assert set(params.__required_keys__ | params.__optional_keys__) <= set(
            ChatRequest.model_fields
        )


@pytest.mark.parametrize("how", WAYS)
def test_memories_are_found_and_read_as_asked(oai, memory, how):
    expected = memory.ask(
        QUESTION,
        top_k=3,
        lexical=2.0,
        aggregation=Aggregation(how=how),
        sampling=Sampling(max_new_tokens=12),
    )
    body = {"top_k": 3, "lexical": 2.0, "aggregate": how, "attention": True}
    completion = asked(oai, extra_body=body)
    assert completion.choices[0].message.content == expected.text
    weights = [source["weight"] for source in completion.cmt["sources"]]
    assert weights == pytest.approx([match.weight for match in expected.matches])
    assert weights != pytest.approx(
        [match.weight for match in memory.ask(QUESTION, top_k=3).matches]
    )


def test_the_ways_of_reading_are_the_librarys():
    literal, _ = get_args(ChatRequest.model_fields["aggregate"].annotation)
    assert get_args(literal) == WAYS


def test_a_bank_without_documents_says_so_once(address, memory):
    for document in list(memory.documents()):
        memory.forget(document.id)
    with openai.OpenAI(base_url=f"{address}/v1", api_key="unused") as retrying:
        with pytest.raises(openai.BadRequestError, match="holds no memory yet") as caught:
            asked(retrying)
    assert caught.value.code == "empty_bank"
    counted = httpx2.get(f"{address}/metrics").text
    assert 'route="/v1/chat/completions",status="400"} 1.0' in counted
