"""A lexical partner of self-matching: BM25 on the same texts, joined in several ways.

    python benchmarks/lexical.py TRAIN --held-out 20 --out OUT.json      # to choose
    python benchmarks/lexical.py DEV --sums 0.2 --out OUT.json           # the final figure
    python benchmarks/lexical.py DEV --bm25-alone --out OUT.json         # no model at all

Every document of the set is learned, every question matched: by self-matching (key and late
interaction), by BM25 alone, and by both: reciprocal-rank fusion (Cormack et al. 2009), and sums
of the matching logit and w times the BM25 score. With --rerank the best few of each way are
re-ranked by the frozen model's likelihood of the question, as `cmt ask` does.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cmt.datasets import QADataset, hold_out, load_squad
from cmt.evaluation.qa import document_ranks
from cmt.evaluation.results import stamp
from cmt.late_interaction import SHORTLIST
from cmt.metrics import recall_at
from cmt.opening import load_compressor
from cmt.reading import question_tokens
from cmt.resident import (
    bm25_scores,
    learn,
    lexical_scores,
    match_scores,
    rerank_scores,
    with_lexical,
)

SUMS = (0.05, 0.1, 0.2, 0.3, 0.5, 1.0)
CONSTANT = 60  # of reciprocal-rank fusion, its authors' own


def ranks_of(scores_QD: Tensor) -> Tensor:
    """Rank of each memory for each question, from 1."""
    return scores_QD.argsort(dim=1, descending=True, stable=True).argsort(dim=1) + 1


def ways(own_QD: Tensor, lexical_QD: Tensor, sums: list[float]) -> Iterator[tuple[str, Tensor]]:
    """Scores by each way, the own logits kept as the scale where there are any."""
    yield "self-matching", own_QD
    yield "BM25", lexical_QD
    fused_QD = 1 / (CONSTANT + ranks_of(own_QD)) + 1 / (CONSTANT + ranks_of(lexical_QD))
    yield "reciprocal-rank fusion", fused_QD
    for weight in sums:
        yield f"logit + {weight:g} BM25", with_lexical(own_QD, weight * lexical_QD, SHORTLIST)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path, help="SQuAD-format")
    parser.add_argument("--held-out", type=int, default=0, metavar="ARTICLES")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--device")
    parser.add_argument("--sums", type=float, nargs="*", default=list(SUMS))
    parser.add_argument("--rerank", type=int, default=0)
    parser.add_argument("--bm25-alone", action="store_true", help="nothing is compressed")
    parser.add_argument("--questions", type=int, help="so many random ones")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--commit", help="of the code, where there is no repository to ask")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    dataset = load_squad(options.file, strict=False)
    if options.held_out:
        dataset = hold_out(dataset, articles=options.held_out)[1]
    if options.questions:
        drawn = np.random.default_rng(0).permutation(len(dataset.questions))[: options.questions]
        asked = tuple(dataset.questions[i] for i in sorted(drawn.tolist()))
        dataset = replace(dataset, questions=asked)
    if options.bm25_alone:
        write(options, dataset, torch.device("cpu"), "", [bm25_alone(dataset)])
        return
    compressor = load_compressor(
        options.model, options.checkpoint, device=options.device, dtype=None, offline=None
    )
    base = compressor.base
    bank = learn(compressor, dataset)
    prompts = question_tokens(base.tokenizer, [question.text for question in dataset.questions])
    with torch.no_grad():
        own_QD = match_scores(compressor, bank, prompts, SHORTLIST, options.batch_size)
    lexical_QD = lexical_scores(dataset, bank)
    right_Q = torch.tensor([q.document for q in dataset.questions], device=base.device)
    right_QD = bank.owners_D[None] == right_Q[:, None]
    rows = []
    for name, found_QD in ways(own_QD, lexical_QD, options.sums):
        no_logits = name in ("BM25", "reciprocal-rank fusion")  # to add a likelihood to
        for rerank in (0,) if no_logits or not options.rerank else (0, options.rerank):
            scores_QD = found_QD
            if rerank:
                scores_QD = rerank_scores(
                    compressor, bank, prompts, found_QD, rerank, options.batch_size
                )
            ranks = document_ranks(scores_QD, right_QD, bank.owners_D, len(dataset.documents))
            rows.append(row_of(name, rerank, ranks))
    write(options, dataset, base.device, compressor.fingerprint(), rows)


def bm25_alone(dataset: QADataset) -> dict[str, Any]:
    """BM25 over the documents, without a model."""
    owners_D = torch.arange(len(dataset.documents))
    right_Q = torch.tensor([question.document for question in dataset.questions])
    right_QD = owners_D[None] == right_Q[:, None]
    ranks = document_ranks(bm25_scores(dataset), right_QD, owners_D, len(owners_D))
    return row_of("BM25", 0, ranks)


def row_of(way: str, rerank: int, ranks: list[int | None]) -> dict[str, Any]:
    """A row of the results, told."""
    recall = {k: 100 * recall_at(ranks, k) for k in (1, 3, 5, 10)}
    told = ", ".join(f"R@{k} {value:.1f}" for k, value in recall.items())
    print(f"{way:<26} re-ranked {rerank:>2}: {told}", flush=True)
    return {"way": way, "rerank": rerank, "recall": recall}


def write(
    options: argparse.Namespace,
    dataset: QADataset,
    device: torch.device,
    compressor: str,
    rows: list[dict[str, Any]],
) -> None:
    """The results, where a file is wanted."""
    if not options.out:
        return
    report = {
        **asdict(stamp(device, options.commit)),
        "compressor": compressor,
        "set": dataset.name,
        "documents": len(dataset.documents),
        "questions": len(dataset.questions),
        "rows": rows,
    }
    options.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
