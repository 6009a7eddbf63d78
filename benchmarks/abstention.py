"""How well the cosine of question and first match tells a question that the bank can't answer.

Draws SQuAD paragraphs, learns those of every second article alone and asks questions on all of
them: those on the others have no answer in the bank. The first match is the best after re-ranking,
which `min_score` is compared with. Prints, for least scores, how many questions of either kind are
abstained from, and the area under the ROC curve.

    python benchmarks/abstention.py DEV --documents 200 --questions 200
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from pathlib import Path

import numpy as np
from matching import machine

from cmt import Document, Memory
from cmt.datasets import load_squad

REFUSED = (0.01, 0.02, 0.05, 0.1, 0.2)  # shares of the answerable questions abstained from


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("squad", type=Path, help="A SQuAD v1.1 file.")
    parser.add_argument("--model", default="smollm2-135m", help="base model")
    parser.add_argument("--checkpoint", type=Path, help="default: the one shipped for the model")
    parser.add_argument("--documents", type=int, default=200)
    parser.add_argument("--questions", type=int, default=200)
    arguments = parser.parse_args()
    data = load_squad(arguments.squad, strict=False)
    draw = random.Random(0)  # noqa: S311
    chosen = sorted(draw.sample(range(len(data.documents)), arguments.documents))
    known = {number for number in chosen if data.articles[number] % 2 == 0}
    asked = [question for question in data.questions if question.document in set(chosen)]
    asked = draw.sample(asked, min(arguments.questions, len(asked)))
    with (
        tempfile.TemporaryDirectory() as folder,
        Memory.open(
            Path(folder) / "m.sqlite", model=arguments.model, checkpoint=arguments.checkpoint
        ) as memory,
    ):
        memory.add(Document(text=data.documents[number].text) for number in sorted(known))
        scores = np.array([memory.search(question.text)[0].score for question in asked])
        compressor = memory.compressor.fingerprint()
        device = memory.compressor.base.device
    answerable = np.array([question.document in known for question in asked])
    yes, no = scores[answerable], scores[~answerable]
    result = {
        "documents_learned": len(known),
        "answerable": len(yes),
        "unanswerable": len(no),
        "area_under_roc": round(float((yes[:, None] > no[None]).mean()), 3),
        "median_score": {
            "answerable": round(float(np.median(yes)), 3),
            "unanswerable": round(float(np.median(no)), 3),
        },
        "least_score": [
            {
                "min_score": round(float(np.quantile(yes, share)), 3),
                "answerable_abstained": share,
                "unanswerable_abstained": round(float((no < np.quantile(yes, share)).mean()), 3),
            }
            for share in REFUSED
        ],
        "compressor": compressor,
        "machine": machine(device),
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
