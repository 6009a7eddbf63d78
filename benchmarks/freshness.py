"""How often the later of two documents that disagree is the one read; what that costs elsewhere.

Learns the dated pairs of benchmarks/data/freshness.jsonl beside the demo's passages and asks each
pair's question, with and without preferring the later. Given a SQuAD file, also how often the
right passage comes first among passages whose dates are drawn at random, which is what the
preference can spoil.

    python benchmarks/freshness.py [--squad DEV --documents 200 --questions 100]
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

from matching import machine

from cmt import Document, Memory
from cmt.datasets import load_squad

HERE = Path(__file__).parent
DEMO = HERE.parent / "cmt" / "demo" / "documents.jsonl"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m", help="base model")
    parser.add_argument("--checkpoint", type=Path, help="default: the one shipped for the model")
    parser.add_argument("--squad", type=Path, help="A SQuAD v1.1 file, for the cost.")
    parser.add_argument("--documents", type=int, default=200)
    parser.add_argument("--questions", type=int, default=100)
    arguments = parser.parse_args()
    pairs = [json.loads(line) for line in (HERE / "data" / "freshness.jsonl").open()]
    model = {"model": arguments.model, "checkpoint": arguments.checkpoint}
    with tempfile.TemporaryDirectory() as folder:
        with Memory.open(Path(folder) / "pairs.sqlite", **model) as memory:
            result = {"pairs": len(pairs), **measure_pairs(memory, pairs)}
            compressor = memory.compressor.fingerprint()
            device = memory.compressor.base.device
        if arguments.squad is not None:
            with Memory.open(Path(folder) / "squad.sqlite", **model) as memory:
                result["random_dates"] = measure_cost(memory, arguments)
    result |= {"compressor": compressor, "machine": machine(device)}
    print(json.dumps(result, indent=1))


def measure_pairs(memory: Memory, pairs: Sequence[dict]) -> dict[str, object]:
    passages = [json.loads(line) for line in DEMO.open()]
    documents = [Document(text=one["text"], id=one["id"], date="2015-01-01") for one in passages]
    for number, pair in enumerate(pairs):
        for age in ("new", "old"):
            text, day = pair[age]["text"], pair[age]["date"]
            documents.append(Document(text=text, id=f"{number}-{age}", date=day))
    memory.add(documents)
    questions = [pair["question"] for pair in pairs]
    results: dict[str, object] = {}
    for name, prefer in (("matching_alone", False), ("later_preferred", True)):
        answers = memory.ask(questions, prefer_later=prefer)
        firsts = [answer.matches[0].document_id for answer in answers]
        shown = [{m.document_id for m in (*answer.matches, *answer.older)} for answer in answers]
        texts = [(pair, answer.text) for pair, answer in zip(pairs, answers, strict=True)]
        results[name] = {
            "later_read": sum(first == f"{n}-new" for n, first in enumerate(firsts)),
            "earlier_read": sum(first == f"{n}-old" for n, first in enumerate(firsts)),
            "both_shown": sum({f"{n}-new", f"{n}-old"} <= ids for n, ids in enumerate(shown)),
            "answers_with_later": sum(pair["new"]["answer"] in text for pair, text in texts),
            "answers_with_earlier": sum(pair["old"]["answer"] in text for pair, text in texts),
        }
    return results


def measure_cost(memory: Memory, arguments: argparse.Namespace) -> dict[str, object]:
    data = load_squad(arguments.squad, strict=False)
    documents = data.documents[: arguments.documents]
    asked = [q for q in data.questions if q.document < len(documents)]
    draw = random.Random(0)  # noqa: S311
    asked = draw.sample(asked, min(arguments.questions, len(asked)))
    days = [str(date(2015, 1, 1) + timedelta(days=draw.randrange(3650))) for _ in documents]
    memory.add(
        Document(text=document.text, id=f"{number}", date=day)
        for number, (document, day) in enumerate(zip(documents, days, strict=True))
    )
    firsts = {}
    for name, prefer in (("matching_alone", False), ("later_preferred", True)):
        found = [memory.search(question.text, prefer_later=prefer)[0] for question in asked]
        firsts[name] = sum(
            match.document_id == f"{question.document}"
            for match, question in zip(found, asked, strict=True)
        )
    return {
        "documents": len(documents),
        "questions": len(asked),
        "right_passage_first": firsts,
        "date": datetime.now(UTC).date().isoformat(),
    }


if __name__ == "__main__":
    main()
