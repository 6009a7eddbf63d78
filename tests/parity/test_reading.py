"""A memory that is the document's own key/value cache reads like the document itself.

``bos + document`` goes through a packed pass, the document's keys and values are captured at
their own places and given back as a memory, with the sink (``bos`` at place 0) in front of it.
What the frozen model then makes of a question must be what plain transformers makes of
``bos + document + question`` under ``sdpa``.

Close (1e-5) and not equal: the same numbers are multiplied, but in matrices of other shapes
(packed rows, keys put before the question's), and float32 sums depend on their order.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cmt.aggregation import Prefix, aggregate
from cmt.attention import LayerKV, PackedPass, pack
from cmt.base_model import BaseModel
from cmt.generation import Sampling, generate, stream
from cmt.reading import prepare_reading, read
from tests import small, tiny

families = pytest.mark.parametrize("family", tiny.FAMILIES)
DOCUMENT, QUESTION, ANSWER = small.tokens(30, 9, 6, seed=3)
BOS = 0
START = 1 + len(DOCUMENT)


@torch.no_grad()
def own_cache(base: BaseModel, document: list[int]) -> list[LayerKV]:
    """Keys and values of the document after ``bos``, each (1, n, G, E), for every layer."""
    tokens = torch.tensor([BOS, *document])
    places = torch.arange(len(tokens))
    run = PackedPass(packing=pack([[len(tokens)]]), capture=places[1:])
    base.run_packed(base.embed(tokens), places, run)
    return [(key[None], value[None]) for key, value in run.captured]


def as_prefix(cache: list[LayerKV]) -> Prefix:
    layers = [torch.stack([part[0].transpose(0, 1) for part in pair]) for pair in cache]
    return aggregate([[torch.stack(layers)]], [[1.0]])


@torch.no_grad()
def plain_logits(family: str, *texts: list[int]) -> Tensor:
    row = torch.tensor([[token for text in texts for token in text]])
    logits: Tensor = tiny.model(family, "sdpa")(row).logits[0]
    return logits


@families
def test_the_sink_is_bos_at_place_0(family: str) -> None:
    base = tiny.base_model(family)
    with torch.no_grad():
        cache = tiny.model(family, "sdpa")(torch.tensor([[BOS, *DOCUMENT]])).past_key_values
    for (key, value), layer in zip(base.sink, cache.layers, strict=True):
        torch.testing.assert_close(key, layer.keys[0, :, :1].transpose(0, 1), atol=1e-5, rtol=0)
        torch.testing.assert_close(value, layer.values[0, :, :1].transpose(0, 1), atol=1e-5, rtol=0)


@families
def test_captured_cache_is_transformers_cache(family: str) -> None:
    base = tiny.base_model(family)
    with torch.no_grad():
        cache = tiny.model(family, "sdpa")(torch.tensor([[BOS, *DOCUMENT]])).past_key_values
    for (key, value), layer in zip(own_cache(base, DOCUMENT), cache.layers, strict=True):
        torch.testing.assert_close(key.transpose(1, 2), layer.keys[:, :, 1:], atol=1e-5, rtol=0)
        torch.testing.assert_close(value.transpose(1, 2), layer.values[:, :, 1:], atol=1e-5, rtol=0)


@families
def test_answer_logits_through_reading(family: str) -> None:
    base = tiny.base_model(family)
    batch = prepare_reading([[QUESTION]], [[ANSWER]], [], start=START)
    batch.packing.groups[0].memories_BM = torch.zeros(1, 1, dtype=torch.long)
    with torch.no_grad():
        ours = base.logits(read(base, batch, own_cache(base, DOCUMENT)))
    theirs = plain_logits(family, [BOS], DOCUMENT, QUESTION, ANSWER[:-1])
    torch.testing.assert_close(ours, theirs[-len(ANSWER) :], atol=1e-5, rtol=0)
    assert batch.labels_T.tolist() == ANSWER
    unlike = plain_logits(family, [BOS], QUESTION, ANSWER[:-1])[-len(ANSWER) :]
    assert (ours - unlike).abs().max() > 1e-3, "the document doesn't matter: nothing is shown"


@families
def test_answer_logits_without_memory(family: str) -> None:
    base = tiny.base_model(family)
    batch = prepare_reading([[QUESTION, QUESTION[:4]]], [[ANSWER, ANSWER[:2]]], [], start=0)
    with torch.no_grad():
        ours = base.logits(read(base, batch, None))
    first = plain_logits(family, QUESTION, ANSWER[:-1])[-len(ANSWER) :]
    second = plain_logits(family, QUESTION[:4], ANSWER[:1])[-2:]
    torch.testing.assert_close(ours, torch.cat([first, second]), atol=1e-5, rtol=0)


@families
def test_retold_document_reads_its_memory(family: str) -> None:
    """The retelling token is any embedding; here the one of a token, so transformers has it."""
    base = tiny.base_model(family)
    batch = prepare_reading([], [], [ANSWER], start=START)
    batch.packing.groups[0].memories_BM = torch.zeros(1, 1, dtype=torch.long)
    opening = base.embed(torch.tensor(7))
    with torch.no_grad():
        ours = base.logits(read(base, batch, own_cache(base, DOCUMENT), opening))
    theirs = plain_logits(family, [BOS], DOCUMENT, [7], ANSWER[:-1])
    torch.testing.assert_close(ours, theirs[-len(ANSWER) :], atol=1e-5, rtol=0)


@families
def test_generation_with_a_prefix(family: str) -> None:
    base = tiny.base_model(family)
    sampling = Sampling(max_new_tokens=12)
    prefix = as_prefix(own_cache(base, DOCUMENT))
    seen: list[Tensor] = []
    head = base.model.get_output_embeddings()
    hook = head.register_forward_hook(lambda *call: seen.append(call[-1][0]))
    [ours] = generate(base, [QUESTION], prefix, start=START, sampling=sampling)
    hook.remove()
    expected = tiny.model(family, "sdpa").generate(
        torch.tensor([[BOS, *DOCUMENT, *QUESTION]]),
        do_sample=False,
        max_new_tokens=12,
        pad_token_id=1,
        return_dict_in_generate=True,
        output_logits=True,
    )
    theirs = expected.sequences[0, START + len(QUESTION) :].tolist()
    assert ours == (theirs[:-1] if theirs[-1] == 1 else theirs)
    torch.testing.assert_close(torch.stack(seen), torch.cat(expected.logits), atol=1e-5, rtol=0)
    steps = list(stream(base, [QUESTION], prefix, start=START, sampling=sampling))
    assert [token for (token,) in steps if token is not None] == ours


@families
def test_generated_tokens_have_the_logits_of_reading(family: str) -> None:
    """Teacher-forced reading and cached generation see the same memories at the same places."""
    base = tiny.base_model(family)
    cache = own_cache(base, DOCUMENT)
    sampling = Sampling(max_new_tokens=8)
    [text] = generate(base, [QUESTION], as_prefix(cache), start=START, sampling=sampling)
    assert text
    batch = prepare_reading([[QUESTION]], [[text]], [], start=START)
    batch.packing.groups[0].memories_BM = torch.zeros(1, 1, dtype=torch.long)
    with torch.no_grad():
        read_logits = base.logits(read(base, batch, cache))
    assert read_logits.argmax(-1).tolist() == text
