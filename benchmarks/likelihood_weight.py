"""What a question's likelihood should count beside the logits of matching, when re-ranking.

    python benchmarks/likelihood_weight.py squad/train-v1.1.json.gz --out OUT.json

Every document of the articles that `cmt train` holds out is learned, every question matched, the
best few re-ranked with each weight. To choose by, never on the set of the final figure.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from cmt.datasets import hold_out, load_squad
from cmt.evaluation.qa import document_ranks
from cmt.evaluation.results import stamp
from cmt.late_interaction import SHORTLIST
from cmt.metrics import recall_at
from cmt.opening import load_compressor
from cmt.reading import question_tokens
from cmt.resident import learn, match_scores, rerank_scores

WEIGHTS = (0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.6, 1.0)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("squad", type=Path, help="SQuAD v1.1's training file")
    parser.add_argument("--articles", type=int, default=20, help="held out (%(default)s)")
    parser.add_argument("--questions", type=int, help="the first so many only")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--checkpoint", type=Path, help="default: the shipped one")
    parser.add_argument("--memory-tokens", type=int, nargs="*", default=[])
    parser.add_argument("--rerank", type=int, nargs="+", default=[4, 10])
    parser.add_argument("--weights", type=float, nargs="+", default=list(WEIGHTS))
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--device")
    parser.add_argument("--commit", help="of the code, where there is no repository to ask")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    compressor = load_compressor(options.model, options.checkpoint, device=options.device)
    compressor.eval().requires_grad_(False)
    held_out = hold_out(load_squad(options.squad, strict=False), articles=options.articles)[1]
    asked = held_out.questions[: options.questions]
    tokenizer = compressor.base.tokenizer
    prompts = question_tokens(tokenizer, [question.text for question in asked])
    right_Q = torch.tensor([question.document for question in asked])
    report: dict[str, Any] = {
        **asdict(stamp(compressor.base.device, options.commit)),
        "compressor": compressor.fingerprint(),
        "dataset": held_out.name,
        "documents": len(held_out.documents),
        "questions": len(asked),
        "rows": [],
    }
    for size in options.memory_tokens or [None]:
        bank = learn(compressor, held_out, memory_tokens=size)
        own_QD = bank.owners_D[None] == right_Q.to(bank.owners_D.device)[:, None]
        with torch.no_grad():
            scores_QD = match_scores(compressor, bank, prompts, SHORTLIST, options.batch_size)
            for depth in options.rerank:
                for weight in options.weights:
                    made_QD = rerank_scores(
                        compressor, bank, prompts, scores_QD, depth, options.batch_size, weight
                    )
                    ranks = document_ranks(made_QD, own_QD, bank.owners_D, len(held_out.documents))
                    recall = {k: 100 * recall_at(ranks, k) for k in (1, 5)}
                    row = {
                        "memory_tokens": compressor.config.size(size), "rerank": depth,
                        "weight": weight, "recall": recall,
                    }  # fmt: skip
                    report["rows"].append(row)
                    print(
                        f"k={row['memory_tokens']} rerank {depth} weight {weight:g}: "
                        f"R@1 {recall[1]:.1f} R@5 {recall[5]:.1f}",
                        flush=True,
                    )
        if options.out:
            options.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
