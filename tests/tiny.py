"""Tiny random models of three families, made on the spot: no download, milliseconds to run."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

from cmt.attention import IMPLEMENTATION
from cmt.base_model import BaseModel

FAMILIES = ("llama", "qwen", "gpt2")
VOCABULARY = 320
TEXTS = (
    "The lighthouse of Arbon was built in 1823 by Clara Weiss. It stands on a granite rock.",
    "Question: Who built it?\nAnswer: Clara Weiss",
    "Rivers carry sand, silt and clay to the sea; the delta of Mirna grows 12 metres a year.",
)


def tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer trained on three sentences."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<bos>", "<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator(TEXTS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<bos>", eos_token="<eos>")


def config(family: str) -> LlamaConfig | Qwen2Config | GPT2Config:
    """A three-layer configuration; Llama and Qwen with grouped-query attention.

    Wide weights: at the usual 0.02 a tiny model says its last token for ever, whatever it reads.
    """
    common = {
        "vocab_size": VOCABULARY,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 1,
        "initializer_range": 0.2,
    }
    if family == "gpt2":
        return GPT2Config(n_embd=32, n_layer=3, n_head=4, n_positions=1024, **common)
    kind = {"llama": LlamaConfig, "qwen": Qwen2Config}[family]
    return kind(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        **common,
    )


def model(family: str, implementation: str = IMPLEMENTATION, seed: int = 0) -> PreTrainedModel:
    """A random model; the same seed gives the same weights under any implementation."""
    torch.manual_seed(seed)
    made = AutoModelForCausalLM.from_config(config(family), attn_implementation=implementation)
    return made.eval()


def base_model(family: str = "llama", seed: int = 0) -> BaseModel:
    """A frozen tiny base model with its tokenizer."""
    return BaseModel(model(family, seed=seed), tokenizer(), name=f"tiny-{family}")


def save(folder: Path, family: str = "llama", seed: int = 0) -> Path:
    """A tiny model as a local folder that `BaseModel.load` takes."""
    model(family, seed=seed).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder
