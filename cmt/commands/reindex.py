"""cmt reindex: a new compressor for a bank."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from cmt.commands.options import json_option, memory_options, on_terminal, print_json


@click.command()
@click.option(
    "--batch-tokens", type=click.IntRange(min=1), help="Most tokens compressed in one pass."
)
@json_option
@memory_options
def reindex(batch_tokens: int | None, as_json: bool, bank: Path, **model: Any) -> None:
    """Compress every text of the bank anew, with the compressor that the options name.

    The bank goes on answering by its old memories meanwhile, and may be added to; it changes over
    in one moment at the end. Then it wants the new compressor. An interrupted run goes on where
    it stopped.
    """
    from tqdm import tqdm

    from cmt.bank.connection import check_path
    from cmt.opening import load_compressor
    from cmt.reindexing import BATCH_TOKENS
    from cmt.reindexing import reindex as run

    check_path(bank, must_exist=True, read_only=False)  # before a slow load
    compressor = load_compressor(**model)
    with tqdm(unit=" documents", disable=not on_terminal(), leave=False) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        tokens = batch_tokens or BATCH_TOKENS
        compressed = run(bank, compressor, batch_tokens=tokens, on_progress=show)
    if as_json:
        print_json({"compressed": compressed})
    else:
        click.echo(f"compressed {compressed} documents anew in {bank}")
