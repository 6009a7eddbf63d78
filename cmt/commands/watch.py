"""cmt watch: a bank kept up to date with a folder."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cmt.commands.options import json_option, memory_options, print_json

if TYPE_CHECKING:
    from cmt.watching import Round


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--interval",
    type=click.FloatRange(min=0.1),
    default=2.0,
    show_default=True,
    help="Seconds between two looks at the folder.",
)
@click.option("--once", is_flag=True, help="Look once and end.")
@click.option("--keep", is_flag=True, help="Keep what was learned from files that are gone.")
@click.option("--namespace", default="default", show_default=True, help="The collection to use.")
@click.option("--tag", "tags", multiple=True, help="A label to filter by. Repeat for several.")
@click.option("--supersede", is_flag=True, help="Keep versions that are replaced, as history.")
@json_option
@memory_options
def watch(  # noqa: PLR0913
    *,
    folder: Path,
    interval: float,
    once: bool,
    keep: bool,
    as_json: bool,
    bank: Path,
    namespace: str,
    tags: tuple[str, ...],
    supersede: bool,
    **model: Any,
) -> None:
    """Follow FOLDER: learn files that come, replace edited ones, forget deleted ones.

    It ends with Ctrl-C; started again it goes on from what the bank holds. A line is printed
    when something changed, with --json a line of JSON.
    """
    from cmt.memory import Memory
    from cmt.watching import Watch, follow

    with Memory.open(bank, **model) as memory:
        options = {"namespace": namespace, "tags": tags, "supersede": supersede}
        following = Watch(memory, folder, forget=not keep, **options)
        try:
            follow(
                following,
                seconds=interval,
                on_round=lambda round_: _show(round_, as_json),
                rounds=1 if once else None,
            )
        except KeyboardInterrupt:
            click.echo("ended", err=True)


def _show(round_: Round, as_json: bool) -> None:
    if round_ and as_json:
        print_json(asdict(round_))
    elif round_:
        click.echo(
            f"added {len(round_.added)}, updated {len(round_.updated)}, "
            f"forgot {len(round_.forgotten)}, failed {len(round_.failed)}"
        )
        for failure in round_.failed:
            click.echo(f"error: {failure.document}: {failure.reason}", err=True)
