"""cmt export, cmt import: a bank as plain files, and back; neither loads a model."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cmt.commands.options import TIER, bank_option, json_option, on_terminal, print_json

if TYPE_CHECKING:
    from cmt.bank.tensor_bytes import Tier


@click.command("export")
@click.argument("folder", type=click.Path(path_type=Path))
@json_option
@bank_option
def export_command(folder: Path, as_json: bool, bank: Path) -> None:
    """Write the bank into a new FOLDER: JSON Lines and safetensors, with checksums.

    Damaged documents are named on standard error and left out; the exit code is then 1.
    """
    from tqdm import tqdm

    from cmt.bank import Bank
    from cmt.transfer import export_bank

    with (
        Bank.open(bank, None, read_only=True) as opened,
        tqdm(unit=" documents", disable=not on_terminal(), leave=False) as bar,
    ):
        report = export_bank(opened, folder, on_document=bar.update)
    if as_json:
        print_json(asdict(report))
    else:
        click.echo(f"exported {report.documents} documents, {report.memories} memories to {folder}")
    for problem in report.damaged:
        click.echo(f"error: {problem.reason}", err=True)
    if report.damaged:
        click.get_current_context().exit(1)


@click.command("import")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--tier",
    type=TIER,
    help="How a bank that is made stores memories.  [default: as the exported bank did]",
)
@json_option
@bank_option
def import_command(folder: Path, tier: Tier | None, as_json: bool, bank: Path) -> None:
    """Take an export in FOLDER into the bank, which is made where there is none.

    Every checksum is verified first. What the bank has already is passed over. A bank that is there
    keeps its tier, and memories of an export of another are stored in it.
    """
    from tqdm import tqdm

    from cmt.bank import Bank
    from cmt.transfer import export_fingerprint, export_tier, import_bank

    if tier is None and not (os.path.isfile(bank) and os.path.getsize(bank)):
        tier = export_tier(folder)
    with (
        Bank.open(bank, export_fingerprint(folder), tier=tier) as opened,
        tqdm(unit=" documents", disable=not on_terminal(), leave=False) as bar,
    ):
        report = import_bank(opened, folder, on_document=bar.update)
    if as_json:
        print_json(asdict(report))
    else:
        click.echo(
            f"imported {report.documents} documents, {report.memories} memories; "
            f"unchanged {report.unchanged}"
        )
