"""cmt fetch: the base model, once."""

from __future__ import annotations

import click

from cmt.commands.options import on_terminal


@click.command()
@click.option(
    "--model",
    default="smollm2-135m",
    show_default=True,
    help="A registered name, hub id, folder or GGUF file.",
)
@click.option("--offline", is_flag=True, default=None, help="Never touch the network.")
def fetch(model: str, offline: bool | None) -> None:
    """Make the frozen model ready and print its folder; every later command can be offline.

    What was fetched is kept under $CMT_CACHE (default ~/.cache/cmt).
    """
    from cmt import weights

    click.echo(weights.resolve(model, offline=offline, progress=on_terminal()))
