"""The base model is frozen: not one bit is written, and without memory it is transformers' own.

Every comparison is with a plain transformers model of the same weights under ``sdpa``.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cmt.aggregation import Prefix, aggregate
from cmt.base_model import BaseModel
from cmt.compressor import Compressor, prepare
from cmt.encoding import encode_documents, encode_questions
from cmt.generation import Sampling, generate
from cmt.training.data import BatchConfig, TrainingData
from cmt.training.step import ObjectiveConfig, TrainingStep
from tests import small, tiny

families = pytest.mark.parametrize("family", tiny.FAMILIES)


def padded(prompts: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    longest = max(map(len, prompts))
    rows = [[1] * (longest - len(prompt)) + prompt for prompt in prompts]
    mask = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return torch.tensor(rows), torch.tensor(mask)


def prefix(compressor: Compressor, *lengths: int) -> Prefix:
    """One memory for each length, each with weight 1."""
    [(_, encoded)] = encode_documents(compressor, small.tokens(*lengths))
    return aggregate([[memory] for memory in encoded.stacked()], [[1.0]] * len(lengths))


def train_steps(base: BaseModel, compressor: Compressor, steps: int) -> None:
    settings = BatchConfig(documents=4, questions_per_document=2, retold_share=0.5)
    data = TrainingData(
        small.dataset(), base.tokenizer, settings, memory_tokens=4, max_piece_tokens=96
    )
    step = TrainingStep(base, compressor, ObjectiveConfig(alpha=0.5), len(data.documents))
    optimizer = torch.optim.AdamW(compressor.parameters(), lr=1e-2)
    for number in range(steps):
        step(data[number])["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()


@families
def test_digest_is_the_same_after_everything(family: str) -> None:
    base = tiny.base_model(family)
    before = base.digest()
    fingerprint = base.fingerprint
    compressor = Compressor(base, small.config())
    assert base.digest() == before
    encode_questions(compressor, small.tokens(5, 7))
    generate(base, small.tokens(5, 7), prefix(compressor, 20, 30), start=97)
    assert base.digest() == before
    first = {name: value.clone() for name, value in compressor.state_dict().items()}
    train_steps(base, compressor, 3)
    changed = [n for n, value in compressor.state_dict().items() if not value.equal(first[n])]
    assert len(changed) == len(first), "training did nothing: the test shows nothing"
    assert base.digest() == before
    compressor.detach()
    assert base.digest() == before
    del base.fingerprint
    assert base.fingerprint == fingerprint
    assert not any(parameter.requires_grad for parameter in base.model.parameters())


def test_digest_sees_one_bit() -> None:
    base = tiny.base_model()
    before, fingerprint = base.digest(), base.fingerprint
    weight = base.model.model.layers[1].mlp.up_proj.weight
    weight.view(torch.int32)[0, 0] ^= 1
    del base.fingerprint
    assert base.digest() != before
    assert base.fingerprint == fingerprint, "bfloat16 rounds this bit away, on purpose"


@families
def test_logits_without_memory_are_transformers_own(family: str) -> None:
    base, plain = tiny.base_model(family), tiny.model(family, "sdpa")
    rows, mask = padded(small.tokens(9, 17, 4))

    def check() -> None:
        with torch.no_grad():
            assert torch.equal(base.model(rows).logits, plain(rows).logits)
            ours = base.model(rows, attention_mask=mask).logits
            assert torch.equal(ours, plain(rows, attention_mask=mask).logits)

    check()
    compressor = Compressor(base, small.config())
    with torch.no_grad():
        for parameter in compressor.parameters():
            parameter.add_(torch.randn_like(parameter))
    check()
    compressor(prepare(small.tokens(20), small.tokens(5), 4))
    check()
    generate(base, small.tokens(5, 7), prefix(compressor, 20, 30), start=97)
    check()
    train_steps(base, compressor, 1)
    check()
    compressor.detach()
    check()


def test_grouped_queries_and_cached_steps_are_transformers_own() -> None:
    """The cache's step of one token takes another path inside sdpa."""
    base, plain = tiny.base_model("qwen"), tiny.model("qwen", "sdpa")
    rows, mask = padded(small.tokens(9, 17, 4))
    with torch.no_grad():
        ours = base.model(rows, attention_mask=mask, use_cache=True)
        theirs = plain(rows, attention_mask=mask, use_cache=True)
        more = torch.cat([mask, torch.ones(3, 1, dtype=torch.long)], dim=1)
        for _ in range(3):
            token = theirs.logits[:, -1:].argmax(-1)
            ours = base.model(token, attention_mask=more, past_key_values=ours.past_key_values)
            theirs = plain(token, attention_mask=more, past_key_values=theirs.past_key_values)
            assert torch.equal(ours.logits, theirs.logits)
            more = torch.cat([more, torch.ones(3, 1, dtype=torch.long)], dim=1)


@families
def test_generation_without_prefix_is_transformers_greedy(family: str) -> None:
    compressor, plain = small.compressor(family), tiny.model(family, "sdpa")
    base = compressor.base
    prompts = small.tokens(9, 17, 4)
    rows, mask = padded(prompts)
    generated = plain.generate(
        rows, attention_mask=mask, do_sample=False, max_new_tokens=20, pad_token_id=1
    )
    expected = []
    for row in generated[:, rows.shape[1] :].tolist():
        expected.append(row[: row.index(1)] if 1 in row else row)
    sampling = Sampling(max_new_tokens=20)
    assert generate(base, prompts, sampling=sampling) == expected
    alone = [generate(base, [prompt], sampling=sampling)[0] for prompt in prompts]
    assert alone == expected


def test_loading_from_a_folder_keeps_every_bit(tmp_path: Path) -> None:
    made = tiny.base_model("llama")
    loaded = BaseModel.load(str(tiny.save(tmp_path, "llama")), device="cpu")
    assert loaded.digest() == made.digest()
    assert loaded.fingerprint == made.fingerprint
    halved = BaseModel.load(str(tmp_path), device="cpu", dtype=torch.bfloat16)
    assert halved.fingerprint == made.fingerprint
    assert halved.digest() != made.digest()
