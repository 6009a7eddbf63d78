"""cmt add: learn files, folders, standard input."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cmt.commands.options import (
    json_option,
    memory_options,
    memory_tokens_option,
    on_terminal,
    print_json,
    size,
    tier_option,
)
from cmt.readers import READERS, count_documents, read_path, read_stdin

if TYPE_CHECKING:
    from cmt.bank.tensor_bytes import Tier
    from cmt.learning import AddOptions
    from cmt.memory_records import Progress
    from cmt.records import AddReport, Document, Failure


@click.command()
@click.argument("paths", nargs=-1, required=True)
@click.option(
    "--format",
    "kind",
    type=click.Choice(list(READERS)),
    help="Read everything as this.  [default: by a file's name; standard input as txt]",
)
@click.option(
    "--batch-tokens",
    type=click.IntRange(min=1),
    help="Most tokens compressed in one pass.  [default: 4096, on a GPU 65536]",
)
@memory_tokens_option
@click.option("--namespace", help="The collection to put them in.  [default: default]")
@click.option("--tag", "tags", multiple=True, help="A label to filter by. Repeat for several.")
@click.option("--expires-at", metavar="DATE", help="From when on they are not matched any more.")
@click.option("--ttl", metavar="LENGTH", help="The same from now on: 90s, 15m, 12h, 30d, 2w.")
@click.option("--supersede", is_flag=True, help="Keep versions that are replaced, as history.")
@tier_option
@click.option(
    "--progress/--no-progress",
    default=None,
    help="Show progress, with an estimate of the time left.  [default: on a terminal]",
)
@json_option
@memory_options
def add(  # noqa: PLR0913
    *,
    paths: tuple[str, ...],
    kind: str | None,
    batch_tokens: int | None,
    memory_tokens: int | None,
    namespace: str | None,
    tags: tuple[str, ...],
    expires_at: str | None,
    ttl: str | None,
    supersede: bool,
    tier: Tier | None,
    progress: bool | None,
    as_json: bool,
    bank: Path,
    **model: Any,
) -> None:
    """Learn files, folders or standard input (-).

    What the bank holds already is passed over, so that an interrupted run goes on where it
    stopped. A file's id is its full path: an edited file replaces what was learned from it. A
    document that can't be learned is named on standard error and the others are kept; the exit
    code is then 1.

    \b
    Examples:
      cmt add notes.md reports/
      cmt add articles.jsonl          # an object a line: text, id, title, date, source
      pdftotext paper.pdf - | cmt add -
    """  # noqa: D301
    from cmt.dates import parse_length
    from cmt.memory import Memory

    options: AddOptions = {"tags": tags, "supersede": supersede}
    if namespace is not None:
        options["namespace"] = namespace
    if expires_at is not None:
        options["expires_at"] = expires_at
    if ttl is not None:
        options["ttl"] = parse_length(ttl)
    with Memory.open(bank, tier=tier, **model) as memory, _Bar(progress, paths, kind) as bar:
        report = memory.add(
            _documents(paths, kind),
            on_progress=bar.show,
            batch_tokens=batch_tokens,
            memory_tokens=memory_tokens,
            **options,
        )
    if as_json:
        print_json(asdict(report))
    else:
        click.echo(summary(report))
    for failure in report.failed:
        click.echo(f"error: {failure.document}: {failure.reason}", err=True)
    if report.failed:
        click.get_current_context().exit(1)


def _documents(paths: tuple[str, ...], kind: str | None) -> Iterator[Document | Failure]:
    for path in paths:
        if path == "-":
            yield from read_stdin(kind=kind or "txt")
        else:
            yield from read_path(path, kind=kind)


def summary(report: AddReport) -> str:
    """What became of the documents, and how fast."""
    learned = len(report.added) + len(report.updated)
    seconds = max(report.seconds, 1e-9)
    return (
        f"added {len(report.added)}, updated {len(report.updated)}, "
        f"unchanged {len(report.unchanged)}, failed {len(report.failed)}\n"
        f"{report.memories} memories of {size(report.memory_bytes)} from {report.tokens:,} tokens "
        f"in {seconds:.1f} s ({learned / seconds:.1f} documents/s, "
        f"{report.tokens / seconds:,.0f} tokens/s)"
    )


class _Bar:
    """A progress bar on standard error; a line now and then where that is no terminal."""

    def __init__(self, wanted: bool | None, paths: tuple[str, ...], kind: str | None) -> None:
        from tqdm import tqdm

        shown = on_terminal() if wanted is None else wanted
        self._bar = tqdm(
            total=count_documents(paths, kind) if shown else None,
            unit=" documents",
            disable=not shown,
            leave=False,
            mininterval=0.1 if on_terminal() else 10,
            miniters=0,  # within a long document tokens grow alone
        )

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def show(self, progress: Progress) -> None:
        """Move on to what is done now."""
        self._bar.set_postfix_str(
            f"{progress.tokens:,} tokens, {size(progress.memory_bytes)}", refresh=False
        )
        self._bar.update(progress.documents - self._bar.n)
