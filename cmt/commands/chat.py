"""cmt chat: questions and answers, one after the other."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from cmt.commands.options import (
    filter_options,
    max_new_tokens_option,
    memory_options,
    min_score_option,
    print_sources,
    top_k_option,
)
from cmt.errors import InputError


@click.command()
@top_k_option
@max_new_tokens_option
@min_score_option
@filter_options
@memory_options
def chat(
    *,
    top_k: int | None,
    max_new_tokens: int,
    min_score: float | None,
    filters: dict[str, Any],
    bank: Path,
    **model: Any,
) -> None:
    """Ask one question after the other; answers appear as they are generated.

    Each question is answered by itself: earlier ones are not remembered. An empty line or
    Ctrl-D ends it.
    """
    from cmt.generation import Sampling
    from cmt.memory import DEFAULT_MIN_SCORE, DEFAULT_TOP_K, Memory

    sampling = Sampling(max_new_tokens=max_new_tokens)
    with Memory.open(bank, read_only=True, **model) as memory:
        counts = memory.count()
        click.echo(f"{counts.documents} documents in {bank}; an empty line ends the chat.")
        for question in _questions():
            try:
                answer = memory.stream(
                    question,
                    top_k=top_k or DEFAULT_TOP_K,
                    sampling=sampling,
                    min_score=DEFAULT_MIN_SCORE if min_score is None else min_score,
                    **filters,
                )
                for piece in answer:
                    click.echo(piece, nl=False)
            except InputError as error:  # the next question may do better
                click.echo(f"error: {error}", err=True)
                continue
            click.echo("" if answer.answer.text else "(nothing)")
            print_sources(answer.answer)


def _questions() -> Iterator[str]:
    prompt = "> " if sys.stdin.isatty() else ""
    while True:
        try:
            question = input(prompt).strip()
        except EOFError:
            return
        if not question:
            return
        yield question
