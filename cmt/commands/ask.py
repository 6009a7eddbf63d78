"""cmt ask: answers from what was learned."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import click

from cmt.commands.options import (
    aggregate_option,
    filter_options,
    json_option,
    lexical_option,
    max_new_tokens_option,
    memory_options,
    min_score_option,
    print_answer,
    rerank_option,
    top_k_option,
)
from cmt.errors import InputError


@click.command()
@click.argument("questions", nargs=-1)
@top_k_option
@rerank_option
@lexical_option
@aggregate_option
@max_new_tokens_option
@click.option(
    "--temperature",
    type=click.FloatRange(min=0),
    default=0.0,
    show_default=True,
    help="0 takes the likeliest token, more samples.",
)
@click.option(
    "--top-p",
    type=click.FloatRange(min=0, min_open=True, max=1),
    default=1.0,
    show_default=True,
    help="Sample from the smallest set of tokens with this probability.",
)
@click.option("--seed", type=int, help="Fixes sampling.")
@click.option("--batch-size", type=click.IntRange(min=1), help="Questions answered together.")
@click.option(
    "--without-memory", is_flag=True, help="What the frozen model says by itself, to compare."
)
@min_score_option
@filter_options
@json_option
@memory_options
def ask(  # noqa: PLR0913
    *,
    questions: tuple[str, ...],
    top_k: int | None,
    rerank: int | None,
    lexical: float,
    aggregate: str | None,
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    seed: int | None,
    batch_size: int | None,
    without_memory: bool,
    min_score: float | None,
    filters: dict[str, Any],
    as_json: bool,
    bank: Path,
    **model: Any,
) -> None:
    """Answer each QUESTION from what was learned, with its sources.

    Without QUESTION, standard input is read, a question a line. A number before a source is
    the cosine of question and memory. With --json each answer is a line of JSON.

    Only the collection "default" is asked unless --namespace or --all-namespaces is given. Where
    nothing is selected the answer is "I don't know.".

    \b
    Examples:
      cmt ask "Who built the lighthouse of Arbon?"
      cmt ask "Who is the mayor?" --as-of 2026-01-31 --tag news
      cmt ask --json < questions.txt > answers.jsonl
    """  # noqa: D301
    if not questions and _stdin_is_a_terminal():
        raise click.UsageError("Expected a question, or questions on standard input.")
    from cmt.aggregating import DEFAULT_AGGREGATION, Aggregation
    from cmt.generation import Sampling
    from cmt.memory import BATCH_SIZE, DEFAULT_MIN_SCORE, DEFAULT_RERANK, DEFAULT_TOP_K, Memory

    sampling = Sampling(
        max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p, seed=seed
    )
    together = batch_size or BATCH_SIZE
    lines = iter(questions) if questions else _lines()
    first = list(islice(lines, together))  # before a slow load
    if not first:
        raise InputError("expected at least one question on standard input, got none")
    with Memory.open(bank, read_only=True, **model) as memory:
        batch, rest = first, lines
        while batch:
            if without_memory:
                answers = memory.ask_without_memory(batch, sampling=sampling)
            else:
                answers = memory.ask(
                    batch,
                    top_k=top_k or DEFAULT_TOP_K,
                    rerank=DEFAULT_RERANK if rerank is None else rerank,
                    aggregation=Aggregation(how=aggregate) if aggregate else DEFAULT_AGGREGATION,
                    sampling=sampling,
                    min_score=DEFAULT_MIN_SCORE if min_score is None else min_score,
                    lexical=lexical,
                    **filters,
                )
            for answer in answers:
                print_answer(answer, as_json=as_json)
            batch = list(islice(rest, together))


def _stdin_is_a_terminal() -> bool:
    return sys.stdin.isatty()


def _lines() -> Iterator[str]:
    """Lines of standard input that hold more than spaces."""
    for number, line in enumerate(sys.stdin.buffer, start=1):
        try:
            text = line.decode().strip()
        except UnicodeDecodeError as error:
            raise InputError(
                f"expected UTF-8 on standard input, got other bytes in line {number}: {error}"
            ) from error
        if text:
            yield text
