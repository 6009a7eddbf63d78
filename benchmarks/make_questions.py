"""Make questions on texts without labels with copies of the frozen model, for `cmt train --extra`.

    python benchmarks/make_questions.py TEXTS.jsonl OUT.jsonl.gz --training train-v1.1.json.gz \
        --held-out dev-v1.1.json.gz --steps 600

One copy is tuned on SQuAD's training file to write a passage's questions with answers, another to
answer them; only those are kept that it answers alike. TEXTS are read as `make_cloze.py` reads
them; what shares a title or a sentence with held-out data is left out. Called again with the same
`--states` and another `--seed` of sampling it asks other questions with the same copies. Wants a
GPU.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import tuned_copies
from make_cloze import usable

from cmt.datasets import cloze_questions
from cmt.datasets.jsonl_writing import write_jsonl
from cmt.methods.asking_tuned import TunedAsker, writing_tuned
from cmt.methods.tuned_copy import QaTuningConfig
from cmt.methods.tuned_text import TEXTS_A_STEP, TunedTextConfig, text_tuned


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("texts", type=Path, nargs="+", help="files of texts")
    parser.add_argument("out", type=Path, help=".jsonl or .jsonl.gz to write")
    tuned_copies.add_options(parser, temperature=0.9, batch_size=512)
    parser.add_argument("--most", type=int, default=8, help="questions a document (%(default)s)")
    parser.add_argument("--documents", type=int, help="ask about the first so many only")
    return parser.parse_args()


def main() -> None:
    """Tune or load both copies, ask, write."""
    chosen = options()
    training, held_out = tuned_copies.parts(chosen)
    documents = usable(chosen.texts, held_out)
    if not documents:
        raise SystemExit("expected a text to ask about that is not held out, got none")
    materials = tuned_copies.materials(chosen, training)
    config = QaTuningConfig(learning_rate=chosen.learning_rate, questions=TEXTS_A_STEP)
    start = time.monotonic()
    writer = writing_tuned(materials, config)
    reader = text_tuned(materials, TunedTextConfig(learning_rate=chosen.learning_rate))
    print(f"copies tuned or loaded in {time.monotonic() - start:.0f} s", flush=True)
    tuned_copies.ready(writer, reader)
    asker = TunedAsker(
        writer, reader, temperature=chosen.temperature, batch_size=chosen.batch_size,
        seed=chosen.seed,
    )  # fmt: skip
    start = time.monotonic()
    made = cloze_questions(
        documents[: chosen.documents], asker=asker, most=chosen.most,
        name=chosen.out.name.split(".")[0], seed=chosen.seed,
    )  # fmt: skip
    write_jsonl(made, chosen.out)
    print(
        f"{chosen.out}: {len(made.documents):,} documents, {len(made.questions):,} questions; "
        f"{asker.written:,} written, {asker.agreed:,} answered alike; "
        f"{time.monotonic() - start:.0f} s"
    )


if __name__ == "__main__":
    main()
