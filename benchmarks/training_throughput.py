"""Training throughput with a roofline: operations of a step, its time, share of the ceiling.

    python benchmarks/training_throughput.py --data DATA --profile
    python benchmarks/training_throughput.py --data DATA --attention flash --no-compile

The step is the loop's own, on the recipe's batches. Operations are those that the method needs:
2 · weights · tokens for every product with a matrix, in the compressor's pass forward, for the
gradient of its input and for that of its weights, in the frozen reader's pass without the last,
the head on target positions alone, attention on the pairs that see each other. What padding,
recomputing or merging adapters cost more is not work done. The ceiling is a large bfloat16 matrix
product of the same device, measured in the same run.
"""

from __future__ import annotations

import argparse
import json
import runpy
import statistics
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from inference_compressing import matrix_weights, operations_a_pair
from inference_timing import matrix_rate, profiled

from cmt.attention import Packing, varlen
from cmt.attention.varlen import VariableLength
from cmt.base_model import BaseModel
from cmt.commands.train import read_texts
from cmt.datasets import hold_out, load_jsonl, load_squad
from cmt.evaluation.costs import metered
from cmt.evaluation.results import stamp
from cmt.tensors import move
from cmt.training import loop
from cmt.training.data import TrainingBatch

HERE = Path(__file__).parent


def pairs(packing: Packing, memories: Sequence[int]) -> int:
    """Queries and keys that see each other; a segment of group i has `memories[i]` keys before."""
    total = 0
    for group, before in zip(packing.groups, memories, strict=True):
        lengths_B = group.valid_BT.sum(1)
        total += int((lengths_B * (lengths_B + 1) // 2 + lengths_B * before).sum())
    return total


def operations(base: BaseModel, batch: TrainingBatch, *, aware: bool) -> dict[str, float]:
    """Floating-point operations of a training step, by part.

    Args:
        base: The frozen model.
        batch: The step's.
        aware: Whether the questions are read without memory too (the memory-aware objective).
    """
    weights, a_pair = matrix_weights(base), operations_a_pair(base)
    compressed, read = len(batch.compressor.tokens_N), len(batch.reading.tokens_N)
    K = batch.compressor.memory_tokens
    before = [1 + K] * len(batch.reading.packing.groups)
    if batch.single < len(batch.positives_Q):
        before[int(batch.single > 0)] = 1 + K * batch.memories
    head = base.model.get_output_embeddings().weight.numel()
    compressing = pairs(batch.compressor.packing, [0] * len(batch.compressor.packing.groups))
    made = {
        "compressing": 6.0 * weights * compressed + 3 * a_pair * compressing,
        "reading": 4.0 * weights * read + 3 * a_pair * pairs(batch.reading.packing, before),
        "head": 4.0 * head * len(batch.reading.targets_T),
    }
    if aware:
        alone = pairs(batch.reading.packing, [0] * len(before))
        made["reading without memory"] = 2.0 * weights * read + a_pair * alone
    return made


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Train some steps; rates and shares."""
    config = runpy.run_path(str(options.recipe))["recipe"]()
    changes = {name: value for name, value in (("documents", options.documents),) if value}
    batch_config = replace(config.batch, **changes)
    if options.extra is None:
        batch_config = replace(batch_config, extra=0, more_questions=0)
    config = replace(config, batch=batch_config, compile=config.compile and not options.no_compile)
    if options.attention == "rectangles":
        VariableLength.serves = staticmethod(lambda query: False)  # type: ignore[method-assign]
    elif options.attention == "flash":
        varlen.short_kernels = lambda: None
    squad = options.data / "squad" if (options.data / "squad").is_dir() else options.data
    dataset = load_squad(squad, split="train")
    if config.held_out_articles:
        dataset, _ = hold_out(dataset, articles=config.held_out_articles)
    texts = list(read_texts(options.texts)) if options.texts else []
    extra = load_jsonl(options.extra, strict=False) if options.extra else None
    run = loop._set_up(config, dataset, extra, texts)
    base, device = run.compressor.base, run.accelerator.device
    batches = iter(loop._loader(run.data, config, 0))

    def step(batch: TrainingBatch) -> None:
        loop._optimise(run.module, batch, run.optimizer, run.accelerator, 1e-4, config.clip_norm)

    counted, last = [], None
    documents = config.batch.documents + config.batch.extra
    for _ in range(options.warm_up):
        step(move(next(batches), device))
    with metered(device) as cost:  # as in the loop, no step waits for the one before it
        for _ in range(options.steps):
            last = next(batches)
            step(move(last, device))
            counted.append(operations(base, last, aware=config.objectives.alpha > 0))
    seconds = cost.seconds / options.steps
    needed = statistics.mean(sum(own.values()) for own in counted)
    peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else None
    ceiling = matrix_rate(device, torch.bfloat16, 8192 if device.type == "cuda" else 512)
    result = {
        **asdict(stamp(device, options.commit)),
        "recipe": options.recipe.name,
        "batch": asdict(config.batch),
        "compiled": config.compile,
        "attention": "rectangles" if device.type == "cpu" else options.attention,
        "steps": options.steps,
        "seconds_a_step": seconds,
        "documents_per_second": documents / seconds,
        "tokens_a_step": len(last.compressor.tokens_N) + len(last.reading.tokens_N),
        "operations_a_step": {n: statistics.mean(own[n] for own in counted) for n in counted[0]},
        "rate": needed / seconds,
        "ceiling": ceiling,
        "share_of_ceiling": needed / seconds / ceiling,
        "peak_bytes": peak,
    }
    if options.profile:
        result["profile"] = profiled(device, lambda: step(move(last, device)))
    return result


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with squad/")
    parser.add_argument("--recipe", type=Path, default=HERE.parent / "recipes/smollm2_135m.py")
    parser.add_argument("--extra", type=Path, help="further questions, as for cmt train")
    parser.add_argument("--texts", type=Path, help="plain texts, as for cmt train")
    parser.add_argument("--documents", type=int, help="a batch, instead of the recipe's")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--warm-up", type=int, default=10, help="steps before (%(default)s)")
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument(
        "--attention", choices=("varlen", "flash", "rectangles"), default="varlen",
        help="as in training (%(default)s), without the kernels for short segments, or padded",
    )  # fmt: skip
    parser.add_argument("--profile", action="store_true", help="of one step")
    parser.add_argument("--commit", help="of the code, where there is no repository to ask")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    result = measure(options)
    text = json.dumps(result, indent=2) + "\n"
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(text)
    shown = {k: v for k, v in result.items() if k not in ("profile", "batch")}
    print(json.dumps(shown, indent=1))
    for row in result.get("profile", {}).get("operators", [])[:12]:
        print(f"{row['milliseconds']:9.2f} ms {row['calls']:6d}  {row['name']}")
    if "profile" in result:
        print({k: v for k, v in result["profile"].items() if k != "operators"})


if __name__ == "__main__":
    main()
