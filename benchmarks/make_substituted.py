"""Make changed versions of training documents, for `cmt train --extra`.

    python benchmarks/make_substituted.py train-v1.1.json.gz MORE.jsonl.gz OUT.jsonl.gz --copies 2

Answers are swapped for others of their kind, everywhere in a document. Of SQuAD's training file the
articles that `cmt train` holds out for validation are left out, and nothing is drawn from them;
.jsonl files, of `make_cloze.py` or `make_questions.py`, are taken whole.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from cmt.datasets import QADataset, hold_out, joined, load_jsonl, load_squad
from cmt.datasets.jsonl_writing import write_jsonl
from cmt.datasets.substitution import substituted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", type=Path, nargs="+", help="SQuAD's training file, .jsonl files")
    parser.add_argument("out", type=Path, help=".jsonl or .jsonl.gz to write")
    parser.add_argument("--copies", type=int, default=2, help="of a document (%(default)s)")
    parser.add_argument(
        "--share", type=float, default=0.8,
        help="of the answers that can be changed, in a copy (%(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--invented", type=float, default=0.0,
        help="of the names, made up instead of drawn (%(default)s)",
    )  # fmt: skip
    parser.add_argument("--articles", type=int, default=20, help="held out (%(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    name = arguments.out.name.split(".")[0]
    parts = [training_part(file, arguments.articles) for file in arguments.files]
    training = parts[0] if len(parts) == 1 else joined(parts, name=name)
    start = time.monotonic()
    made = substituted(
        training, copies=arguments.copies, share=arguments.share, invented=arguments.invented,
        seed=arguments.seed, name=name,
    )  # fmt: skip
    seconds = time.monotonic() - start
    write_jsonl(made, arguments.out)
    answers = {question.id: set(question.answers) for question in training.questions}
    changed = sum(
        not answers[question.id.rsplit("-v", 1)[0]].intersection(question.answers)
        for question in made.questions
    )
    print(
        f"{arguments.out}: {len(made.documents):,} documents, {len(made.questions):,} questions, "
        f"{changed / len(made.questions):.1%} with a changed answer; {seconds:.0f} s"
    )


def training_part(file: Path, articles: int) -> QADataset:
    """What of a file may be trained on."""
    if ".jsonl" in file.suffixes:
        return load_jsonl(file)
    return hold_out(load_squad(file, strict=False), articles=articles)[0]


if __name__ == "__main__":
    main()
