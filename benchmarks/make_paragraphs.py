"""Paragraphs that a copy of the frozen model writes under the titles of real ones.

    python benchmarks/make_paragraphs.py train-v1.1.json.gz SUMMARIES.json.gz OUT.jsonl.gz \
        --paragraphs 50000 --steps 600

What they say is made up and their sentences are new, so no compressor can know them by heart; for
`make_questions.py`. With `--invented` part of the titles have names that nobody has, and so have
the paragraphs. TEXTS are read as `make_cloze.py` reads them. Called again with the same `--states`
and another `--seed` the same copy writes other paragraphs. Wants a GPU.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import time
import zlib
from pathlib import Path

import numpy as np
import tuned_copies
from make_cloze import FEWEST_WORDS, read

from cmt.base_model import BaseModel
from cmt.datasets import HeldOut, QADataset
from cmt.datasets.inventing import NameMaker
from cmt.datasets.sentences import sentence_spans
from cmt.generation import Sampling, generate
from cmt.methods.tuned_copy import QaTuningConfig, copy_of, end_token, tune
from cmt.methods.tuned_text import TEXTS_A_STEP
from cmt.records import Document
from cmt.tokens import token_ids

PROMPT = "{}\n"
MOST_TOKENS = 220


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("texts", type=Path, nargs="+", help="files of texts with titles")
    parser.add_argument("out", type=Path, help=".jsonl.gz to write")
    tuned_copies.add_options(parser, temperature=1.0, batch_size=2048)
    parser.add_argument("--paragraphs", type=int, default=50_000, help="%(default)s")
    parser.add_argument(
        "--invented", type=float, default=0.0, help="of the titles, made up (%(default)s)"
    )
    return parser.parse_args()


def main() -> None:
    """Tune or load the copy, write under titles drawn at random."""
    chosen = options()
    training, held_out = tuned_copies.parts(chosen)
    held = HeldOut(held_out)
    read_ = (document for file in chosen.texts for document in read(file))
    documents = [d for d in {d.text: d for d in read_}.values() if d.title and not held.holds(d)]
    if not documents:
        raise SystemExit("expected texts with titles that are not held out, got none")
    rng = np.random.default_rng(chosen.seed)
    documents = [documents[i] for i in np.random.default_rng(0).permutation(len(documents))]
    print(f"{len(documents):,} texts with titles", flush=True)
    writer = tuned(chosen, documents, training)
    tuned_copies.ready(writer)
    known = [str(documents[i].title) for i in rng.integers(0, len(documents), chosen.paragraphs)]
    titles = invented(known, chosen.invented, chosen.seed)
    start = time.monotonic()
    lines = []
    for place in range(0, len(titles), chosen.batch_size):
        some = titles[place : place + chosen.batch_size]
        sampling = Sampling(
            max_new_tokens=MOST_TOKENS, temperature=chosen.temperature, seed=chosen.seed + place
        )
        prompts = token_ids(writer.tokenizer, [PROMPT.format(title) for title in some])
        written = generate(writer, prompts, sampling=sampling, shrinking=True)
        for title, tokens in zip(some, written, strict=True):
            text = " ".join(writer.tokenizer.decode(tokens).split())
            if len(tokens) == MOST_TOKENS:  # it was cut off
                text = whole_sentences(text)
            if len(text.split()) >= FEWEST_WORDS:
                lines.append(json.dumps({"title": title, "text": text}, ensure_ascii=False))
        chosen.out.write_bytes(gzip.compress("\n".join(lines).encode(), mtime=0))
    print(f"{chosen.out}: {len(lines):,} paragraphs; {time.monotonic() - start:.0f} s")


def invented(titles: list[str], share: float, seed: int) -> list[str]:
    """The titles, this share of them with invented names where they hold names."""
    maker, rng = NameMaker(titles), random.Random(seed)  # noqa: S311
    return [(rng.random() < share and maker.like(title, rng)) or title for title in titles]


def whole_sentences(text: str) -> str:
    """The text without its last sentence, which may have been cut off."""
    return text[: sentence_spans(text)[-1][0]].rstrip() if text else text


def tuned(chosen: argparse.Namespace, documents: list[Document], training: QADataset) -> BaseModel:
    """The copy tuned to write a paragraph under its title; trained once a folder."""
    materials = tuned_copies.materials(chosen, training)
    writer = copy_of(materials.base)
    end = end_token(writer)
    prompts = token_ids(writer.tokenizer, [PROMPT.format(d.title) for d in documents])
    texts = token_ids(writer.tokenizer, [d.text for d in documents])
    targets = [[*tokens, end] if len(tokens) < MOST_TOKENS else tokens[:MOST_TOKENS]
               for tokens in texts]  # fmt: skip
    config = QaTuningConfig(learning_rate=chosen.learning_rate, questions=TEXTS_A_STEP)
    digest = zlib.crc32(repr([prompts, targets]).encode())  # other texts, another copy
    folder = materials.state_folder(f"titles-{digest:08x}", config)
    tune(writer, prompts, targets, materials, config, folder)
    return writer


if __name__ == "__main__":
    main()
