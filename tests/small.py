"""A small corpus and an untrained compressor whose every weight matters."""

from __future__ import annotations

from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import nn

from cmt.compressor import Compressor, CompressorConfig
from cmt.datasets.qa import QADataset, Question
from cmt.records import Document
from cmt.splitting import split
from tests import tiny

NAMES = ("Arbon", "Mirna", "Selka", "Torvik", "Ulmen", "Varga", "Wistow", "Ysel")
BUILDERS = ("Clara Weiss", "Jon Sand", "Ada Moss", "Ivo Rask", "Lea Holt", "Max Birk", "Una", "Pia")


def dataset(documents: int = 8, articles: int = 2) -> QADataset:
    """Documents about towers, two questions on each; neighbours share an article."""
    texts = [
        f"The tower of {NAMES[i % 8]} {i} was built in {1800 + i} by {BUILDERS[i % 8]}. "
        f"It stands on a rock and is {20 + i} metres high." + " The sea is near." * (i % 3)
        for i in range(documents)
    ]
    return QADataset(
        name="towers",
        documents=tuple(Document(text=text, id=f"tower-{i}") for i, text in enumerate(texts)),
        articles=tuple(i * articles // documents for i in range(documents)),
        questions=tuple(
            question
            for i in range(documents)
            for question in (
                Question(
                    id=f"who-{i}",
                    text=f"Who built the tower of {NAMES[i % 8]} {i}?",
                    answers=(BUILDERS[i % 8],),
                    document=i,
                ),
                Question(
                    id=f"when-{i}",
                    text=f"When was the tower of {NAMES[i % 8]} {i} built?",
                    answers=(f"in {1800 + i}", f"{1800 + i}"),
                    document=i,
                ),
            )
        ),
    )


def long_dataset() -> QADataset:
    """Five documents, two of them of several pieces."""
    whole = dataset(5)
    documents = list(whole.documents)
    for number in (1, 3):
        text = documents[number].text + " And more is told of it here, at length." * 8
        documents[number] = Document(text=text, id=f"long-{number}")
    return QADataset(
        name="long", documents=tuple(documents), articles=whole.articles, questions=whole.questions
    )


def pieces(compressor: Compressor, dataset: QADataset) -> tuple[list[list[int]], list[int]]:
    """Token ids of every piece that the documents are split into, and each one's document."""
    found, owners = [], []
    for number, document in enumerate(dataset.documents):
        for piece in split(
            document.text, compressor.base.tokenizer, max_tokens=96, overlap_tokens=8
        ):
            found.append(list(piece.token_ids))
            owners.append(number)
    return found, owners


SETTINGS = {
    "memory_tokens": 4,
    "key_size": 16,
    "vector_size": 8,
    "lora_rank": 4,
    "lora_alpha": 8,
    "max_piece_tokens": 96,
    "overlap_tokens": 8,
}


def config(**changes: Any) -> CompressorConfig:
    """A small compressor's configuration."""
    return CompressorConfig(**{**SETTINGS, **changes})


def compressor(family: str = "llama", seed: int = 0, **changes: Any) -> Compressor:
    """A compressor over a fresh tiny base model, every weight moved off its first value.

    PEFT begins with B = 0, where adapters do nothing and half of the gradients are zero.
    """
    base = tiny.base_model(family)
    torch.manual_seed(seed)
    made = Compressor(base, config(**changes))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return made


def peft_twin(compressor: Compressor, family: str) -> tuple[PeftModel, dict[str, nn.Parameter]]:
    """Plain transformers under PEFT's own LoRA with the same weights, and those by our names."""
    settings = compressor.config
    twin = get_peft_model(
        tiny.model(family, "sdpa"),
        LoraConfig(
            r=settings.lora_rank,
            lora_alpha=settings.lora_alpha,
            target_modules="all-linear",
            task_type="CAUSAL_LM",
            fan_in_fan_out=family == "gpt2",
        ),
    )
    theirs = {
        f"{name}.{part}".replace(".", "/"): getattr(module, part)["default"].weight
        for name, module in twin.base_model.model.named_modules()
        if isinstance(module, LoraLayer)
        for part in ("lora_A", "lora_B")
    }
    with torch.no_grad():
        for name, weight in compressor.lora.named_parameters():
            theirs[name].copy_(weight)
    return twin.eval(), theirs


def tokens(*lengths: int, seed: int = 0) -> list[list[int]]:
    """Random token ids without special ones, a list of each length."""
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randint(2, tiny.VOCABULARY, (length,), generator=generator).tolist()
        for length in lengths
    ]
