"""cmt serve: the HTTP service and its page."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import click

from cmt.commands.options import (
    aggregate_option,
    filter_options,
    lexical_option,
    memory_options,
    min_score_option,
    rerank_option,
    top_k_option,
)
from cmt.errors import InputError, how_to_install

# Of `Settings`, what has an option of its own.
_OPTIONS = ("host", "port", "token", "model_name", "wish", "batch_size", "requests_per_second")


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0: a free one."
)
@click.option(
    "--token-file",
    type=click.Path(path_type=Path),
    help="Clients must send what this file holds.  [default: $CMT_TOKEN, else no token]",
)
@click.option("--model-name", help="What clients call the model.  [default: its own name]")
@click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    default=16,
    show_default=True,
    help="Questions answered together.",
)
@click.option(
    "--requests-per-second",
    type=click.FloatRange(min=0),
    default=50.0,
    show_default=True,
    help="Of one client address; 0: no bound.",
)
@click.option(
    "--set",
    "pairs",
    multiple=True,
    metavar="NAME=VALUE",
    help="Any other bound, by its name above. Repeat for several.",
)
@top_k_option
@rerank_option
@lexical_option
@aggregate_option
@min_score_option
@filter_options
@memory_options
def serve(  # noqa: PLR0913
    *,
    host: str,
    port: int,
    token_file: Path | None,
    model_name: str | None,
    batch_size: int,
    requests_per_second: float,
    pairs: tuple[str, ...],
    top_k: int | None,
    rerank: int | None,
    lexical: float,
    aggregate: str | None,
    min_score: float | None,
    filters: dict[str, Any],
    bank: Path,
    **model: Any,
) -> None:
    """Serve a bank over HTTP: OpenAI's chat API, the bank itself, and a page to look at.

    Only this machine is listened to, unless --host says otherwise; then a token is needed.

    The options that cmt ask has too are for questions whose request doesn't say otherwise: clients
    of OpenAI's API that can't send them, say. Documents go into the namespace that they name.

    \b
    Examples:
      cmt serve --bank news.sqlite        # then open http://127.0.0.1:8000
      cmt serve --host 0.0.0.0 --token-file token.txt
      cmt serve --min-score 0.5 --set waiting_questions=32 --set max_body_bytes=20000000

    \b
    What --set takes, with the defaults:
      batch_wait_seconds=0.005    for a batch to fill
      waiting_questions=256       the next one is refused with 503
      waiting_requests=64         the same for requests that bring documents
      pass_tokens=512             compressed between two batches
      max_new_tokens=128          of an answer, whatever a client asks for
      max_question_chars=4000
      max_memories=16             read for a question, and re-ranked for it
      max_body_bytes=4000000      of a request
      max_document_chars=200000
      max_documents=1000          in a request
      burst=200                   requests of one client address at once; at
                                  least four seconds' worth
      question_seconds=120        until a question is given up
      learning_seconds=900        the same for documents
      purge_every_seconds=0       between purges of what has expired; 0: none
      head_seconds=10             for a connection to begin a request
      body_seconds=30             for a request's body to arrive
      connections=512
      shutdown_seconds=30         for requests in flight, after a signal to stop
    """  # noqa: D301
    try:
        from cmt.server import Settings, create_app
        from cmt.server.jobs import Wish
        from cmt.server.running import make_server
    except ImportError as error:
        raise InputError(
            f"expected the packages of the service, got none of the name {error.name!r}: "
            f"{how_to_install('serve')}"
        ) from error
    said = {"top_k": top_k, "rerank": rerank, "aggregate": aggregate, "min_score": min_score}
    given: dict[str, Any] = {name: value for name, value in said.items() if value is not None}
    bounds = {"burst": max(200, round(4 * requests_per_second)), **_bounds(pairs, Settings)}
    settings = Settings(
        host=host,
        port=port,
        token=_token(token_file),
        model_name=model_name,
        wish=Wish(lexical=lexical, **given, **filters),
        batch_size=batch_size,
        requests_per_second=requests_per_second,
        **bounds,
    )
    if lexical:
        from cmt.lexical import library

        library()  # refuses now, not at every question
    from cmt.memory import Memory

    logging.basicConfig(level=logging.INFO, format="%(levelname)s: %(message)s")
    with Memory.open(bank, **model) as memory:
        make_server(create_app(memory, settings), settings).run()


def _bounds(pairs: Sequence[str], settings: type[Any]) -> dict[str, Any]:
    """What --set gave, with the types of these settings' defaults."""
    kinds: dict[str, Any] = {
        f.name: type(f.default) for f in fields(settings) if f.name not in _OPTIONS
    }
    bounds = {}
    for pair in pairs:
        name, _, text = pair.partition("=")
        if name not in kinds:
            raise InputError(f"expected --set NAME=VALUE of {', '.join(kinds)}, got {pair!r}")
        try:
            bounds[name] = kinds[name](text)
        except ValueError as error:
            what = "a whole number" if kinds[name] is int else "a number"
            raise InputError(f"expected {what} for {name}, got {text!r}") from error
    return bounds


def _token(file: Path | None) -> str | None:
    """The token of a file, else of the environment; None where neither has one."""
    if file is None:
        return os.environ.get("CMT_TOKEN") or None
    try:
        return file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"expected a file with a token, got {file}: {error}") from error
