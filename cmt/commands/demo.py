"""cmt demo: learn a few passages, then ask about them with and without memory."""

from __future__ import annotations

import json
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cmt.commands.options import model_options, size
from cmt.readers import read_path

if TYPE_CHECKING:
    from cmt.memory import Memory
    from cmt.memory_records import Progress
    from cmt.records import Answer

FOLDER = Path(str(resources.files("cmt"))) / "demo"
BATCH_TOKENS = 1024  # small, so that there is something to see
MOST_TOKENS = 24  # of the frozen model's own answer, which seldom comes to an end


@dataclass(frozen=True, slots=True)
class _Question:
    text: str
    gold: str
    document: str


@click.command()
@click.option(
    "--bank",
    type=click.Path(path_type=Path),
    help="Keep what is learned in this file.  [default: a temporary one]",
)
@model_options
def demo(bank: Path | None, **model: Any) -> None:
    """Learn 41 Wikipedia passages, then ask 13 questions about them.

    Each question is answered twice by the same frozen model: by itself, in its own chat
    format, and with the memory that the question finds.
    """
    from cmt.memory import Memory

    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        memory = stack.enter_context(Memory.open(bank or Path(folder) / "demo.sqlite", **model))
        before = memory.compressor.base.digest()
        _learn(memory)
        questions = [
            _Question(record["question"], record["answers"][0], record["document"])
            for record in map(json.loads, (FOLDER / "questions.jsonl").read_text().splitlines())
        ]
        _ask(memory, questions)
        after = memory.compressor.base.digest()
    same = "the same before and after" if before == after else f"CHANGED to {after[:16]}"
    click.echo(f"The frozen model's weights: sha256 {before[:16]}, {same}.")
    click.echo(f"The texts' authors and licences: {FOLDER / 'NOTICE.md'}")


def _learn(memory: Memory) -> None:
    config = memory.compressor.config
    click.echo(
        f"Learning with {memory.compressor.base.name}: each passage is compressed once, into the "
        f"keys and values of {config.memory_tokens} tokens.\n"
    )
    began = time.perf_counter()

    def show(progress: Progress) -> None:
        seconds = time.perf_counter() - began
        click.echo(
            f"  {progress.documents:>3} documents  {progress.tokens:>6,} tokens  "
            f"{size(progress.memory_bytes):>8}  {seconds:>5.1f} s  "
            f"{progress.documents / seconds:>5.1f} documents/s  "
            f"{progress.tokens / seconds:>6,.0f} tokens/s"
        )

    memory.add(read_path(FOLDER / "documents.jsonl"), on_progress=show, batch_tokens=BATCH_TOKENS)


def _ask(memory: Memory, questions: list[_Question]) -> None:
    right_alone = right = found = 0
    for number, question in enumerate(questions, start=1):
        without, answer = _without_memory(memory, question.text), memory.ask(question.text)
        best = answer.matches[0]
        right_alone += _holds(without, question.gold)
        right += _holds(answer, question.gold)
        found += best.document_id == question.document
        note = "" if best.document_id == question.document else ", not the right passage"
        click.echo(f"\n{number:>2}. {question.text}")
        click.echo(f"    without memory  {_line(without)}")
        click.echo(f"    with memory     {_line(answer)}")
        click.echo(f"    gold answer     {question.gold}")
        click.echo(f"    memory found    {best.title} ({best.document_id}), ", nl=False)
        click.echo(f"score {best.score:.2f}{note}")
    click.echo(
        f"\nThe gold answer is in {right} of {len(questions)} answers with memory, in "
        f"{right_alone} without; {found} questions found the right passage."
    )


def _without_memory(memory: Memory, question: str) -> Answer:
    """The frozen model at its best: in its own chat format, if it has one."""
    from cmt.generation import Sampling

    chat = bool(getattr(memory.compressor.base.tokenizer, "chat_template", None))
    return memory.ask_without_memory(
        question, chat=chat, sampling=Sampling(max_new_tokens=MOST_TOKENS)
    )


def _holds(answer: Answer, gold: str) -> bool:
    from cmt.metrics import normalise

    return f" {normalise(gold)} " in f" {normalise(answer.text)} "


def _line(answer: Answer) -> str:
    return " ".join(answer.text.split()) or "(nothing)"
