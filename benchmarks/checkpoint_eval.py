"""A checkpoint on whole question-answering sets: memory sizes, re-ranking, top-k, storage tiers.

    python benchmarks/checkpoint_eval.py dev-v1.1.json.gz new_wiki_v1.0.json.gz --rerank 0 4 10 \
        --top-k 1 3 --memory-tokens 32 16 --tiers int8 int4 --out OUT.json
    python benchmarks/checkpoint_eval.py train-v1.1.json.gz --held-out 20 --rerank 0 10

Every document of a set is learned and every question asked, as `cmt eval` does. `--held-out`
takes the articles that `cmt train` holds out of the file instead of the whole of it, with
`--seen` some documents of the others, which it was trained on.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from storage_tiers import int4, int8, stored_as
from torch import Tensor

from cmt.aggregating import Aggregation
from cmt.compressor import Compressor
from cmt.datasets import QADataset, hold_out, load_squad
from cmt.evaluation.qa import QAResult, evaluate
from cmt.evaluation.results import stamp, without_predictions
from cmt.opening import load_compressor
from cmt.resident import ResidentBank, learn

TIERS: dict[str, Callable[[Tensor], Tensor]] = {"int8": int8, "int4": int4}


def settings(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """What is measured of each set, the tiers with the first re-ranking and top-k only."""
    for size in options.memory_tokens or [None]:
        for number, rerank in enumerate(options.rerank):
            yield {"memory_tokens": size, "rerank": rerank, "tier": "bf16", "how": "concatenate",
                   "top_k": options.top_k, "given": options.given and number == 0}  # fmt: skip
        for alpha in options.alpha:
            yield {"memory_tokens": size, "rerank": options.rerank[0], "tier": "bf16",
                   "how": "concatenate", "top_k": options.top_k[:1], "given": options.given,
                   "alpha": alpha}  # fmt: skip
        for how in options.aggregate:
            yield {"memory_tokens": size, "rerank": options.rerank[0], "tier": "bf16", "how": how,
                   "top_k": [k for k in options.top_k if k > 1], "given": False}  # fmt: skip
        for tier in options.tiers:
            yield {"memory_tokens": size, "rerank": options.rerank[0], "tier": tier,
                   "how": "concatenate", "top_k": options.top_k[:1],
                   "given": options.given}  # fmt: skip


def measure(
    compressor: Compressor, dataset: QADataset, options: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    """A row of results for each setting; banks are learned once a memory size."""
    banks: dict[Any, ResidentBank] = {}
    for own in settings(options):
        size = own["memory_tokens"]
        if size not in banks:
            banks.clear()  # one at a time: a bank of 2,000 memories is 1.5 GB
            banks[size] = learn(compressor, dataset, memory_tokens=size)
        bank = banks[size] if own["tier"] == "bf16" else stored_as(banks[size], TIERS[own["tier"]])
        began = time.perf_counter()
        result = evaluate(
            compressor, dataset, bank=bank, rerank=own["rerank"], top_k=own["top_k"],
            given=own["given"], batch_size=options.batch_size,
            aggregation=Aggregation(how=own["how"]), alpha=own.get("alpha", 0.0),
        )  # fmt: skip
        row = {"set": dataset.name, **own, "seconds": time.perf_counter() - began}
        print(told(row, result), flush=True)
        yield {**row, "result": without_predictions(asdict(result))}


def told(row: dict[str, Any], result: QAResult) -> str:
    """One line."""
    scores = {f"top-{k}": own for k, own in result.found.items()}
    if result.given is not None:
        scores["given"] = result.given
    parts = [f"{name} {own.exact_match:.1f}/{own.f1:.1f}" for name, own in scores.items()]
    adjusted = f" alpha {row['alpha']}" if "alpha" in row else ""
    return (
        f"{row['set']} k={result.memory_tokens} {row['tier']} {row['how']}{adjusted} "
        f"rerank {row['rerank']}: "
        f"{', '.join(parts)}; R@1 {result.recall[1]:.1f} R@5 {result.recall[5]:.1f}"
    )


def main() -> None:
    """Measure, print, write after each row."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", type=Path, nargs="+", help="SQuAD-format")
    parser.add_argument("--held-out", type=int, default=0, metavar="ARTICLES")
    parser.add_argument("--seen", type=int, metavar="DOCUMENTS", help="drawn from the others")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--checkpoint", type=Path, help="folder; default: the shipped one")
    parser.add_argument("--memory-tokens", type=int, nargs="*", default=[])
    parser.add_argument("--rerank", type=int, nargs="+", default=[0, 10])
    parser.add_argument("--top-k", type=int, nargs="+", default=[1, 3])
    parser.add_argument("--aggregate", nargs="*", default=[], choices=("mix", "posterior"))
    parser.add_argument("--alpha", type=float, nargs="*", default=[], help="of decoding")
    parser.add_argument("--tiers", nargs="*", default=[], choices=list(TIERS))
    parser.add_argument(
        "--given", action=argparse.BooleanOptionalAction, default=True,
        help="also answered from the right memory",
    )  # fmt: skip
    parser.add_argument("--questions", type=int, help="the first so many only")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--device")
    parser.add_argument("--commit", help="of the code, where there is no repository to ask")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.seen and not options.held_out:
        parser.error("expected --held-out ARTICLES with --seen, got none")
    compressor = load_compressor(
        options.model, options.checkpoint, device=options.device, dtype=None, offline=None
    )
    report = {
        **asdict(stamp(compressor.base.device, options.commit)),
        "compressor": compressor.fingerprint(),
        "rows": [],
    }
    for file in options.files:
        dataset = load_squad(file, strict=False)
        if options.held_out:
            seen, dataset = hold_out(dataset, articles=options.held_out)
            if options.seen:
                drawn = np.random.default_rng(0).permutation(len(seen.documents))
                few = sorted(int(number) for number in drawn[: options.seen])
                dataset = seen.select_documents(few, name=f"{seen.name}-{len(few)}")
        if options.questions:
            some = range(min(options.questions, len(dataset.questions)))
            dataset = replace(dataset, questions=tuple(dataset.questions[i] for i in some))
        for row in measure(compressor, dataset, options):
            report["rows"].append(row)
            if options.out:
                options.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
