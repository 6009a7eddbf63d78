"""cmt train: a compressor for a frozen model, from a recipe."""

from __future__ import annotations

import gzip
import importlib.util
import json
import re
import runpy
import zlib
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cmt.errors import InputError, how_to_install
from cmt.readers import READERS, read_path, read_stdin
from cmt.records import Document, Failure

if TYPE_CHECKING:
    from cmt.compressor import Compressor
    from cmt.datasets import QADataset
    from cmt.training import TrainingConfig

SHORTEST_TEXT = 100  # characters; headings and the like are not worth retelling
VALIDATION_BATCH = 128  # questions answered together
BLANK_LINE = re.compile(r"\n\s*\n")


@click.command()
@click.argument("recipe", type=click.Path(path_type=Path))
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    required=True,
    help="SQuAD-format file, or a folder with train-v1.1.json (either may be gzipped).",
)
@click.option(
    "--texts",
    type=click.Path(path_type=Path),
    multiple=True,
    help="Plain texts to retell: txt, jsonl, …, also gzipped. Repeat for several.",
)
@click.option(
    "--extra",
    type=click.Path(path_type=Path),
    multiple=True,
    help="Further questions for the recipe's batch.extra and batch.more_questions: .jsonl of "
    '{"text", "question", "answers"}, also gzipped. Repeat for several.',
)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for results.")
@click.option("--minutes", type=click.FloatRange(min=0, min_open=True), help="Stop after so long.")
@click.option("--steps", type=click.IntRange(min=1), help="Stop after so many steps.")
@click.option("--memory-tokens", type=click.IntRange(min=1), help="Tokens of a memory.")
@click.option(
    "--start-from",
    type=click.Path(path_type=Path),
    help="Begin with the weights of this checkpoint, of the same form.",
)
@click.option("--resume", is_flag=True, help="Go on from the state in the folder.")
@click.option("--plot", is_flag=True, help="Draw metrics.png (needs matplotlib).")
def train(  # noqa: PLR0913
    *,
    recipe: Path,
    data: Path,
    texts: tuple[Path, ...],
    extra: tuple[Path, ...],
    out: Path,
    minutes: float | None,
    steps: int | None,
    memory_tokens: int | None,
    start_from: Path | None,
    resume: bool,
    plot: bool,
) -> None:
    """Train a compressor as the Python file RECIPE says: its recipe() returns a TrainingConfig.

    --minutes and --steps take the place of both that the recipe has. The compressor is left in
    OUT/checkpoint, with the course of training in OUT/metrics.jsonl.

    \b
    Examples:
      cmt train recipes/smollm2_135m.py --data squad/ --out runs/k32
      accelerate launch --num_processes 2 "$(which cmt)" train … # several GPUs
    """  # noqa: D301
    if plot and importlib.util.find_spec("matplotlib") is None:
        raise InputError(f"expected matplotlib for --plot, found none: {how_to_install('train')}")
    if not resume and (out / "metrics.jsonl").exists():
        raise InputError(f"expected a folder without a run in it, got {out}: or give --resume")
    from accelerate import PartialState

    from cmt import training
    from cmt.checkpoint import save_pretrained
    from cmt.datasets import hold_out, load_jsonl, load_squad

    config = _changed(_load_recipe(recipe), minutes, steps, memory_tokens)
    if start_from is not None:
        config = replace(config, start_from=str(start_from))
    dataset = load_squad(data, split="train" if data.is_dir() else None, strict=False)
    validation = None
    if config.held_out_articles:
        dataset, validation = hold_out(dataset, articles=config.held_out_articles)
    further = [load_jsonl(file, strict=False) for file in extra]
    made = _further(further, validation) if further else None
    plain = [text for file in texts for text in read_texts(file)]
    is_main = PartialState().is_main_process
    if is_main:
        click.echo(
            f"{len(dataset.documents):,} documents, {len(dataset.questions):,} questions "
            f"({len(dataset.skipped)} left out), {len(plain):,} texts",
            err=True,
        )
        if made is not None:
            click.echo(_told(made, further), err=True)
    compressor = training.train(config, dataset, out, extra=made, texts=plain, resume=resume)
    if not is_main:
        return
    save_pretrained(compressor, out / "checkpoint")
    if validation is not None:
        _validate(compressor.eval(), validation, out / "validation.json")
    if plot:
        _plot(out / "metrics.jsonl", out / "metrics.png")
    click.echo(
        f"The compressor is in {out / 'checkpoint'}. Try it:\n"
        f"  cmt demo --model {config.base_model} --checkpoint {out / 'checkpoint'}\n"
        f"  cmt eval DATASET --model {config.base_model} --checkpoint {out / 'checkpoint'}"
    )


