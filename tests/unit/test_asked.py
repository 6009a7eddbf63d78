"""The last layer for the tokens that are asked for: it gives what a pass for all tokens gives."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from cmt.attention import IMPLEMENTATION, Asked, PackedPass, asked, pack
from cmt.attention.varlen import VariableLength
from cmt.base_model import BaseModel
from cmt.compressor import Compressor, Encoded, prepare
from cmt.encoding import encode_documents
from tests import small, tiny
from tests.unit.test_varlen import kernels, short  # noqa: F401 (fixtures)

families = pytest.mark.parametrize("family", tiny.FAMILIES)
CLOSE = {"atol": 2e-6, "rtol": 1e-5}
PASSES = {
    "documents": ((30, 7, 1, 16), ()),
    "questions": ((), (6, 3, 1)),
    "both": ((30, 7, 16), (6, 3, 40)),
    "one document": ((11,), ()),
    "one of each": ((1,), (1,)),
}
passes = pytest.mark.parametrize("lengths", PASSES.values(), ids=PASSES.keys())


def rows_of_layers(base: BaseModel) -> list[int]:
    """How many rows each layer's MLP takes in the passes that follow."""
    seen: list[int] = []
    for layer in base.layers:
        layer.mlp.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[1]))
    return seen


@torch.no_grad()
def both(
    compressor: Compressor,
    lengths: tuple[tuple[int, ...], tuple[int, ...]],
    monkeypatch: pytest.MonkeyPatch,
) -> tuple[Encoded, Encoded]:
    """One pass for the asked tokens and one for all of them."""
    batch = prepare(small.tokens(*lengths[0]), small.tokens(*lengths[1], seed=1), 4)
    ours = compressor(batch)
    monkeypatch.setattr(BaseModel, "narrows", lambda _: False)
    return ours, compressor(batch)


def assert_same(ours: Encoded, whole: Encoded) -> None:
    for own, other in zip(ours.memories, whole.memories, strict=True):
        assert torch.equal(own[0], other[0])
        assert torch.equal(own[1], other[1])
    for name in ("document_keys_DC", "question_keys_QC", "document_vectors_DKV"):
        torch.testing.assert_close(getattr(ours, name), getattr(whole, name), **CLOSE)
    own_vectors, vectors = ours.question_vectors, whole.question_vectors
    assert own_vectors is not None
    assert vectors is not None
    torch.testing.assert_close(own_vectors.vectors_TV, vectors.vectors_TV, **CLOSE)
    torch.testing.assert_close(own_vectors.weights_T, vectors.weights_T, **CLOSE)


