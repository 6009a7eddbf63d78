"""A copy of the frozen model whose weights may be tuned, and its tuning on questions.

The frozen model itself is never written. The copy has float32 weights: steps of 1e-5 would be
lost in bfloat16.

Shape legend: T target tokens of all sequences, S sequences.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from transformers import AutoModelForCausalLM

from cmt.attention import IMPLEMENTATION
from cmt.base_model import BaseModel
from cmt.errors import InputError
from cmt.methods.fitting import fit
from cmt.methods.materials import Materials
from cmt.reading import prepare_reading, question_tokens, read
from cmt.tensors import move
from cmt.tokens import token_ids


def copy_of(base: BaseModel) -> BaseModel:
    """A tunable float32 copy, without any adapter that lies over `base`."""
    model = AutoModelForCausalLM.from_config(
        copy.deepcopy(base.model.config), attn_implementation=IMPLEMENTATION, dtype=torch.float32
    )
    weights = {name: tensor.float().cpu() for name, tensor in base.own_parameters()}
    model.load_state_dict(weights, strict=False)  # tied weights are listed once
    model.generation_config = copy.deepcopy(base.model.generation_config)
    made = BaseModel(model.to(base.device), base.tokenizer, name=f"{base.name}-copy")
    assert made.fingerprint == base.fingerprint, "the copy has the same weights"
    made.model.requires_grad_(True)
    return made


def sequence_losses(
    reader: BaseModel, prompts: Sequence[Sequence[int]], targets: Sequence[Sequence[int]]
) -> tuple[Tensor, Tensor]:
    """−log p of every target token after its prompt and the targets before it.

    Returns:
        The losses (T,) in float32, with gradients where the reader takes them, and the sequence
        each belongs to (T,).
    """
    logits_TV, labels_T = sequence_logits(reader, prompts, targets)
    losses_T = functional.cross_entropy(logits_TV.float(), labels_T, reduction="none")
    lengths_S = torch.tensor([len(target) for target in targets], device=reader.device)
    owners_T = torch.arange(len(targets), device=reader.device).repeat_interleave(lengths_S)
    return losses_T, owners_T


def sequence_logits(
    reader: BaseModel, prompts: Sequence[Sequence[int]], targets: Sequence[Sequence[int]]
) -> tuple[Tensor, Tensor]:
    """Logits (T, vocabulary) that predict every target token, and those tokens (T,)."""
    batch = move(prepare_reading([prompts], [targets], [], 0), reader.device)
    return reader.logits(read(reader, batch, None)), batch.labels_T


def first_token(reader: BaseModel) -> int:
    """What stands before a text that is learned as it is: the token of the attention sink."""
    token = reader.tokenizer.bos_token_id
    return int(token if token is not None else reader.tokenizer.eos_token_id or 0)


def end_token(reader: BaseModel) -> int:
    """What a target of training ends with.

    Raises:
        InputError: The tokenizer has no end token.
    """
    end: int | None = reader.tokenizer.eos_token_id
    if end is None:
        raise InputError("expected a tokenizer with an end token to end answers, got none")
    return end


def answer_tokens(
    reader: BaseModel, answers: Sequence[Sequence[str]], most: int
) -> list[list[int]]:
    """The shortest gold answer to each question as the target of training, its end included.

    Raises:
        InputError: The tokenizer has no end token.
    """
    end = end_token(reader)
    texts = [" " + min(own, key=len) for own in answers]
    tokens = token_ids(reader.tokenizer, texts)
    return [[*own[:most], end] for own in tokens]


@dataclass(frozen=True, kw_only=True, slots=True)
class QaTuningConfig:
    """Tuning the copy on questions and answers, the passages unseen: the peers' first step.

    Attributes:
        questions: Questions a step.
        most_epochs: The run stops after so many passes, however much time is left.
    """

    questions: int = 64
    learning_rate: float = 3e-5
    most_epochs: int = 2
    warmup_steps: int = 20
    max_answer_tokens: int = 24


def qa_tuned(materials: Materials, config: QaTuningConfig | None = None) -> BaseModel:
    """The copy tuned on the protocol's questions 0–40006; trained once a folder, then loaded.

    Raises:
        InputError: Neither steps nor minutes bound the training.
    """
    config = config or QaTuningConfig()
    reader, data = copy_of(materials.base), materials.qa_training
    questions = question_tokens(reader.tokenizer, [q.text for q in data.questions])
    answers = answer_tokens(reader, [q.answers for q in data.questions], config.max_answer_tokens)
    folder = materials.state_folder("qa_tuned", config)
    tune(reader, questions, answers, materials, config, folder)
    reader.name = f"{materials.base.name}-qa-tuned"
    return reader


def tune(
    reader: BaseModel,
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
    materials: Materials,
    config: QaTuningConfig,
    folder: Path,
) -> None:
    """Tune the reader to give each answer after its prompt; trained once a folder, then loaded.

    Raises:
        InputError: Neither steps nor minutes bound the training.
    """
    size = min(config.questions, len(prompts))
    most = max(1, config.most_epochs * len(prompts) // size)

    def loss_of(step: int) -> dict[str, Tensor]:
        epoch, place = divmod(step * size, len(prompts) - len(prompts) % size)
        order = np.random.default_rng((materials.seed, epoch)).permutation(len(prompts))
        rows = order[place : place + size]
        losses_T, _ = sequence_losses(
            reader, [prompts[i] for i in rows], [answers[i] for i in rows]
        )
        return {"loss": losses_T.mean()}

    run = materials.fit_config(
        learning_rate=config.learning_rate,
        warmup_steps=config.warmup_steps,
        weight_decay=0.0,
        documents=size,
    )
    run = replace(run, steps=most if run.steps is None else min(run.steps, most))
    fit(reader.model, loss_of, run, folder, reader.device)
