"""How long self-matching's search takes over a full bank.

Builds a real bank in a temporary folder, with tiny memory tensors and keys of full size, and
prints JSON: milliseconds of a search (filtered or not), of following the bank, of the first load.

    python benchmarks/matching.py --memories 100000 --key-size 576
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import normalize

from cmt.bank import Bank
from cmt.evaluation.results import stamp
from cmt.matching import KeyIndex
from cmt.records import Document, EncodedPiece, Fingerprint
from cmt.selection import select

FINGERPRINT = Fingerprint(base_model="benchmark", compressor="benchmark")
CPU = torch.device("cpu")
DOCUMENTS_A_BATCH = 1000
HALF = select(namespace="other")
ONE_IN_20 = select(namespace=None, tags=["tag 7"])
DATED = select(namespace=None, since="2005", as_of="2020-06-01")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--memories", type=int, default=100_000)
    parser.add_argument("--key-size", type=int, default=576)
    parser.add_argument("--top-k", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=50)
    arguments = parser.parse_args()
    generator = torch.Generator().manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        with Bank.open(Path(folder) / "bank.sqlite", FINGERPRINT) as bank:
            start = time.perf_counter()
            fill(bank, arguments.memories, arguments.key_size, generator)
            build_seconds = time.perf_counter() - start
            timings = measure(bank, arguments, generator)
            file_bytes = bank.stats().file_bytes
    print(
        json.dumps(
            {
                "memories": arguments.memories,
                "key_size": arguments.key_size,
                "top_k": arguments.top_k,
                "repeats": arguments.repeats,
                "build_seconds": round(build_seconds, 1),
                "file_bytes": file_bytes,
                "milliseconds": timings,
                "machine": machine(),
            },
            indent=2,
        )
    )


def fill(bank: Bank, memories: int, key_size: int, generator: torch.Generator) -> None:
    for first in range(0, memories, DOCUMENTS_A_BATCH):
        how_many = min(DOCUMENTS_A_BATCH, memories - first)
        keys = random_keys(how_many, key_size, generator)
        bank.add([entry(f"document {first + n}", key) for n, key in enumerate(keys)])


def entry(text: str, key: torch.Tensor) -> tuple[Document, list[EncodedPiece]]:
    memory = torch.ones(1, 2, 1, 1, 2, dtype=torch.bfloat16)
    piece = EncodedPiece(start=0, end=len(text), tokens=1, key=key, memory=memory)
    number = int(text.rsplit(maxsplit=1)[1])
    document = Document(
        text=text,
        id=text,
        namespace=("default", "other")[number % 2],
        tags=[f"tag {number % 20}"],
        date=f"{2000 + number % 25}-01-01",
    )
    return document, [piece]


def random_keys(how_many: int, key_size: int, generator: torch.Generator) -> torch.Tensor:
    return normalize(torch.randn(how_many, key_size, generator=generator), dim=1)


def measure(
    bank: Bank, arguments: argparse.Namespace, generator: torch.Generator
) -> dict[str, dict[str, float]]:
    index = KeyIndex(bank)
    queries = random_keys(16, arguments.key_size, generator)
    added = iter(range(arguments.repeats + 1))

    def add_one() -> None:
        name = f"later {next(added)}"
        bank.add([entry(name, queries[0])])

    def after(change: Callable[[], object]) -> Callable[[], Callable[[], object]]:
        def prepare() -> Callable[[], object]:
            change()
            return index.refresh

        return prepare

    deleted = iter(range(arguments.repeats + 1))
    repeats = arguments.repeats
    return {
        "first_load": timed(lambda: KeyIndex(bank).refresh, 3),
        "search_1_query": timed(
            lambda: lambda: index.search(queries[:1], arguments.top_k), repeats
        ),
        "search_1_query_half_the_namespaces": timed(
            lambda: lambda: index.search(queries[:1], arguments.top_k, HALF), repeats
        ),
        "search_1_query_one_tag_in_20": timed(
            lambda: lambda: index.search(queries[:1], arguments.top_k, ONE_IN_20), repeats
        ),
        "search_1_query_as_of_and_since": timed(
            lambda: lambda: index.search(queries[:1], arguments.top_k, DATED), repeats
        ),
        "search_16_queries": timed(lambda: lambda: index.search(queries, arguments.top_k), repeats),
        "refresh_nothing_new": timed(lambda: index.refresh, repeats),
        "refresh_one_added": timed(after(add_one), repeats),
        "refresh_one_deleted": timed(
            after(lambda: bank.delete(f"document {next(deleted)}")), repeats
        ),
    }


def timed(prepare: Callable[[], Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median and 95th percentile of what `prepare` returns, itself not timed; one warm-up."""
    prepare()()
    milliseconds = []
    for _ in range(repeats):
        call = prepare()
        start = time.perf_counter()
        call()
        milliseconds.append(1000 * (time.perf_counter() - start))
    return {
        "median": round(statistics.median(milliseconds), 3),
        "p95": round(float(np.percentile(milliseconds, 95)), 3),
    }


def machine(device: torch.device = CPU) -> dict[str, object]:
    """The stamp of a result made on `device`, and more of the processor."""
    return {
        **asdict(stamp(device)),
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "blas_threads": os.environ.get("OPENBLAS_NUM_THREADS", "all cores"),
        "numpy": np.__version__,
    }


def processor() -> str:
    """The processor's name, from Linux where it says so."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