@families
@passes
def test_equals_a_pass_for_all_tokens(
    family: str,
    lengths: tuple[tuple[int, ...], tuple[int, ...]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compressor = small.compressor(family)
    assert_same(*both(compressor, lengths, monkeypatch))


@pytest.mark.usefixtures("kernels")
@families
@passes
def test_equals_a_pass_for_all_tokens_in_kernels(
    family: str,
    lengths: tuple[tuple[int, ...], tuple[int, ...]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compressor = small.compressor(family)
    monkeypatch.setattr(VariableLength, "serves", staticmethod(lambda _: True))
    monkeypatch.setattr("cmt.attention.varlen.short_kernels", lambda: None)
    assert_same(*both(compressor, lengths, monkeypatch))


@pytest.mark.usefixtures("kernels")
def test_short_and_long_groups_in_kernels(
    short: ModuleType,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    packing = pack([[30, 7], [3, 6]])
    rows = torch.cat([torch.arange(25, 30), torch.arange(32, 46)])
    own = Asked(rows_A=rows, packing=pack([[5, 5], [3, 6]]))
    query = torch.randn(len(rows), 4, 16)
    keys = torch.randn(46, 2, 16), torch.randn(46, 2, 16)
    expected = asked.attend(packing, own, query, keys, 0.25)
    monkeypatch.setattr(VariableLength, "serves", staticmethod(lambda _: True))
    monkeypatch.setattr("cmt.attention.varlen.short_kernels", lambda: short)
    for longest in (128, 10, 2):
        monkeypatch.setattr(short, "LONGEST", longest)
        torch.testing.assert_close(asked.attend(packing, own, query, keys, 0.25), expected, **CLOSE)


@families
def test_bfloat16(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.model(family).bfloat16()
    compressor = Compressor(BaseModel(model, tiny.tokenizer()), small.config())
    ours, whole = both(compressor, ((30, 7, 16), (6,)), monkeypatch)
    assert torch.equal(ours.stacked(), whole.stacked())
    torch.testing.assert_close(ours.document_keys_DC, whole.document_keys_DC, atol=0.02, rtol=0)
    torch.testing.assert_close(ours.question_keys_QC, whole.question_keys_QC, atol=0.02, rtol=0)


def test_the_last_layer_alone_runs_for_asked_tokens_alone() -> None:
    compressor = small.compressor()
    assert compressor.base._narrows
    seen = rows_of_layers(compressor.base)
    list(encode_documents(compressor, small.tokens(30, 7)))
    assert seen == [47, 47, 10]
    compressor(prepare(small.tokens(30, 7), [], 4))  # with gradients
    assert seen[3:] == [47] * 3
    compressor.base.layers[-1].forward = compressor.base.layers[-1].forward  # as compiled ones
    list(encode_documents(compressor, small.tokens(30, 7)))
    assert seen[6:] == [47] * 3


@families
def test_a_pass_that_asks_for_nothing_is_untouched(family: str) -> None:
    compressor, plain = small.compressor(family), tiny.model(family, "sdpa")
    tokens, places = torch.tensor(small.tokens(9)), torch.arange(9)
    list(encode_documents(compressor, small.tokens(30, 7)))
    outputs = []
    with torch.no_grad():
        assert torch.equal(compressor.base.model(tokens).logits, plain(tokens).logits)
        for base in (compressor.base, tiny.base_model(family)):  # the second has compressed nothing
            run = PackedPass(packing=pack([[9]]))
            outputs.append(base.run_packed(base.embed(tokens[0]), places, run))
    assert torch.equal(*outputs)


@families
def test_rows_that_are_not_asked_for_are_none_of_the_result(family: str) -> None:
    base = tiny.base_model(family)
    embedded, places = base.embed(torch.arange(12)), torch.tensor([*range(5), *range(7)])
    rows = torch.tensor([3, 4, 11])
    asked_for = Asked(rows_A=rows, packing=pack([[2, 1]]))
    with torch.no_grad():
        some = base.run_packed(
            embedded, places, PackedPass(packing=pack([[5, 7]]), asked=asked_for)
        )
        whole = base.run_packed(embedded, places, PackedPass(packing=pack([[5, 7]])))
    assert some.shape == whole.shape
    torch.testing.assert_close(some[rows], whole[rows], **CLOSE)


def test_a_layer_that_cannot_be_left_runs_for_all_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(*_: Any) -> Tensor:
        raise RuntimeError("shapes differ")

    def differs(*given: Any) -> Tensor:
        return attend(*given) + 9

    attend: Callable[..., Tensor] = asked.attend
    for stand_in in (refuses, differs):
        compressor = small.compressor()
        monkeypatch.setattr(asked, "attend", stand_in)
        seen = rows_of_layers(compressor.base)
        [(_, encoded)] = encode_documents(compressor, small.tokens(30, 7))
        assert seen[-3:] == [47] * 3
        assert bool(encoded.document_keys_DC.isfinite().all())


def test_two_base_models_over_one() -> None:
    base = tiny.base_model()
    assert BaseModel(base.model, base.tokenizer)._narrows


def test_a_layer_may_return_its_states_in_a_tuple() -> None:
    rows = Asked(rows_A=torch.tensor([1, 3]), packing=pack([[2]]))
    hidden = torch.ones(1, 2, 5)
    whole = asked.put_back((hidden, None), 4, rows)
    assert torch.equal(whole, asked.put_back(hidden, 4, rows))
    assert whole[0, :, 0].tolist() == [0, 1, 0, 1]


@pytest.mark.parametrize(
    "kind", ["mistral", "qwen3", "gemma", "phi3", "olmo2", "gpt_neox", "qwen2_moe"]
)
def test_other_families(kind: str) -> None:
    settings = {"num_local_experts": 2} if kind == "qwen2_moe" else {}
    config = AutoConfig.for_model(
        kind,
        vocab_size=tiny.VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=8,
        pad_token_id=1,
        **settings,
    )
    torch.manual_seed(0)
    made: Any = AutoModelForCausalLM.from_config(config, attn_implementation=IMPLEMENTATION)
    assert BaseModel(made, tiny.tokenizer())._narrows
