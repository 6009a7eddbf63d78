"""What fewer bits a number cost: the same memories in bfloat16, eight and four bits.

Learns the first paragraphs of a SQuAD file once, rounds the memories as a tier would store them
and asks the same questions of each.

    python benchmarks/storage_tiers.py DEV --documents 300 --questions 400
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from matching import machine
from torch import Tensor

from cmt.datasets import load_squad
from cmt.evaluation.qa import evaluate
from cmt.opening import load_compressor
from cmt.quantization import dequantize, dequantize4, quantize, quantize4
from cmt.resident import ResidentBank, learn


def rounded(values: Tensor, dims: tuple[int, ...], most: int) -> Tensor:
    """Numbers of -most … most steps, one step size along `dims`."""
    steps = (values.abs().amax(dim=dims, keepdim=True) / most).clamp(min=1e-8)
    return (values / steps).round() * steps


def int8(memory: Tensor) -> Tensor:
    """As the bank's tier: a step a head."""
    return dequantize(*quantize(memory))


def int4_token(memory: Tensor) -> Tensor:
    """A step a head and token: 64 numbers share one."""
    return rounded(memory.float(), (4,), 7)


def int4(memory: Tensor) -> Tensor:
    """As the bank's tier: keys a step a head and channel, values a step a head and token."""
    return dequantize4(*quantize4(memory))


# How numbers are rounded, and bits a number with a 16-bit step (8 bits: a float32 step).
TIERS: dict[str, tuple[Callable[[Tensor], Tensor], float]] = {
    "bf16": (lambda memory: memory, 16),
    "int8, a step a head": (int8, 8 + 32 / (32 * 64)),
    "int4, a step a token": (int4_token, 4 + 16 / 64),
    "int4, keys a step a channel": (int4, 4 + (16 / 32 + 16 / 64) / 2),
}


def stored_as(bank: ResidentBank, round_to: Callable[[Tensor], Tensor]) -> ResidentBank:
    """The bank with its memories rounded as a tier stores them."""
    return replace(
        bank, memories=torch.stack([round_to(m) for m in bank.memories]).to(torch.bfloat16)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("squad", type=Path, help="A SQuAD v1.1 file.")
    parser.add_argument("--documents", type=int, default=300)
    parser.add_argument("--questions", type=int, default=400)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    dataset = load_squad(arguments.squad, strict=False)
    dataset = dataset.select_documents(range(arguments.documents))
    draw = np.random.default_rng(0).permutation(len(dataset.questions))[: arguments.questions]
    dataset = dataset.select_questions(sorted(draw.tolist()))
    compressor = load_compressor("smollm2-135m", None, device=None, dtype=None, offline=None)
    bank = learn(compressor, dataset)
    rows, exact = [], {}
    for name, (round_to, bits) in TIERS.items():
        result = evaluate(compressor, dataset, bank=stored_as(bank, round_to), batch_size=32)
        assert result.given is not None
        readings = {"found": result.found[1], "given": result.given}
        exact = exact or {key: own.predictions for key, own in readings.items()}
        row: dict[str, object] = {
            "tier": name,
            "bytes": round(bank.memories[0].numel() * bits / 8),
        }
        for key, own in readings.items():
            same = sum(a == b for a, b in zip(own.predictions, exact[key], strict=True))
            row[key] = {
                "exact_match": round(own.exact_match, 2),
                "f1": round(own.f1, 2),
                "same_answers": same,
            }
        rows.append(row)
        print(json.dumps(row), flush=True)
    report = {
        "documents": len(dataset.documents),
        "questions": len(dataset.questions),
        "rows": rows,
        "compressor": compressor.fingerprint(),
        "machine": machine(),
    }
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
