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

import torch
from make_cloze import read

from cmt.base_model import BaseModel
from cmt.datasets import HeldOut, cloze_questions, hold_out, load_squad
from cmt.datasets.jsonl_writing import write_jsonl
from cmt.methods import Materials
from cmt.methods.asking_tuned import TEXTS_A_STEP, TunedAsker, writing_tuned
from cmt.methods.tuned_copy import QaTuningConfig
from cmt.methods.tuned_text import TunedTextConfig, text_tuned


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("texts", type=Path, nargs="+", help="files of texts")
    parser.add_argument("out", type=Path, help=".jsonl or .jsonl.gz to write")
    parser.add_argument("--training", type=Path, required=True, help="SQuAD's training file")
    parser.add_argument("--articles", type=int, default=20, help="held out of it (%(default)s)")
    parser.add_argument(
        "--held-out", type=Path, action="append", default=[], help="SQuAD-format file; repeat"
    )
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--device")
    parser.add_argument("--steps", type=int, default=600, help="of tuning (%(default)s)")
    parser.add_argument("--learning-rate", type=float, default=1e-4, help="%(default)s")
    parser.add_argument("--temperature", type=float, default=0.9, help="%(default)s")
    parser.add_argument("--most", type=int, default=8, help="questions a document (%(default)s)")
    parser.add_argument("--documents", type=int, help="ask about the first so many only")
    parser.add_argument("--batch-size", type=int, default=512, help="texts (%(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--states", type=Path, default=Path("runs/asking"), help="of the copies (%(default)s)"
    )
    return parser.parse_args()


def main() -> None:
    """Tune or load both copies, ask, write."""
    chosen = options()
    training, validation = hold_out(
        load_squad(chosen.training, strict=False), articles=chosen.articles
    )
    held = HeldOut([*(load_squad(file, strict=False) for file in chosen.held_out), validation])
    documents = [document for file in chosen.texts for document in read(file)]
    usable = list({d.text: d for d in documents if not held.holds(d)}.values())
    print(f"{len(documents):,} documents, {len(usable):,} of them once and not held out")
    if not usable:
        raise SystemExit("expected a text to ask about that is not held out, got none")
    usable = usable[: chosen.documents]
    materials = Materials(
        base=BaseModel.load(chosen.model, device=chosen.device),
        training=training,
        qa_training=training,
        asked=training,
        folder=chosen.states,
        steps=chosen.steps,
    )
    config = QaTuningConfig(learning_rate=chosen.learning_rate, questions=TEXTS_A_STEP)
    start = time.monotonic()
    writer = writing_tuned(materials, config)
    reader = text_tuned(materials, TunedTextConfig(learning_rate=chosen.learning_rate))
    print(f"copies tuned or loaded in {time.monotonic() - start:.0f} s", flush=True)
    if materials.base.device.type == "cuda":
        for copy in (writer, reader):
            copy.model.to(torch.bfloat16)
    asker = TunedAsker(
        writer, reader, temperature=chosen.temperature, batch_size=chosen.batch_size,
        seed=chosen.seed,
    )  # fmt: skip
    start = time.monotonic()
    made = cloze_questions(
        usable, asker=asker, most=chosen.most, name=chosen.out.name.split(".")[0], seed=chosen.seed
    )
    write_jsonl(made, chosen.out)
    print(
        f"{chosen.out}: {len(made.documents):,} documents, {len(made.questions):,} questions; "
        f"{asker.written:,} written, {asker.agreed:,} answered alike; "
        f"{time.monotonic() - start:.0f} s"
    )


if __name__ == "__main__":
    main()
