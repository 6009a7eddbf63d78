"""Where an answer's attention went, against transformers' own eager attention."""

from dataclasses import replace

import pytest
import torch

from cmt import replaying
from cmt.aggregating import Aggregation
from cmt.aggregation import Prefix
from cmt.generation import Sampling, collect, stream
from cmt.server.attention_share import attention_share
from tests import small
from tests.server.running import open_memory

SIDE_BY_SIDE = Aggregation(how="concatenate")
QUESTION = "How much does the delta of Mirna grow a year?"


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_shares_sum_to_one_and_are_eager_attentions(tmp_path, family):
    with open_memory(tmp_path, small.compressor(family)) as memory:
        sampling = Sampling(max_new_tokens=6)
        questions = ["Who?", QUESTION]
        reading, steps = memory.steps(
            questions, top_k=3, rerank=0, sampling=sampling, aggregation=SIDE_BY_SIDE
        )
        tokens = collect(steps, 2)[1]
        share = attention_share(reading, 1, tokens)
        assert len(share.memories) == 3 and all(part > 0 for part in share.memories)
        assert sum(share.memories) + share.sink + share.text == pytest.approx(1.0, abs=1e-5)

        seen = []
        model = reading.base.model
        usual = model.config._attn_implementation
        model.set_attn_implementation("eager")
        hooks = [
            module.register_forward_hook(lambda _module, _args, output: seen.append(output[1]))
            for name, module in model.named_modules()
            if name.endswith((".self_attn", ".attn"))
        ]

        own = Prefix(
            memories=reading.prefix.memories[1:],
            log_weights_BP=reading.prefix.log_weights_BP[1:],
            tokens=reading.prefix.tokens[1:],
        )
        read = [*reading.tokens[1], *tokens[:-1]]
        next(stream(reading.base, [read], own, start=reading.start, sampling=sampling), None)
        for hook in hooks:
            hook.remove()
        model.set_attn_implementation(usual)
        expected = torch.stack([layer[0, :, -len(tokens) :] for layer in seen]).mean((0, 1, 2))
        assert share.sink == pytest.approx(float(expected[0]), abs=1e-5)
        first = float(expected[1:5].sum())  # a memory has 4 tokens
        assert share.memories[0] == pytest.approx(first, abs=1e-5)


def test_a_pass_that_would_be_replayed_is_seen(tmp_path, monkeypatch):
    with open_memory(tmp_path, small.compressor()) as memory:
        reading, steps = memory.steps([QUESTION], top_k=3, rerank=0)  # read separately
        tokens = collect(steps, 1)[0]
        expected = attention_share(reading, 0, tokens)
        monkeypatch.setattr(replaying, "serves", lambda *_: True)
        assert attention_share(reading, 0, tokens) == expected


def test_memories_read_separately_share_as_much_as_they_match(tmp_path):
    with open_memory(tmp_path, small.compressor()) as memory:
        reading, steps = memory.steps([QUESTION], top_k=3, rerank=0)
        tokens = collect(steps, 1)[0]
        share = attention_share(reading, 0, tokens)
        assert sum(share.memories) + share.sink + share.text == pytest.approx(1.0, abs=1e-5)
        whole = 0.0
        for number, match in enumerate(reading.matches[0]):
            one = replace(
                reading,
                matches=((match,),),
                prefix=Prefix(
                    memories=reading.prefix.memories[number : number + 1],
                    log_weights_BP=reading.prefix.log_weights_BP[number : number + 1],
                    tokens=(4,),
                ),
            )
            alone = attention_share(one, 0, tokens)
            expected = match.weight * alone.memories[0]
            assert share.memories[number] == pytest.approx(expected, abs=1e-5)
            whole += match.weight * alone.sink
        assert share.sink == pytest.approx(whole, abs=1e-5)


def test_measuring_leaves_the_model_and_its_answers_as_they_were(memory):
    before = memory.ask(QUESTION)
    reading, steps = memory.steps([QUESTION])
    tokens = collect(steps, 1)[0]
    digest = memory.compressor.base.digest()
    attention_share(reading, 0, tokens)
    assert memory.compressor.base.digest() == digest
    assert memory.compressor.base.model.config._attn_implementation == "cmt"
    assert memory.ask(QUESTION).text == before.text


def test_it_comes_with_an_answer_when_asked(client):
    chat = {"model": "tiny-llama", "messages": [{"role": "user", "content": QUESTION}], "top_k": 2}
    told = client.post("/v1/chat/completions", json={**chat, "attention": True}).json()["cmt"]
    assert len(told["attention"]["memories"]) == len(told["sources"]) == 2
    assert client.post("/v1/chat/completions", json=chat).json()["cmt"]["attention"] is None
    alone = {**chat, "attention": True, "memory": False}
    assert client.post("/v1/chat/completions", json=alone).json()["cmt"]["attention"] is None
