"""Loading, refusing what can't work, and the packed pass."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BloomConfig,
    CohereConfig,
    DeepseekV3Config,
    Gemma2Config,
    GptOssConfig,
    MambaConfig,
    MistralConfig,
    PreTrainedConfig,
    StableLmConfig,
    T5Config,
    T5ForConditionalGeneration,
)

from cmt.attention import IMPLEMENTATION, PackedPass, pack
from cmt.base_model import BaseModel
from cmt.errors import ModelError
from cmt.model_structure import Dimensions, decoder_layers
from tests import small, tiny

COMMON = {
    "vocab_size": tiny.VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 1,
}


def random_model(config: PreTrainedConfig) -> BaseModel:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=IMPLEMENTATION)
    return BaseModel(model, tiny.tokenizer(), name="odd")


@pytest.mark.parametrize(("family", "kv_heads"), [("llama", 2), ("qwen", 2), ("gpt2", 4)])
def test_dimensions(family: str, kv_heads: int) -> None:
    base = tiny.base_model(family)
    assert base.dimensions == Dimensions(
        layers=3, hidden_size=32, kv_heads=kv_heads, head_size=8, vocabulary=tiny.VOCABULARY
    )
    assert base.device == torch.device("cpu")
    assert base.dtype == torch.float32
    assert base.max_positions == 1024
    assert [tuple(part.shape) for pair in base.sink for part in pair] == [(1, kv_heads, 8)] * 6
    assert base.sink_memory.shape == (3, 2, kv_heads, 1, 8)
    for layer, pair in zip(base.sink_memory, base.sink, strict=True):
        assert all(torch.equal(own[:, 0], part[0]) for own, part in zip(layer, pair, strict=True))


def test_end_tokens_are_the_tokenizers_and_the_generation_configurations() -> None:
    base = tiny.base_model()
    assert base.end_tokens == {1}
    base.model.generation_config.eos_token_id = [7, 9]
    assert base.end_tokens == {1, 7, 9}
    base.model.generation_config.eos_token_id = None
    base.tokenizer.eos_token = None
    assert base.end_tokens == frozenset()


def test_another_attention_implementation_is_refused() -> None:
    with pytest.raises(ModelError, match="attn_implementation='cmt', got 'sdpa'"):
        BaseModel(tiny.model("llama", "sdpa"), tiny.tokenizer())


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (Gemma2Config(**COMMON, head_dim=8), "caps its scores or has learned sinks"),
        (
            Gemma2Config(**COMMON, head_dim=8, attn_logit_softcapping=None),
            "expected logits as the output head gives them, got Gemma2ForCausalLM, which caps them",
        ),
        (
            GptOssConfig(**COMMON, head_dim=8, num_local_experts=2, num_experts_per_tok=1),
            "caps its scores or has learned sinks",
        ),
        (
            MambaConfig(vocab_size=tiny.VOCABULARY, hidden_size=32, num_hidden_layers=2),
            "expected a transformer with attention heads, got MambaForCausalLM",
        ),
        (
            BloomConfig(vocab_size=tiny.VOCABULARY, hidden_size=32, n_layer=2, n_head=4),
            "expected a decoder-only model that runs packed attention, got odd",
        ),
        (StableLmConfig(**COMMON), "got a layer that hands over none"),
        (CohereConfig(**COMMON), r"expected odd's own logits .*relative difference 15\.00"),
        (
            BertConfig(**{k: v for k, v in COMMON.items() if k != "num_key_value_heads"}),
            "expected odd's own logits",
        ),
        (
            DeepseekV3Config(
                **{**COMMON, "num_key_value_heads": 4},
                n_routed_experts=4,
                n_group=1,
                topk_group=1,
                num_experts_per_tok=2,
                q_lora_rank=8,
                kv_lora_rank=8,
                qk_rope_head_dim=4,
                v_head_dim=8,
                qk_nope_head_dim=4,
                first_k_dense_replace=1,
                moe_intermediate_size=16,
            ),
            "expected keys and values of 4 heads of size 4 in every layer of odd",
        ),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, PreTrainedConfig) else "",
)
def test_models_that_attend_otherwise_are_refused(config: PreTrainedConfig, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        random_model(config)


def test_an_encoder_decoder_is_refused() -> None:
    config = T5Config(vocab_size=320, d_model=32, d_kv=8, d_ff=32, num_layers=2, num_heads=4)
    with pytest.raises(ModelError, match="decoder-only causal LM, got T5ForConditionalGeneration"):
        BaseModel(T5ForConditionalGeneration(config), tiny.tokenizer())


def test_layers_that_are_not_there() -> None:
    with pytest.raises(ModelError, match="expected 5 decoder layers in LlamaForCausalLM"):
        decoder_layers(tiny.model("llama"), 5)


def test_a_segment_longer_than_the_sliding_window_is_refused() -> None:
    base = random_model(MistralConfig(**COMMON, sliding_window=8))
    row, places = torch.tensor(small.tokens(9)[0]), torch.arange(9)
    with torch.no_grad():
        hidden = base.run_packed(base.embed(row[:8]), places[:8], PackedPass(packing=pack([[8]])))
        expected = base.model(row[None, :8]).logits[0]
    torch.testing.assert_close(base.logits(hidden), expected, atol=1e-5, rtol=0)
    with pytest.raises(ModelError, match="at most 8 tokens, the sliding window of odd, got one of"):
        base.run_packed(base.embed(row), places, PackedPass(packing=pack([[9]])))
    whole = random_model(MistralConfig(**COMMON, sliding_window=None))
    whole.run_packed(base.embed(row), places, PackedPass(packing=pack([[9]])))


def test_two_base_models_over_one_model_read_alike() -> None:
    model = tiny.model("llama")
    first = BaseModel(model, tiny.tokenizer())
    row, places = torch.tensor(small.tokens(5)[0]), torch.arange(5)
    once = first.run_packed(first.embed(row), places, PackedPass(packing=pack([[5]])))
    second = BaseModel(model, tiny.tokenizer())
    again = second.run_packed(second.embed(row), places, PackedPass(packing=pack([[5]])))
    assert torch.equal(once, again)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny.save(tmp_path / "base")


def load(folder: Path) -> BaseModel:
    return BaseModel.load(str(folder), device="cpu", offline=True)


def test_load(folder: Path) -> None:
    base = load(folder)
    assert base.name == str(folder)
    assert base.dtype == torch.float32
    assert isinstance(base.decoder, nn.Module)


def cut_weights(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def drop_a_weight(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.input_layernorm.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def reshape_a_weight(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.input_layernorm.weight"] = torch.zeros(3)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def break_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def encoder_config(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": "t5"}))


def old_architecture(folder: Path) -> None:
    config = {"model_type": "gptj", "n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 4}
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": 320}))


def drop_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def break_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text('{"model": 1}')


@pytest.mark.parametrize(
    "damage",
    [
        cut_weights,
        reshape_a_weight,
        break_config,
        encoder_config,
        old_architecture,
        drop_tokenizer,
        break_tokenizer,
    ],
)
def test_a_damaged_folder_is_refused(folder: Path, damage: object) -> None:
    damage(folder)  # type: ignore[operator]
    with pytest.raises(
        ModelError, match=r"expected a decoder-only causal language model in .*base"
    ):
        load(folder)


def test_a_missing_weight_is_not_made_up(folder: Path) -> None:
    drop_a_weight(folder)
    with pytest.raises(ModelError, match=r"got none for model.layers.1.input_layernorm.weight \(1"):
        load(folder)


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"without config.json and \*.safetensors"):
        load(tmp_path)
