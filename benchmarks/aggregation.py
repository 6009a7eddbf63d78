r"""How several memories are best read together: side by side, or separately and mixed.

Asks the questions of SQuAD's held-out articles, which training never saw, with every number of
memories, aggregation and temperature of the matching weights. The bank is compressed once, and
memories are found once. Prints a table and writes JSON; "gain" is the F1 above that of the best
memory alone, question by question, with its 95% interval. Beside the ways that can be chosen a
fourth is tried: cross-attention of every layer to each memory by itself, the outputs mixed.

    python benchmarks/aggregation.py squad/train-v1.1.json.gz --out aggregation.json
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cmt.aggregating import WAYS, Aggregation
from cmt.compressor import Compressor
from cmt.datasets import QADataset, hold_out, load_squad
from cmt.evaluation.qa import score
from cmt.evaluation.results import stamp, without_predictions
from cmt.generation import Sampling, generate
from cmt.late_interaction import SHORTLIST
from cmt.metrics import bootstrap_interval, f1
from cmt.opening import load_compressor
from cmt.reading import question_tokens, reading_start
from cmt.resident import ResidentBank, chunks, learn, match_scores, reading_scores

ARTICLES = 20  # held out, as in training
PLACES = {"cpu": 8192, "cuda": 262_144}  # memory tokens read in one batch
MATCHED = {"cpu": 8, "cuda": 64}  # questions compared and re-ranked in one pass
CROSS = "cross-attention"


def main() -> None:
    options = command_line()
    compressor = load_compressor(options.model, options.checkpoint, device=options.device)
    compressor.eval().requires_grad_(False)
    device = compressor.base.device
    torch.backends.cuda.enable_cudnn_sdp(False)  # makes a plan for each length of an answer
    _, data = hold_out(load_squad(options.squad, strict=False), articles=options.articles)
    data = sample(data, options.documents, options.questions)
    bank = learn(compressor, data)
    prompts = question_tokens(compressor.base.tokenizer, [q.text for q in data.questions])
    matched = MATCHED[device.type]
    began = time.perf_counter()
    with torch.no_grad():
        scores_QD = match_scores(compressor, bank, prompts, SHORTLIST, matched)
        ranked = reading_scores(
            compressor, bank, prompts, scores_QD, (1, *options.top_k), options.rerank, matched
        )
    matching_seconds = seconds_since(began, device)
    right_Q = torch.tensor([q.document for q in data.questions], device=device)
    best = {k: made_QD.topk(min(k, len(bank.keys)), dim=1) for k, made_QD in ranked.items()}
    own = {k: bank.owners_D[best[k].indices] == right_Q[:, None] for k in options.top_k}
    made = {
        **asdict(stamp(device, options.commit)),
        "dataset": data.name,
        "articles": options.articles,
        "documents": len(data.documents),
        "questions": len(data.questions),
        "rerank": options.rerank,
        "compressor": compressor.fingerprint(),
        "compress_seconds": bank.seconds,
        "match_seconds": matching_seconds,
        "found": {k: float(100 * own_QM.any(1).float().mean()) for k, own_QM in own.items()},
        "rows": [],
    }
    print(
        f"{len(bank.keys)} memories, {len(data.questions)} questions, {made['hardware']}; "
        f"compressed in {bank.seconds:.1f} s, matched in {matching_seconds:.1f} s"
    )
    print(f"{'k':>2} {'aggregation':<12}{'T':>5}{'EM':>7}{'F1':>7}   {'95% of EM':<12}"
          f"{'95% of F1':<12}{'gain':>6}  {'95%':<11}{'s/question':>10}")  # fmt: skip
    alone: list[float] = []
    for top_k, how, way in settings(options):
        began = time.perf_counter()
        places = options.places or PLACES[device.type]
        crossed = how == CROSS
        predictions = answers(compressor, bank, prompts, best[top_k], way, places, crossed)
        seconds = seconds_since(began, device) / len(prompts)
        overlaps = f1_of(predictions, data)
        alone = alone or overlaps  # the first one reads one memory
        row = row_of(predictions, data, overlaps, alone)
        row = {"top_k": top_k, **asdict(way), "how": how, **row, "seconds_per_question": seconds}
        made["rows"].append(row)
        print(shown(row), flush=True)
        if options.out:  # after each: what is cut short is kept
            options.out.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")


def command_line() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("squad", type=Path, help="SQuAD v1.1's training file")
    parser.add_argument("--model", default="smollm2-135m", help="base model")
    parser.add_argument("--checkpoint", type=Path, help="default: the one shipped for the model")
    parser.add_argument("--device", help="cpu or cuda; default: CUDA when there is one")
    parser.add_argument("--articles", type=int, default=ARTICLES, help="held out")
    parser.add_argument("--documents", type=int, help="learn only N random ones")
    parser.add_argument("--questions", type=int, help="ask only N random ones")
    parser.add_argument("--top-k", type=int, nargs="+", default=[1, 2, 3, 5, 8])
    parser.add_argument("--ways", nargs="+", choices=(*WAYS, CROSS), default=list(WAYS))
    parser.add_argument("--temperatures", type=float, nargs="+", default=[1.0, 2.0, 4.0])
    parser.add_argument(
        "--rerank", type=int, default=10, help="memories re-ranked, all read at least; 0: none"
    )
    parser.add_argument("--places", type=int, help="memory tokens read in one batch")
    parser.add_argument("--out", type=Path, help="JSON")
    parser.add_argument("--commit", help="of the code, where there is no repository to ask")
    options = parser.parse_args()
    if min(options.top_k) < 1:
        parser.error(f"expected --top-k from 1 on, got {min(options.top_k)}")
    return options


def sample(data: QADataset, documents: int | None, questions: int | None) -> QADataset:
    """So many random documents, and so many random questions on them; the same each time."""
    draw = np.random.default_rng(0)
    if documents is not None:
        chosen = draw.permutation(len(data.documents))[:documents]
        data = data.select_documents(sorted(chosen.tolist()), name=data.name)
    if questions is not None:
        asked = sorted(draw.permutation(len(data.questions))[:questions].tolist())
        data = replace(data, questions=tuple(data.questions[i] for i in asked))
    return data


def settings(options: argparse.Namespace) -> Iterator[tuple[int, str, Aggregation]]:
    """One memory once, it is the same in all ways; then every combination."""
    yield 1, "concatenate", Aggregation(how="concatenate")
    for top_k in sorted(set(options.top_k) - {1}):
        for how in options.ways:
            for temperature in options.temperatures:
                rows = "mix" if how == CROSS else how  # a row for each memory
                yield top_k, how, Aggregation(how=rows, temperature=temperature)


@contextmanager
def cross_attention(compressor: Compressor, weights_QM: Tensor) -> Iterator[None]:
    """Every layer's attention reads each memory in a row of its own, and all rows go on alike.

    What they go on with is the mean of their outputs by matching probability: the question's
    tokens attend to each memory as in the paper's ψ, by the reader's own, untrained weights.
    """

    def mixed(module: torch.nn.Module, given: Any, output: Any) -> Any:
        states_QMTW = output[0].unflatten(0, weights_QM.shape)
        mean = torch.einsum("qmtw,qm->qtw", states_QMTW, weights_QM.to(states_QMTW.dtype))
        return mean.repeat_interleave(weights_QM.shape[1], 0), *output[1:]

    names = (".self_attn", ".attn")
    modules = [m for n, m in compressor.base.model.named_modules() if n.endswith(names)]
    hooks = [module.register_forward_hook(mixed) for module in modules]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def answers(
    compressor: Compressor,
    bank: ResidentBank,
    prompts: list[list[int]],
    best: Any,
    way: Aggregation,
    places: int,
    crossed: bool = False,
) -> list[str]:
    """The answer to each question from its best memories, given as values and indices (Q, M)."""
    base, config = compressor.base, compressor.config
    indices_QM, scores_QM = best.indices, best.values
    size = max(1, places // (config.memory_tokens * indices_QM.shape[1]))
    predictions = [""] * len(prompts)
    by_length = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    for rows in chunks(by_length, size):
        index: Tensor = torch.tensor(rows, device=base.device)
        weights = way.weights(scores_QM[index])
        with cross_attention(compressor, weights) if crossed else nullcontext():
            texts = generate(
                base,
                [prompts[i] for i in rows],
                way.resident_prefix(bank.memories, indices_QM[index], scores_QM[index]),
                start=reading_start(config.max_piece_tokens),
                sampling=Sampling(max_new_tokens=24),
                stop_tokens=compressor.stop_tokens,
                replayed=False if crossed else None,  # a replayed pass calls no hook
                shrinking=False if crossed else None,  # hooks know the rows by number
            )
        for i, text in zip(rows, texts, strict=True):
            predictions[i] = str(base.tokenizer.decode(text, skip_special_tokens=True)).strip()
    return predictions


def f1_of(predictions: list[str], data: QADataset) -> list[float]:
    """F1 of each answer, in percent."""
    pairs = zip(predictions, data.questions, strict=True)
    return [100 * f1(prediction, question.answers) for prediction, question in pairs]


def row_of(
    predictions: list[str], data: QADataset, overlaps: list[float], alone: list[float]
) -> dict[str, Any]:
    """Scores, and what was gained over one memory, question by question."""
    gains = [own - other for own, other in zip(overlaps, alone, strict=True)]
    scores: dict[str, Any] = without_predictions(score(predictions, data))
    return {
        **scores,
        "f1_gain": sum(gains) / len(gains),
        "f1_gain_interval": bootstrap_interval(gains),
    }


def shown(row: dict[str, Any]) -> str:
    """A line of the table."""

    def between(name: str) -> str:
        low, high = row[name]
        return f"{low:.1f}–{high:.1f}"

    return (
        f"{row['top_k']:>2} {row['how']:<12}{row['temperature']:>5g}"
        f"{row['exact_match']:>7.1f}{row['f1']:>7.1f}   {between('exact_match_interval'):<12}"
        f"{between('f1_interval'):<12}{row['f1_gain']:>+6.1f}  "
        f"{between('f1_gain_interval'):<11}{row['seconds_per_question']:>10.4f}"
    )


def seconds_since(began: float, device: torch.device) -> float:
    """Wall-clock, with everything the device was told to do done."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
