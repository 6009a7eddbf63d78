"""cmt search: the memories that a question finds, without an answer."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from cmt.commands.options import (
    filter_options,
    json_option,
    lexical_option,
    memory_options,
    print_json,
    rerank_option,
    source_line,
)


@click.command()
@click.argument("question")
@click.option(
    "--top-k", type=click.IntRange(min=1), default=5, show_default=True, help="At most so many."
)
@rerank_option
@lexical_option
@filter_options
@json_option
@memory_options
def search(
    *,
    question: str,
    top_k: int,
    rerank: int | None,
    lexical: float,
    filters: dict[str, Any],
    as_json: bool,
    bank: Path,
    **model: Any,
) -> None:
    """Show the memories that QUESTION finds, best first, with what they were learned from.

    Nothing is printed where the options select nothing. With --json each memory is a line of
    JSON.
    """
    from cmt.memory import DEFAULT_RERANK, Memory

    with Memory.open(bank, read_only=True, **model) as memory:
        matches = memory.search(
            question,
            top_k=top_k,
            rerank=DEFAULT_RERANK if rerank is None else rerank,
            lexical=lexical,
            **filters,
        )
    for match in matches:
        if as_json:
            print_json(asdict(match))
        else:
            click.echo(f"{source_line(match)}\n  {' '.join(match.excerpt.split())}")
