"""The command line of `stream.py`, and the sizes of a run."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from stream_data import DATASETS

from cmt.errors import InputError

PARTS = ("stream", "retention", "robustness", "costs", "reading")
USUAL = PARTS[:3]  # the stream tells costs too; alone they are measured where nothing else runs
SHARES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
HERE = Path(__file__).parent
RUNS = HERE.parent / "runs"


@dataclass(kw_only=True, slots=True)
class Sizes:
    """How much of everything; part of what a result is known by."""

    documents: int = 1665
    questions: int = 1_000_000
    validation_documents: int = 200
    curve_questions: int = 1000
    retention_step: int = 200
    cost_documents: int = 200
    cost_questions: int = 1024
    text_tokens: int = 65_536
    unrelated_questions: int = 300


SMOKE = Sizes(
    documents=20,
    questions=8,
    validation_documents=4,
    curve_questions=4,
    retention_step=10,
    cost_documents=6,
    cost_questions=4,
    text_tokens=512,
    unrelated_questions=4,
)


def options(description: str | None, rows: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--method", action="append", default=[], choices=rows, metavar="ROW")
    parser.add_argument("--all", action="store_true", help="every row of METHODS")
    parser.add_argument("--ablations", action="store_true", help="every row of ABLATIONS")
    parser.add_argument("--list", action="store_true", help="list the rows and stop")
    parser.add_argument("--data", type=Path, help="folder with squad/, text/, new_wiki/, …")
    parser.add_argument("--dataset", choices=DATASETS, default="squad")
    parser.add_argument("--path", type=Path, help="file or folder of another dataset")
    parser.add_argument("--model", default="smollm2-135m", help="base model")
    parser.add_argument("--device", help="cpu or cuda; default: CUDA when there is one")
    parser.add_argument("--minutes", type=float, help="of training, for each trained part")
    parser.add_argument("--steps", type=int, help="of training, for each trained part")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(USUAL))
    parser.add_argument("--shares", nargs="+", type=float, help="of unrelated documents: 0 1 5 20")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--sweep", action="append", default=[], metavar="NAME=V1,V2",
                        help="choose on the validation split")  # fmt: skip
    parser.add_argument("--no-choice", action="store_true", help="take the settings as they are")
    parser.add_argument("--no-forgetting", action="store_true")
    parser.add_argument("--smoke", action="store_true", help="2 steps, 20 documents, 8 questions")
    parser.add_argument("--again", action="store_true", help="measure even what is there")
    parser.add_argument("--batch-size", type=int, default=64, help="questions answered at a time")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--checkpoint", type=Path, help="compressor of kv_memory")
    parser.add_argument("--recipe", type=Path, default=HERE.parent / "recipes/smollm2_135m.py")
    states, out = "runs/stream or runs/smoke-states", "benchmarks/results/stream or runs/smoke"
    parser.add_argument("--states", type=Path, help=f"trained weights; default: {states}")
    parser.add_argument("--out", type=Path, help=f"results; default: {out}")
    parser.add_argument("--commit", help="of the code, where there is no repository to ask")
    spans = "find the salient spans of all documents, write them, stop"
    parser.add_argument("--save-spans", type=Path, metavar="FILE", help=spans)
    for size in fields(Sizes):
        parser.add_argument(f"--{size.name.replace('_', '-')}", type=int)
    chosen = parser.parse_args()
    chosen.out = chosen.out or (RUNS / "smoke" if chosen.smoke else HERE / "results/stream")
    chosen.states = chosen.states or RUNS / ("smoke-states" if chosen.smoke else "stream")
    return chosen


def candidates(
    options: argparse.Namespace, usual: Mapping[str, Sequence[Any]], config: Any
) -> dict[str, list[Any]]:
    """What is tried on the validation split: the command line's sweep, or else the row's own."""
    if options.sweep:
        sweeps = {}
        for text in options.sweep:
            name, _, values = text.partition("=")
            pairs = [parsed(config, f"{name}={value}") for value in values.split(",")]
            sweeps[name] = [value for _, value in pairs]
        return sweeps
    fixed = {text.partition("=")[0] for text in options.set}
    own = {name: list(values) for name, values in usual.items() if name not in fixed}
    return {name: values[:2] for name, values in own.items()} if options.smoke else own


def parsed(config: Any, text: str) -> tuple[str, Any]:
    """One --set name=value, the value of the kind that the configuration has."""
    name, equals, value = text.partition("=")
    known = {field.name: getattr(config, field.name) for field in fields(config)}
    if not equals or name not in known:
        raise InputError(f"expected name=value with a name in {', '.join(known)}, got {text!r}")
    return name, convert(known[name], value)


def convert(now: Any, value: str) -> Any:
    """A value from the command line, as text or as JSON."""
    if isinstance(now, str):
        return value
    try:
        return json.loads(value)
    except ValueError as error:
        raise InputError(f"expected a number like {now!r}, got {value!r}") from error