def _further(further: list[QADataset], validation: QADataset | None) -> QADataset:
    """The further questions as one dataset, without what validates."""
    from cmt.datasets import HeldOut, joined

    whole = joined(further, name="extra")
    return whole if validation is None else HeldOut([validation]).removed_from(whole)


def _told(made: QADataset, further: list[QADataset]) -> str:
    documents = sum(len(dataset.documents) for dataset in further)
    return (
        f"extra: {len(made.documents):,} documents, {len(made.questions):,} questions "
        f"({documents - len(made.documents):,} documents left out that are held out or there twice)"
    )


def _validate(compressor: Compressor, dataset: QADataset, file: Path) -> None:
    """Score the articles held out of training, and say how they came out."""
    from cmt.evaluation.qa import evaluate

    result = evaluate(compressor, dataset, top_k=(1, 3), batch_size=VALIDATION_BATCH)
    file.write_text(json.dumps(asdict(result), indent=1) + "\n")
    assert result.given is not None
    click.echo(
        f"held-out articles ({result.documents} documents, {result.questions} questions): "
        f"found EM {result.found[1].exact_match:.1f} F1 {result.found[1].f1:.1f}, "
        f"given EM {result.given.exact_match:.1f} F1 {result.given.f1:.1f}, "
        f"R@1 {result.recall[1]:.1f}",
        err=True,
    )


def _load_recipe(path: Path) -> TrainingConfig:
    from cmt.training import TrainingConfig

    try:
        recipe = runpy.run_path(str(path)).get("recipe")
        config = recipe() if callable(recipe) else None
    except OSError as error:
        raise InputError(f"expected a recipe at {path}, got: {error.strerror}") from error
    except (SyntaxError, ImportError, TypeError) as error:
        raise InputError(f"expected a recipe in {path}, got one that fails: {error}") from error
    if not isinstance(config, TrainingConfig):
        raise InputError(
            f"expected a function recipe() in {path} that returns a TrainingConfig, "
            f"got {'no such function' if recipe is None else type(config).__name__}"
        )
    return config


def _changed(
    config: TrainingConfig, minutes: float | None, steps: int | None, memory_tokens: int | None
) -> TrainingConfig:
    if minutes is not None or steps is not None:
        config = replace(config, minutes=minutes, steps=steps)
    if memory_tokens is not None:
        compressor = replace(config.compressor, memory_tokens=memory_tokens)
        config = replace(config, compressor=compressor)
    return config


def read_texts(file: Path) -> Iterator[str]:
    """The paragraphs of a file's documents, those that are long enough to retell.

    Raises:
        InputError: The file, or a document of it, can't be read.
    """
    for document in _documents(file):
        if isinstance(document, Failure):
            raise InputError(f"{document.document}: {document.reason}")
        for paragraph in BLANK_LINE.split(document.text):
            if len(paragraph.strip()) >= SHORTEST_TEXT:
                yield paragraph.strip()


def _documents(file: Path) -> Iterator[Document | Failure]:
    if file.suffix != ".gz":
        yield from read_path(file)
        return
    kind = Path(file.stem).suffix.removeprefix(".").lower()
    try:
        with gzip.open(file) as stream:
            yield from read_stdin(stream, kind=kind if kind in READERS else "txt")  # type: ignore[arg-type]
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"expected a gzipped file at {file}, got: {error}") from error


def _plot(metrics: Path, picture: Path) -> None:
    """Every figure of metrics.jsonl over the steps, one panel each."""
    from matplotlib.figure import Figure

    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    if not lines:
        click.echo(f"no {picture.name}: the run was too short for a line of metrics", err=True)
        return
    names = [name for name in lines[0] if name not in ("step", "seconds")]
    rows = -(-len(names) // 3)
    figure = Figure(figsize=(12, 3 * rows), layout="constrained")
    for place, name in enumerate(names, start=1):
        axes = figure.add_subplot(rows, 3, place)
        drawn = [line for line in lines if name in line]
        axes.plot([line["step"] for line in drawn], [line[name] for line in drawn])
        axes.set(title=name, xlabel="step")
    figure.savefig(picture, dpi=120)
