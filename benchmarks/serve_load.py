"""Load on the service: many askers at once while documents stream in.

Starts `cmt serve` on a free port with a bank of its own, learns the first documents, then lets
ASKERS clients ask one question after the other for SECONDS, first alone, then while another
client adds documents one a request. Prints percentiles of the whole answer and of the first
piece, errors, and what /metrics says about batches and about passes of the compressor.

Usage: python benchmarks/serve_load.py DATA [--askers 64] [--seconds 60] [--output FILE]
DATA is a SQuAD file (dev-v1.1.json).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

import httpx2

from cmt.datasets.squad import load_squad

MODEL = "smollm2-135m"
ANSWER_TOKENS = 16


class Load:
    """What one phase measured; seconds of every answer that came."""

    def __init__(self) -> None:
        self.whole: list[float] = []
        self.first: list[float] = []
        self.errors: list[str] = []
        self.documents = 0
        self.learning: list[float] = []

    def summary(self, seconds: float) -> dict[str, Any]:
        """The figures of a phase that took so long."""
        return {
            "seconds": round(seconds, 1),
            "answers": len(self.whole),
            "answers_per_second": round(len(self.whole) / seconds, 2),
            "answer_seconds": percentiles(self.whole),
            "first_piece_seconds": percentiles(self.first),
            "documents_learned": self.documents,
            "add_request_seconds": percentiles(self.learning),
            "errors": len(self.errors),
            "error_kinds": sorted(set(self.errors)),
        }


def percentiles(values: list[float]) -> dict[str, float] | None:
    if not values:
        return None
    ordered = sorted(values)
    places = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}
    return {
        name: round(ordered[min(len(ordered) - 1, int(share * len(ordered)))], 3)
        for name, share in places.items()
    }


async def ask(client: httpx2.AsyncClient, questions: list[str], until: float, load: Load) -> None:
    for question in questions:
        if time.perf_counter() > until:
            return
        body = {
            "model": MODEL,
            "messages": [{"role": "user", "content": question}],
            "stream": True,
            "max_tokens": ANSWER_TOKENS,
        }
        began, first, text = time.perf_counter(), None, ""
        try:
            async with client.stream("POST", "/v1/chat/completions", json=body) as answer:
                async for piece in answer.aiter_text():
                    text += piece
                    if first is None and '"content": "' in text.replace('"content": ""', ""):
                        first = time.perf_counter() - began
        except httpx2.HTTPError as error:
            load.errors.append(type(error).__name__)
            continue
        if answer.status_code != 200 or not text.endswith("data: [DONE]\n\n"):
            load.errors.append(f"status {answer.status_code}")
            continue
        load.whole.append(time.perf_counter() - began)
        if first is not None:
            load.first.append(first)


async def learn(
    client: httpx2.AsyncClient, documents: list[tuple[str, str]], until: float, load: Load
) -> None:
    for name, text in documents:
        if time.perf_counter() > until:
            return
        began = time.perf_counter()
        body = {"documents": [{"id": name, "text": text}]}
        answer = await client.post("/v1/memories", json=body)
        if answer.status_code != 200 or answer.json()["added"] != [name]:
            load.errors.append(f"add: status {answer.status_code}")
            continue
        load.documents += 1
        load.learning.append(time.perf_counter() - began)


async def phase(
    url: str, seconds: float, questions: list[list[str]], documents: list[tuple[str, str]]
) -> dict[str, Any]:
    load = Load()
    limits = httpx2.Limits(max_connections=len(questions) + 1)
    async with httpx2.AsyncClient(base_url=url, timeout=180, limits=limits) as client:
        began = time.perf_counter()
        until = began + seconds
        work = [ask(client, own, until, load) for own in questions]
        await asyncio.gather(*work, learn(client, documents, until, load))
        return load.summary(time.perf_counter() - began)


def histogram(metrics: str, name: str) -> dict[str, Any]:
    """Count, mean and the least bucket bound that holds everything."""
    count = float(re.search(rf"^{name}_count (\S+)", metrics, re.M)[1])  # type: ignore[index]
    total = float(re.search(rf"^{name}_sum (\S+)", metrics, re.M)[1])  # type: ignore[index]
    buckets = re.findall(rf'^{name}_bucket{{le="([^"]+)"}} (\S+)', metrics, re.M)
    bound = next(bound for bound, held in buckets if float(held) == count)
    return {"count": int(count), "mean": round(total / max(1, count), 4), "all_within": bound}


def serve(folder: Path) -> tuple[subprocess.Popen[str], str]:
    command = [sys.executable, "-m", "cmt.cli", "serve", "--port", "0", "--offline"]
    command += ["--bank", str(folder / "bank.sqlite"), "--requests-per-second", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if found := re.search(r"running on (http://\S+)", line):
            return process, found[1]
    raise SystemExit("the service did not start")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--askers", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--documents", type=int, default=100, help="learned before the first ask")
    parser.add_argument("--note", default="", help="what else the machine was doing")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    dataset = load_squad(options.data)
    texts = [(f"doc-{n}", one.text) for n, one in enumerate(dataset.documents)]
    asked = [q.text for q in dataset.questions if q.document < options.documents]
    own = [asked[n :: options.askers] * 50 for n in range(options.askers)]
    with tempfile.TemporaryDirectory() as folder:
        process, url = serve(Path(folder))
        try:
            first = [{"id": name, "text": text} for name, text in texts[: options.documents]]
            add = httpx2.post(f"{url}/v1/memories", json={"documents": first}, timeout=900)
            add.raise_for_status()
            alone = asyncio.run(phase(url, options.seconds, own, []))
            streamed = texts[options.documents :]
            together = asyncio.run(phase(url, options.seconds, own, streamed))
            metrics = httpx2.get(f"{url}/metrics").text
            listed = httpx2.get(f"{url}/v1/memories", params={"limit": 1}).json()["total"]
        finally:
            process.terminate()
            code = process.wait(120)
    result = {
        "date": date.today().isoformat(),
        "command": " ".join(["python", "benchmarks/serve_load.py", *sys.argv[1:]]),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "note": options.note,
        "askers": options.askers,
        "answers_alone": alone,
        "while_documents_stream_in": together,
        "batch_questions": histogram(metrics, "cmt_batch_questions"),
        "turn_wait_seconds": histogram(metrics, "cmt_turn_wait_seconds"),
        "learning_pass_seconds": histogram(metrics, "cmt_learning_pass_seconds"),
        "documents_in_bank": listed,
        "documents_acknowledged": options.documents + together["documents_learned"],
        "exit_code": code,
    }
    text = json.dumps(result, indent=1)
    print(text)
    if options.output is not None:
        options.output.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
