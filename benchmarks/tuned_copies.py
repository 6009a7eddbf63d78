"""What the scripts share that let tuned copies of the frozen model write: options, data, copies."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from cmt.base_model import BaseModel
from cmt.datasets import QADataset, hold_out, load_squad
from cmt.methods import Materials


def add_options(parser: argparse.ArgumentParser, *, temperature: float, batch_size: int) -> None:
    """Which data, which model, how the copies are tuned and how they write."""
    parser.add_argument("--training", type=Path, required=True, help="SQuAD's training file")
    parser.add_argument("--articles", type=int, default=20, help="held out of it (%(default)s)")
    parser.add_argument(
        "--held-out", type=Path, action="append", default=[], help="SQuAD-format file; repeat"
    )
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--device")
    parser.add_argument("--steps", type=int, default=600, help="of tuning (%(default)s)")
    parser.add_argument("--learning-rate", type=float, default=1e-4, help="%(default)s")
    parser.add_argument("--temperature", type=float, default=temperature, help="%(default)s")
    parser.add_argument("--batch-size", type=int, default=batch_size, help="texts (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of sampling")
    parser.add_argument(
        "--states", type=Path, default=Path("runs/asking"), help="of the copies (%(default)s)"
    )


def parts(chosen: argparse.Namespace) -> tuple[QADataset, list[QADataset]]:
    """What copies are tuned on, and all that is held out."""
    whole = load_squad(chosen.training, strict=False)
    training, validation = hold_out(whole, articles=chosen.articles)
    return training, [*(load_squad(file, strict=False) for file in chosen.held_out), validation]


def materials(chosen: argparse.Namespace, training: QADataset) -> Materials:
    """What copies are made from; another seed of sampling tunes the same ones."""
    return Materials(
        base=BaseModel.load(chosen.model, device=chosen.device),
        training=training,
        qa_training=training,
        asked=training,
        folder=chosen.states,
        steps=chosen.steps,
    )


def ready(*copies: BaseModel) -> None:
    """Tuned copies that only write from now on: on a GPU in bfloat16."""
    for copy in copies:
        if copy.device.type == "cuda":
            copy.model.to(torch.bfloat16)
