"""The command line: `cmt COMMAND`; each command is a file in `cmt/commands/`."""

from __future__ import annotations

from typing import Any

import click

from cmt.commands.add import add
from cmt.commands.ask import ask
from cmt.commands.bank import forget, list_documents, purge, show, stats, verify
from cmt.commands.chat import chat
from cmt.commands.demo import demo
from cmt.commands.evaluate import evaluate
from cmt.commands.fetch import fetch
from cmt.commands.reindex import reindex
from cmt.commands.search import search
from cmt.commands.serve import serve
from cmt.commands.train import train
from cmt.commands.transfer import export_command, import_command
from cmt.commands.watch import watch
from cmt.errors import CMTError


class _Commands(click.Group):
    """Says what is wrong in a line, with the error's exit code and without traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except CMTError as error:
            click.echo(f"error: {error}", err=True)
            ctx.exit(error.exit_code)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)  # as registered, not by the alphabet


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="cmt-memory", prog_name="cmt")
def main() -> None:
    """A frozen language model that learns documents as small memories.

    \b
    Start here:
      cmt demo                    see it work
      cmt add notes/              learn a folder, into ./memory.sqlite
      cmt ask "Who …?"            answer from what was learned

    Exit codes: 0 done; 1 some documents failed; 2 wrong input; 3 model or checkpoint; 4 bank.
    """  # noqa: D301


for _command in (
    demo,
    add,
    watch,
    ask,
    search,
    chat,
    list_documents,
    show,
    forget,
    purge,
    stats,
    verify,
    export_command,
    import_command,
    reindex,
    fetch,
    train,
    evaluate,
    serve,
):
    main.add_command(_command)

if __name__ == "__main__":
    main()
