"""Options that commands share, and how they print."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from cmt.records import DEFAULT_NAMESPACE

if TYPE_CHECKING:
    from cmt.records import Answer, Match

F = TypeVar("F", bound=Callable[..., Any])

DEFAULT_BANK = "memory.sqlite"

bank_option = click.option(
    "--bank",
    type=click.Path(path_type=Path),
    default=DEFAULT_BANK,
    envvar="CMT_BANK",
    help=f"The memory bank's file.  [default: $CMT_BANK, else {DEFAULT_BANK} in this folder]",
)
TIER = click.Choice(["bf16", "int8", "int4"])  # TIERS, without importing torch
tier_option = click.option(
    "--tier",
    type=TIER,
    help="How a bank that is made stores memories: int8 takes half the bytes, int4 a quarter.  "
    "[default: bf16]",
)
memory_tokens_option = click.option(
    "--memory-tokens",
    type=click.IntRange(min=1),
    help="Tokens of each memory made, of the numbers that the compressor is trained for; fewer "
    "take fewer bytes.  [default: the most]",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for a script.")
top_k_option = click.option(
    "--top-k",
    type=click.IntRange(min=1),
    help="How many memories are read for a question.  [default: the library's, 1]",
)
rerank_option = click.option(
    "--rerank",
    type=click.IntRange(min=0),
    help="How many of the memories found are re-ranked by how likely they make the "
    "question, all that are read at least; 0: none.  [default: the library's, 4]",
)
lexical_option = click.option(
    "--lexical",
    type=click.FloatRange(min=0),
    default=0.0,
    help="Weight of BM25 on the stored texts beside the logit of matching, for rare names, e.g. 1 "
    "(needs bm25s).  [default: 0, self-matching alone]",
)
aggregate_option = click.option(
    "--aggregate",
    type=click.Choice(["concatenate", "mix", "posterior"]),
    help="How several memories are read: side by side; separately, their distributions mixed; "
    "or mixed by how well each explains the answer so far.  [default: the library's, posterior]",
)
min_score_option = click.option(
    "--min-score",
    type=click.FloatRange(-1, 1),
    help='Say "I don\'t know." where the cosine of question and first memory found is below this. '
    "With the shipped compressor 0.408 abstains from one answerable question in ten and 93% of the "
    "unanswerable.  [default: never]",
)
max_new_tokens_option = click.option(
    "--max-new-tokens",
    type=click.IntRange(min=1),
    default=32,
    show_default=True,
    help="Longest answer, in tokens.",
)


def model_options(command: F) -> F:
    """--model, --checkpoint, --device and --offline, named as `Memory.open` names them."""
    for option in (
        click.option("--offline", is_flag=True, default=None, help="Never touch the network."),
        click.option("--device", help="cpu, cuda, cuda:1, …  [default: cuda if there is one]"),
        click.option(
            "--checkpoint",
            type=click.Path(path_type=Path),
            help="Folder of a trained compressor.  [default: the one shipped for the model]",
        ),
        click.option(
            "--model",
            default="smollm2-135m",
            show_default=True,
            help="Frozen model: a registered name, hub id, folder or GGUF file.",
        ),
    ):
        command = option(command)
    return command


def memory_options(command: F) -> F:
    """`model_options` and --bank."""
    return bank_option(model_options(command))


def filter_options(command: F) -> F:
    """Options of `Filters`, gathered in the command's keyword `filters`; those given only."""

    @functools.wraps(command)
    def gathering(*, all_namespaces: bool, tags: tuple[str, ...], **others: Any) -> Any:
        given = {name: others.pop(name) for name in ("namespace", "since", "until", "as_of")}
        filters = {name: value for name, value in given.items() if value is not None}
        if tags:
            filters["tags"] = tags
        if all_namespaces:
            filters["namespace"] = None
        return command(filters=filters, **others)

    for option in (
        click.option("--as-of", metavar="DATE", help="What was known at the end of this day."),
        click.option("--until", metavar="DATE", help="Documents dated no later."),
        click.option("--since", metavar="DATE", help="Documents dated no earlier."),
        click.option(
            "--tag", "tags", multiple=True, help="Documents with this tag. Repeat for all of them."
        ),
        click.option("--all-namespaces", is_flag=True, help="Documents of every collection."),
        click.option("--namespace", help="Documents of this collection."),
    ):
        gathering = option(gathering)
    return gathering  # type: ignore[return-value]


namespace_option = click.option(
    "--namespace",
    default=DEFAULT_NAMESPACE,
    show_default=True,
    help="The collection that the document is in.",
)


def print_json(value: Any) -> None:
    """One JSON document, in one line."""
    click.echo(json.dumps(value, ensure_ascii=False))


def print_answer(answer: Answer, *, as_json: bool) -> None:
    """Question, answer and sources."""
    if as_json:
        print_json(asdict(answer))
        return
    click.echo(f"{answer.question.strip()}\n  {answer.text or '(nothing)'}")
    print_sources(answer)


def print_sources(answer: Answer) -> None:
    """A line each memory that was read, and each that gave way to a later one."""
    for match in answer.matches:
        click.echo(f"  {source_line(match)}")
    for match in answer.older:
        click.echo(f"  {source_line(match)} (older)")


def source_line(match: Match) -> str:
    """Where an answer came from, with the cosine of question and memory."""
    place = dict.fromkeys(filter(None, (match.title, match.document_id, match.source, match.date)))
    return f"[{match.score:.2f}] {' | '.join(place)}"


def size(number: float) -> str:
    """Bytes for people, in powers of 1000."""
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:.0f} B" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1000
    return f"{number:.1f} TB"


def on_terminal() -> bool:
    """Whether a progress bar has anyone to look at it."""
    return sys.stderr.isatty()
