"""A lexical partner of self-matching: BM25 on the same texts, joined in several ways.

    python benchmarks/lexical.py TRAIN --held-out 20 --out OUT.json      # to choose
    python benchmarks/lexical.py DEV --sums 0.2 --out OUT.json           # the final figure

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

import numpy as np
import torch
from torch import Tensor

from cmt.datasets import hold_out, load_squad
from cmt.evaluation.qa import document_ranks
from cmt.evaluation.results import stamp
from cmt.late_interaction import SHORTLIST
from cmt.metrics import recall_at
from cmt.opening import load_compressor
from cmt.reading import question_tokens
from cmt.resident import learn, lexical_scores, match_scores, rerank_scores, with_lexical

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
            recall = {k: 100 * recall_at(ranks, k) for k in (1, 3, 5, 10)}
            rows.append({"way": name, "rerank": rerank, "recall": recall})
            told = ", ".join(f"R@{k} {value:.1f}" for k, value in recall.items())
            print(f"{name:<26} re-ranked {rerank:>2}: {told}", flush=True)
    if options.out:
        report = {
            **asdict(stamp(base.device, options.commit)),
            "compressor": compressor.fingerprint(),
            "set": dataset.name,
            "documents": len(dataset.documents),
            "questions": len(dataset.questions),
            "rows": rows,
        }
        options.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
