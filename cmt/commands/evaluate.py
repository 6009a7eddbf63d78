"""cmt eval: how well questions are answered from a dataset's learned documents."""

from __future__ import annotations

import json
import os
import platform
import shlex
import sys
from dataclasses import asdict, replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cmt.commands.options import (
    aggregate_option,
    json_option,
    lexical_option,
    memory_tokens_option,
    model_options,
    on_terminal,
    print_json,
    size,
)
from cmt.errors import InputError

if TYPE_CHECKING:
    from cmt.aggregating import Aggregation
    from cmt.compressor import Compressor
    from cmt.datasets import QADataset
    from cmt.evaluation.qa import QAResult, Scores


def _numbers(ctx: click.Context, option: click.Parameter, value: str) -> tuple[int, ...]:
    parts = [part.strip() for part in value.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise click.BadParameter(f"expected numbers from 1 on with commas between, got {value!r}")
    return tuple(dict.fromkeys(int(part) for part in parts))


@click.command("eval")
@click.argument("dataset", type=click.Path(path_type=Path))
@click.option("--bank-size", type=click.IntRange(min=1), help="Learn only the first N documents.")
@memory_tokens_option
@click.option("--top-k", callback=_numbers, default="1", show_default=True, help="E.g. 1,3.")
@click.option(
    "--rerank",
    type=click.IntRange(min=0),
    default=4,
    show_default=True,
    help="How many memories are re-ranked, all that are read at least; 0: none.",
)
@lexical_option
@aggregate_option
@click.option(
    "--match-temperature",
    type=click.FloatRange(min=0, min_open=True),
    default=1.0,
    show_default=True,
    help="Of the weights of several memories; below 1 the best counts more.",
)
@click.option(
    "--sample", type=click.IntRange(min=1), help="Ask N random questions (always the same)."
)
@click.option("--limit", type=click.IntRange(min=1), help="Ask only the first N questions.")
@click.option("--batch-size", type=click.IntRange(min=1), default=32, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), help="Also write figures and answers here.")
@json_option
@model_options
def evaluate(  # noqa: PLR0913, PLR0917
    dataset: Path,
    bank_size: int | None,
    memory_tokens: int | None,
    top_k: tuple[int, ...],
    rerank: int,
    lexical: float,
    aggregate: str | None,
    match_temperature: float,
    sample: int | None,
    limit: int | None,
    batch_size: int,
    out: Path | None,
    as_json: bool,
    **model: Any,
) -> None:
    """Learn a SQuAD-format DATASET's documents, ask its questions, score the answers.

    DATASET is a file, or a folder with dev-v1.1.json. The scores are SQuAD's EM and F1, the
    prefix EM of CaMeLS, MAC and MBC, and recall: how often the right document is among
    the best k memories. The row "given" has the right memory without searching for it.

    \b
    Examples:
      cmt eval squad/ --bank-size 1665 --top-k 1,3 --out results.json
      cmt eval new_wiki_v1.0.json.gz --limit 200
    """  # noqa: D301
    if out is not None and not out.parent.is_dir():
        raise InputError(f"expected a folder to write {out} in, got none: {out.parent}")
    import numpy as np
    from tqdm import tqdm

    from cmt.aggregating import DEFAULT_AGGREGATION, Aggregation
    from cmt.datasets import load_squad, stream
    from cmt.evaluation import qa
    from cmt.opening import load_compressor

    how = aggregate or DEFAULT_AGGREGATION.how
    aggregation = Aggregation(how=how, temperature=match_temperature)
    data = load_squad(dataset, split="dev" if dataset.is_dir() else None, strict=False)
    if bank_size is not None:
        data = stream(data, bank_size)
    if limit is not None:
        data = replace(data, questions=data.questions[:limit])
    if sample is not None:
        chosen = np.random.default_rng(0).permutation(len(data.questions))[:sample]
        data = replace(data, questions=tuple(data.questions[i] for i in sorted(chosen.tolist())))
    if not data.questions:
        raise InputError(f"expected at least one question in {dataset}, got none")
    compressor = load_compressor(**model)
    asked = len(data.questions) * (len(top_k) + 1)
    with tqdm(total=asked, unit=" answers", disable=not on_terminal(), leave=False) as bar:
        result = qa.evaluate(
            compressor,
            data,
            top_k=top_k,
            rerank=rerank,
            lexical=lexical,
            aggregation=aggregation,
            memory_tokens=memory_tokens,
            batch_size=batch_size,
            progress=bar,
        )
    record = _record(result, data, compressor, aggregation)
    if out is not None:
        out.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    if as_json:
        print_json(record)
    else:
        _print_table(result)


def _record(
    result: QAResult, data: QADataset, compressor: Compressor, aggregation: Aggregation
) -> dict[str, Any]:
    """The figures, and what it takes to have them again."""
    import torch

    device = compressor.base.device
    is_cuda = device.type == "cuda"
    cpu = f"{os.cpu_count()} {platform.machine()} CPU cores"
    return {
        "dataset": data.name,
        "command": shlex.join(["cmt", *sys.argv[1:]]),
        "cmt": metadata.version("cmt-memory"),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": torch.cuda.get_device_name(device) if is_cuda else cpu,
        "dtype": str(compressor.base.dtype).removeprefix("torch."),
        "torch": torch.__version__,
        "base_model": compressor.base.name,
        "base_model_fingerprint": compressor.base.fingerprint,
        "compressor_fingerprint": compressor.fingerprint(),
        "aggregation": asdict(aggregation),
        **asdict(result),
    }


def _print_table(result: QAResult) -> None:
    click.echo(
        f"{result.documents} documents in {result.pieces} memories of {result.memory_tokens} "
        f"tokens ({size(result.bytes_per_memory)} each), {result.questions} questions"
    )
    click.echo("recall  " + "  ".join(f"@{k} {share:.1f}" for k, share in result.recall.items()))
    click.echo(f"{'memories read':<15}{'EM':>6}{'F1':>7}{'prefix EM':>11}   95% of EM and F1")
    rows = {f"top {k}": scores for k, scores in result.found.items()}
    if result.given is not None:
        rows["given"] = result.given
    for name, scores in rows.items():
        click.echo(f"{name:<15}{_row(scores)}")
    learned = result.documents / max(result.compress_seconds, 1e-9)
    click.echo(f"learned in {result.compress_seconds:.1f} s ({learned:.1f} documents/s)")


def _row(scores: Scores) -> str:
    em, overlap = scores.exact_match_interval, scores.f1_interval
    return (
        f"{scores.exact_match:>6.1f}{scores.f1:>7.1f}{scores.prefix_exact_match:>11.1f}"
        f"   {em[0]:.1f}–{em[1]:.1f}  {overlap[0]:.1f}–{overlap[1]:.1f}"
    )
