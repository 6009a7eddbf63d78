r"""What compressing and asking cost beside the plain model and text in the prompt, as ratios.

One run, one machine: compression against the base model's forward pass over the same tokens;
questions answered from memory, stage by stage, against BM25's paragraphs in the prompt and
against nothing; the share of the device's matrix rate; with `--profile` the dearest operators.
The variants take turns. Needs ``bm25s`` (the package's ``dev`` extra has it).

    python benchmarks/inference.py --data squad --device cuda --profile --out inference.json
    python benchmarks/inference.py --data squad --device cpu --documents 60 --questions 16
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import inference_answering as answering
import inference_compressing as compressing
import numpy as np
import torch
from inference_timing import matrix_rate
from transformers.utils import logging as transformers_logging

from cmt.base_model import BaseModel
from cmt.datasets import QADataset, load_squad
from cmt.errors import CMTError, InputError
from cmt.evaluation.results import shown, stamp
from cmt.evaluation.stream import sampled
from cmt.memory import BATCH_TOKENS
from cmt.opening import load_compressor

PARTS = ("compression", "questions")
MATRIX = {"cpu": 2048, "cuda": 8192}
ROUNDS, BATCHES = {"cpu": 2, "cuda": 5}, {"cpu": 1, "cuda": 3}


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data",
        type=Path,
        required=True,
        help="folder with SQuAD's dev and train files (or squad/), or a dev file",
    )
    parser.add_argument("--device", help="cpu or cuda; default: CUDA when there is one")
    parser.add_argument("--model", default="smollm2-135m", help="base model")
    parser.add_argument("--checkpoint", type=Path, help="compressor; default: the shipped one")
    parser.add_argument("--documents", type=int, default=500)
    parser.add_argument("--questions", type=int, default=192)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--batch-tokens", type=int, help="of a compression pass")
    parser.add_argument("--rounds", type=int, help="counted ones; default: 5, on a CPU 2")
    parser.add_argument("--batches", type=int, help="of questions a round; default: 3, on a CPU 1")
    parser.add_argument("--tokens", type=int, default=16, help="of an answer of fixed length")
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS)
    parser.add_argument("--profile", action="store_true", help="the 20 dearest operators")
    parser.add_argument("--commit", help="of the code, where there is no repository")
    parser.add_argument("--out", type=Path, help="JSON file")
    return parser.parse_args()  # fmt: skip


def data(path: Path, documents: int, questions: int) -> tuple[QADataset, QADataset]:
    """What is learned and asked, and what solved examples come from.

    Of a single file examples come from the documents that are not learned.
    """
    if path.is_dir():
        folder = path / "squad" if (path / "squad").is_dir() else path
        whole = load_squad(folder, split="dev", strict=False)
    else:
        whole = load_squad(path, strict=False)
    order = np.random.default_rng(0).permutation(len(whole.documents)).tolist()
    learned = sampled(whole.select_documents(sorted(order[:documents])), questions)
    if path.is_dir():
        return learned, load_squad(folder, split="train", strict=False)
    return learned, whole.select_documents(sorted(order[documents:]))


def checked(options: argparse.Namespace) -> None:
    """Refuse numbers below their least."""
    given = {name: getattr(options, name) for name in ("documents", "questions", "batch_tokens")}
    given |= {"rounds": options.rounds, "batches": options.batches}
    given["batch_sizes"] = min(options.batch_sizes)
    for name, number in given.items():
        if number is not None and number < 1:
            raise InputError(f"expected --{name.replace('_', '-')} of at least 1, got {number}")
    if options.tokens < 2:
        raise InputError(f"expected --tokens of at least 2, got {options.tokens}")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Everything, as the result file has it."""
    checked(options)
    learned, training = data(options.data, options.documents, options.questions)
    compressor = load_compressor(options.model, options.checkpoint, device=options.device)
    base = compressor.base
    device, kind = base.device, base.device.type
    plain = BaseModel.load(options.model, device=device, dtype=base.dtype)
    how_many = options.rounds or ROUNDS.get(kind, 2)
    each = options.batches or BATCHES.get(kind, 1)
    size = MATRIX.get(kind, 2048)
    rate = matrix_rate(device, base.dtype, size)
    result: dict[str, Any] = {
        "settings": {
            "dataset": learned.name,
            "questions": len(learned.questions),
            "base_model": shown(options.model),
            "checkpoint": shown(options.checkpoint or "shipped"),
            "device": kind,
            "threads": torch.get_num_threads(),
            "rounds": how_many,
            "batches_a_round": each,
        },
        "matrix_rate": {"size": size, "dtype": str(base.dtype), "operations_per_second": rate},
    }
    if "compression" in options.parts:
        result["compression"] = compressing.measure(
            compressor,
            plain,
            learned,
            batch_tokens=options.batch_tokens or BATCH_TOKENS.get(kind, BATCH_TOKENS["cpu"]),
            how_many=how_many,
            with_profile=options.profile,
        )
        # again, a busy machine may have been in its way
        rate = max(rate, matrix_rate(device, base.dtype, size))
        result["matrix_rate"]["operations_per_second"] = rate
        for row in result["compression"]["rows"].values():
            done = row["floating_point_operations"] / row["seconds"]["median"]
            row["share_of_matrix_rate"] = done / rate
        print_compression(result)
    if "questions" in options.parts:
        result["questions"] = answering.measure(
            compressor,
            plain,
            learned,
            training,
            batch_sizes=options.batch_sizes,
            how_many=how_many,
            each=each,
            tokens=options.tokens,
            with_profile=options.profile,
        )
        print_questions(result["questions"])
    return {**asdict(stamp(device, options.commit)), **result}


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns, the first to the left, the others to the right."""
    lines = [heads, *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(heads))]
    for line in lines:
        cells = [line[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)]
        print("  ".join(cells))
    print(flush=True)


def print_compression(result: dict[str, Any]) -> None:
    made, rate = result["compression"], result["matrix_rate"]
    print(f"matrix rate: {rate['operations_per_second'] / 1e12:.3g} TFLOP/s ({rate['dtype']})")
    print(f"compression: {made['documents']} documents, {made['tokens']} tokens "
          f"({made['tokens_with_memory_and_key']} with memory and key tokens), "
          f"{made['passes']} passes")  # fmt: skip
    table(
        ("", "documents/s", "tokens/s", "seconds", "p95", "of matrix rate"),
        [
            (name, f"{row['documents_per_second']:.1f}", f"{row['tokens_per_second']:.0f}",
             f"{row['seconds']['median']:.4f}", f"{row['seconds']['p95']:.4f}",
             f"{row['share_of_matrix_rate']:.1%}")
            for name, row in made["rows"].items()
        ],
    )  # fmt: skip
    ratios = made["ratios"] | {"tokens alone, without / with memory tokens": made["token_ratio"]}
    table(("speed", "ratio"), [(name, f"{value:.3f}") for name, value in ratios.items()])
    stages = made["one_pass_stages"]
    table(("one pass, stage", "ms"), [(n, f"{1e3 * took:.1f}") for n, took in stages.items()])
    if "profile" in made:
        print_profile("compression, one pass", made["profile"])


def print_questions(made: dict[str, Any]) -> None:
    for size, parts in made["batches"].items():
        for part in ("free", "fixed"):
            length = made["answer_tokens_fixed"]
            ends = "answers end where they end" if part == "free" else f"{length} tokens each"
            print(f"questions, batch {size}, {ends}")
            rows = [
                (name, f"{1e3 * row['seconds_per_question']:.1f}",
                 f"{row['questions_per_second']:.1f}", f"{1e3 * row['seconds']['median']:.1f}",
                 f"{1e3 * row['seconds']['p95']:.1f}", f"{row['ratio_to_memory']:.2f}",
                 *(told(row["tokens_per_question"].get(kind)) for kind in ("text", "memory")))
                for name, row in parts[part].items()
            ]  # fmt: skip
            heads = ("ms/question", "questions/s", "ms/batch", "p95", "time / memory's")
            table(("", *heads, "text tokens", "memory tokens"), rows)
        rows = [
            (name, f"{1e3 * took['median']:.1f}", f"{1e3 * took['p95']:.1f}")
            for name, took in parts["memory_stages"].items()
        ]
        table((f"memory, batch {size}, stage", "ms/batch", "p95"), rows)
    for size in made["left_out"]:
        print(f"batch {size}: left out, it needs as many questions (--questions)")
    for name, own in made.get("profile", {}).items():
        if name != "questions":
            print_profile(f"{name}, {made['profile']['questions']} questions", own)


def told(tokens: float | None) -> str:
    return "" if tokens is None else f"{tokens:.0f}"


def print_profile(what: str, made: dict[str, Any]) -> None:
    print(f"profile of {what}: {1e3 * made['seconds']:.1f} ms, "
          f"synchronising calls {made['synchronising_calls']}")  # fmt: skip
    if "busy_share" in made:
        print(f"  GPU busy {made['busy_share']:.1%} of the time, {made['kernels']} kernels")
    rows = [
        (row["name"], f"{row['calls']}", f"{row['milliseconds']:.2f}") for row in made["operators"]
    ]
    table(("operator", "calls", "ms"), rows)


def main() -> None:
    """Measure, print, save."""
    options = parsed()
    transformers_logging.disable_progress_bar()
    # cuDNN's attention builds a plan for each new shape, and every generated token is one
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        result = measure(options)
    except CMTError as error:
        sys.exit(str(error))
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
