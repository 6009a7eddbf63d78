r"""The frozen model reads the text itself: accuracy and cost beside compressed memory.

Few-shot prompts with the right paragraph, or with the paragraph that BM25 finds among all of
the dataset's, as text; and the same questions answered from compressed memories. One run, one
machine, the same questions. Needs ``bm25s`` (the package's ``dev`` extra has it).

    python benchmarks/text_in_prompt.py squad/dev-v1.1.json.gz squad/train-v1.1.json.gz \\
        --documents 200 --questions 200 --out benchmarks/results/text_in_prompt.json
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import bm25s
import numpy as np
import torch

from cmt import Memory
from cmt.base_model import BaseModel
from cmt.datasets import QADataset, load_squad
from cmt.evaluation.qa import score
from cmt.evaluation.results import stamp
from cmt.generation import Sampling, generate

SHOTS = 3
MOST_WORDS = 90  # of an example's paragraph
MOST_ANSWER = 30  # characters of an example's answer
SAMPLING = Sampling(max_new_tokens=24)


def examples(training: QADataset) -> str:
    """Three solved examples from the training part, as text."""
    short = [q for q in training.questions if len(q.answers[0]) < MOST_ANSWER]
    chosen: list[str] = []
    for number in np.random.default_rng(0).permutation(len(short)):
        question = short[number]
        passage = training.documents[question.document].text
        if len(passage.split()) <= MOST_WORDS:
            chosen.append(shot(passage, question.text) + f" {question.answers[0]}\n\n")
        if len(chosen) == SHOTS:
            break
    return "".join(chosen)


def shot(passage: str, question: str) -> str:
    """A paragraph and a question on it."""
    return f"{passage}\nQuestion: {question}\nAnswer:"


def sample(dataset: QADataset, documents: int, questions: int) -> QADataset:
    """So many random documents, and so many random questions on them."""
    rng = np.random.default_rng(0)
    chosen = rng.permutation(len(dataset.documents))[:documents]
    data = dataset.select_documents(sorted(chosen.tolist()))
    asked = sorted(rng.permutation(len(data.questions))[:questions].tolist())
    return replace(data, questions=tuple(data.questions[i] for i in asked))


def best_by_bm25(data: QADataset) -> list[int]:
    """The document that BM25 finds for each question."""
    texts = [document.text for document in data.documents]
    searcher = bm25s.BM25()
    searcher.index(bm25s.tokenize(texts, stopwords="en", show_progress=False), show_progress=False)
    words = bm25s.tokenize([q.text for q in data.questions], stopwords="en", show_progress=False)
    found, _ = searcher.retrieve(words, k=1, show_progress=False)
    return [int(number) for number in found[:, 0]]


def row(data: QADataset, predictions: list[str], seconds: float, tokens: int) -> dict[str, Any]:
    """A row of the table: scores, and what a question cost."""
    scores = asdict(score(predictions, data))
    del scores["predictions"]
    number = len(data.questions)
    made = {"tokens_read": tokens / number, "seconds_per_question": seconds / number}
    return scores | made


def from_text(
    base: BaseModel, data: QADataset, passages: list[str], shots: str, batch_size: int
) -> dict[str, Any]:
    """The frozen model with a paragraph in the prompt, after solved examples."""
    newlines = [
        base.tokenizer(text, add_special_tokens=False)["input_ids"][-1] for text in ("\n", "\n\n")
    ]
    prompts = [
        base.tokenizer(shots + shot(passage, q.text), add_special_tokens=False)["input_ids"]
        for passage, q in zip(passages, data.questions, strict=True)
    ]
    began = time.perf_counter()
    predictions: list[str] = []
    for start in range(0, len(prompts), batch_size):
        batch = prompts[start : start + batch_size]
        outputs = generate(base, batch, sampling=SAMPLING, stop_tokens=newlines)
        predictions += [base.tokenizer.decode(tokens).strip() for tokens in outputs]
    return row(data, predictions, time.perf_counter() - began, sum(map(len, prompts)))


def from_memory(memory: Memory, data: QADataset, top_k: int, batch_size: int) -> dict[str, Any]:
    """The frozen model with the memories that self-matching finds."""
    questions = [q.text for q in data.questions]
    began = time.perf_counter()
    answers = memory.ask(questions, top_k=top_k, sampling=SAMPLING, batch_size=batch_size)
    seconds = time.perf_counter() - began
    tokens = sum(answer.prompt_tokens + answer.memory_tokens for answer in answers)
    return row(data, [answer.text for answer in answers], seconds, tokens)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("training", type=Path)
    parser.add_argument("--documents", type=int, default=200)
    parser.add_argument("--questions", type=int, default=200)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--checkpoint", type=Path, help="default: the shipped one")
    parser.add_argument("--device")
    parser.add_argument("--commit", help="of the code, where there is no repository to ask")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    data = sample(load_squad(options.dataset, strict=False), options.documents, options.questions)
    before = examples(load_squad(options.training, strict=False))
    right = [data.documents[q.document].text for q in data.questions]
    found = [data.documents[number].text for number in best_by_bm25(data)]
    rows: dict[str, dict[str, Any]] = {}

    def note(name: str, made: dict[str, Any]) -> None:
        rows[name] = made
        print(name, json.dumps(made))

    with (
        tempfile.TemporaryDirectory() as folder,
        Memory.open(
            Path(folder) / "bank",
            model=options.model, checkpoint=options.checkpoint, device=options.device,
        ) as memory,
    ):  # fmt: skip
        made_by = stamp(memory.compressor.base.device, options.commit)
        report = memory.add(data.documents)
        for top_k in (1, 3):
            made = from_memory(memory, data, top_k, options.batch_size)
            note(f"compressed memory, found by self-matching, top {top_k}", made)
        base, size = memory.compressor.base, options.batch_size
        compressor = memory.compressor.fingerprint()
        note("right paragraph as text, 0-shot", from_text(base, data, right, "", size))
        note("right paragraph as text, 3-shot", from_text(base, data, right, before, size))
        note("BM25's paragraph as text, 3-shot", from_text(base, data, found, before, size))
    result = {
        **asdict(made_by),
        "compressor": compressor,
        "dataset": options.dataset.name,
        "documents": options.documents,
        "questions": options.questions,
        "batch_size": options.batch_size,
        "threads": torch.get_num_threads(),
        "learning_seconds": report.seconds,
        "learning_tokens": report.tokens,
        "learning_bytes": report.memory_bytes,
        "rows": rows,
    }
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
