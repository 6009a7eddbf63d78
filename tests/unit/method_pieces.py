"""Every method of the benchmark on a tiny model: materials and configurations of tiny size."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path

import pytest

from cmt.base_model import BaseModel
from cmt.checkpoint import save_pretrained
from cmt.methods import Materials, Method, Row
from cmt.methods.answering import AnswerConfig
from cmt.methods.camels import CamelsConfig
from cmt.methods.mbc import MbcConfig
from cmt.methods.soft_method import SoftConfig
from cmt.training import BatchConfig, TrainingConfig
from tests import small, tiny

SOFT = {"memory_tokens": 4, "lora_rank": 4, "heads": 4, "blocks": 2, "documents": 4, "top_k": 2,
        "max_document_tokens": 96, "batch_tokens": 300}  # fmt: skip


def materials(folder: Path, **changes: object) -> Materials:
    """Twenty documents, which are learned, asked about and trained on; two steps."""
    where = tiny.save(folder / "model") if not (folder / "model").exists() else folder / "model"
    checkpoint = folder / "checkpoint"
    if not checkpoint.exists():
        save_pretrained(small.compressor(), checkpoint)
    dataset = small.dataset(20)
    made = Materials(
        base=BaseModel.load(str(where), device="cpu"),
        training=dataset,
        qa_training=dataset,
        asked=dataset,
        folder=folder / "states",
        steps=2,
        checkpoint=checkpoint,
        answers=AnswerConfig(max_new_tokens=4, batch_size=8),
        recipe=TrainingConfig(
            steps=2,
            compressor=small.config(),
            batch=BatchConfig(documents=4, questions_per_document=2, most_memories=2),
            log_every=1,
        ),
    )
    return replace(made, **changes)


def tiny_config(row: Row) -> object:
    """The row's configuration, small enough for a tiny model, otherwise as it is."""
    config = row.config
    if isinstance(config, SoftConfig):
        top_k = {"top_k": 2 if config.top_k else 0}
        config = replace(config, **{**SOFT, **top_k, "group": min(config.group, 3)})
    if isinstance(config, MbcConfig):
        config = replace(config, codes=8, reader_rank=2)
    if isinstance(config, CamelsConfig):
        config = replace(config, batch_documents=2, lora_rank=2)
    return config


def build(row: Row, folder: Path, **changes: object) -> Method:
    """The row's method; skips where an optional package isn't installed."""
    for package in row.needs:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    return row.build(materials(folder, **changes), tiny_config(row))
