"""cmt serve: the HTTP service and its page."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import click

from cmt.commands.options import memory_options
from cmt.errors import InputError, how_to_install


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
@memory_options
def serve(
    *,
    host: str,
    port: int,
    token_file: Path | None,
    model_name: str | None,
    batch_size: int,
    requests_per_second: float,
    bank: Path,
    **model: Any,
) -> None:
    """Serve a bank over HTTP: OpenAI's chat API, the bank itself, and a page to look at.

    Only this machine is listened to, unless --host says otherwise; then a token is needed.

    \b
    Examples:
      cmt serve --bank news.sqlite        # then open http://127.0.0.1:8000
      cmt serve --host 0.0.0.0 --token-file token.txt
    """  # noqa: D301
    try:
        from cmt.server import Settings, create_app
        from cmt.server.running import make_server
    except ImportError as error:
        raise InputError(
            f"expected the packages of the service, got none of the name {error.name!r}: "
            f"{how_to_install('serve')}"
        ) from error
    settings = Settings(
        host=host,
        port=port,
        token=_token(token_file),
        model_name=model_name,
        batch_size=batch_size,
        requests_per_second=requests_per_second,
        burst=max(200, round(4 * requests_per_second)),
    )
    from cmt.memory import Memory

    logging.basicConfig(level=logging.INFO, format="%(levelname)s: %(message)s")
    with Memory.open(bank, **model) as memory:
        make_server(create_app(memory, settings), settings).run()


def _token(file: Path | None) -> str | None:
    """The token of a file, else of the environment; None where neither has one."""
    if file is None:
        return os.environ.get("CMT_TOKEN") or None
    try:
        return file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"expected a file with a token, got {file}: {error}") from error
