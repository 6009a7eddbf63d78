"""Commands that look into a bank or clear it up; none of them loads a model."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cmt.commands.options import (
    bank_option,
    filter_options,
    json_option,
    namespace_option,
    print_json,
    size,
)
from cmt.errors import CorruptRecordError, UnknownIdError

if TYPE_CHECKING:
    from cmt.bank import Bank, Stats
    from cmt.records import StoredDocument


def _open(path: Path, *, read_only: bool = True) -> Bank:
    from cmt.bank import Bank

    return Bank.open(path, None, read_only=read_only)


@click.command("list")
@click.option("--limit", type=click.IntRange(min=0), help="At most so many.")
@click.option("--offset", type=click.IntRange(min=0), default=0, help="Pass over so many first.")
@filter_options
@json_option
@bank_option
def list_documents(
    *, limit: int | None, offset: int, filters: dict[str, Any], as_json: bool, bank: Path
) -> None:
    """List what was learned, oldest first: id, date, memories, their bytes, title.

    Of every collection, unless options say which. Each document in its latest version, also if it
    has expired or is dated ahead; with an option that filters, what holds now, or --as-of a day.
    With --json each document is a line of JSON, without its text.
    """
    from cmt.selection import select

    selection = select(**{"namespace": None, **filters}) if filters else None
    with _open(bank) as opened:
        for document in opened.documents(limit=limit, offset=offset, selection=selection):
            if as_json:
                fields = _fields(document)
                del fields["text"]
                print_json(fields)
            else:
                click.echo(
                    f"{document.id:<24}  {document.date or '-':<10}  {document.memories:>4}  "
                    f"{size(document.memory_bytes):>9}  {document.title}".rstrip()
                )


@click.command()
@click.argument("document_id", metavar="ID")
@click.option("--history", is_flag=True, help="Its earlier versions too, as they follow in time.")
@namespace_option
@json_option
@bank_option
def show(document_id: str, history: bool, namespace: str, as_json: bool, bank: Path) -> None:
    """Show the document with this ID: its fields and its text, of the latest version.

    With --json it is a line of JSON, with --history a line each version.
    """
    with _open(bank) as opened:
        versions = opened.history(document_id, namespace=namespace)
    for number, document in enumerate(versions if history else versions[-1:]):
        fields = _fields(document)
        if as_json:
            print_json(fields)
            continue
        text = fields.pop("text")
        fields["metadata"] = json.dumps(fields["metadata"], ensure_ascii=False)
        fields["tags"] = ", ".join(fields["tags"])
        if number > 0:
            click.echo("\n")
        for name, value in fields.items():
            click.echo(f"{name + ':':<15}{'' if value is None else value}".rstrip())
        click.echo(f"\n{text}")


@click.command()
@click.argument("ids", metavar="ID...", nargs=-1, required=True)
@click.option(
    "--vacuum", is_flag=True, help="Then rewrite the file, so that no byte of them is left in it."
)
@namespace_option
@json_option
@bank_option
def forget(ids: tuple[str, ...], vacuum: bool, namespace: str, as_json: bool, bank: Path) -> None:
    """Forget the documents with these IDs, their history and their memories.

    Ids that the bank doesn't hold are an error; the others are forgotten all the same.
    """
    with _open(bank, read_only=False) as opened:
        gone = {name: opened.delete(name, namespace=namespace) for name in ids}
        if vacuum:
            opened.vacuum()
        else:
            opened.wipe_log()
    forgotten = [document_id for document_id, was_there in gone.items() if was_there]
    unknown = [document_id for document_id, was_there in gone.items() if not was_there]
    if as_json:
        print_json({"forgotten": forgotten, "unknown": unknown})
    else:
        click.echo(f"forgot {len(forgotten)}")
    if unknown:
        raise UnknownIdError(
            f"expected ids that {bank} holds, got {', '.join(map(repr, unknown))}: see `cmt list`"
        )


@click.command()
@click.option("--history", is_flag=True, help="Versions that were superseded, too.")
@click.option(
    "--vacuum", is_flag=True, help="Then rewrite the file, so that no byte of them is left in it."
)
@json_option
@bank_option
def purge(history: bool, vacuum: bool, as_json: bool, bank: Path) -> None:
    """Forget what has expired; until then it is kept, but not matched."""
    with _open(bank, read_only=False) as opened:
        purged = opened.purge(history=history)
        if vacuum:
            opened.vacuum()
        else:
            opened.wipe_log()
    if as_json:
        print_json({"purged": purged})
    else:
        click.echo(f"purged {len(purged)}")


@click.command()
@json_option
@bank_option
def stats(as_json: bool, bank: Path) -> None:
    """Show how much was learned, where the bytes are, and which weights made it."""
    with _open(bank) as opened:
        found, fingerprint, tier = opened.stats(), opened.fingerprint, opened.tier
    per_document = found.memory_bytes / max(1, found.documents)
    if as_json:
        fields = {"memory_bytes_per_document": per_document, "tier": tier, **asdict(fingerprint)}
        print_json({"bank": str(bank), **asdict(found), **fields})
        return
    for name, value in {
        "documents": f"{found.documents:,}" + _besides(found),
        "memories": f"{found.memories:,}" + _sizes(found),
        "memory": f"{size(found.memory_bytes)} ({size(per_document)} a document, {tier})",
        "namespaces": ", ".join(found.namespaces),
        "keys": size(found.key_bytes),
        "texts": size(found.text_bytes),
        "file": f"{size(found.file_bytes)} ({bank})",
        "base model": fingerprint.base_model,
        "compressor": fingerprint.compressor,
    }.items():
        click.echo(f"{name:<12}{value}".rstrip())


@click.command()
@json_option
@bank_option
def verify(as_json: bool, bank: Path) -> None:
    """Read every byte of the bank and name whatever is damaged; exit code 4 if anything is.

    With --json each damage is a line of JSON; nothing is printed for a sound bank.
    """
    with _open(bank) as opened:
        problems = opened.verify()
        counts = None if problems else opened.count()  # which damage may forbid
    for problem in problems:
        if as_json:
            print_json(asdict(problem))
        else:
            click.echo(str(problem))
    if problems:
        raise CorruptRecordError(
            f"expected a sound bank, got {len(problems)} damaged places in {bank}: "
            "forget those documents and add them again"
        )
    if counts is not None and not as_json:
        click.echo(f"sound: {counts.documents} documents, {counts.memories} memories")


def _besides(stats: Stats) -> str:
    """What is kept beside the documents, and which of them have expired."""
    parts = {"expired": stats.expired, "superseded versions": stats.superseded}
    shown = ", ".join(f"{number:,} {name}" for name, number in parts.items() if number)
    return f" ({shown})" if shown else ""


def _sizes(stats: Stats) -> str:
    """How many tokens the memories have."""
    shown = ", ".join(f"{number:,} of {K} tokens" for K, number in stats.memory_tokens.items())
    return f" ({shown})" if shown else ""


def _fields(document: StoredDocument) -> dict[str, Any]:
    return asdict(document) | {"metadata": dict(document.metadata)}
