"""Write the demo's passages and questions (cmt/demo/*.jsonl) from SQuADShifts' new Wikipedia set.

    python benchmarks/make_demo_data.py new_wiki_v1.0.json.gz

The choice is by hand: passages of 60 to 200 words on unlike topics, questions that make sense by
themselves and whose answer is a short span that a small model doesn't know. cmt/demo/NOTICE.md
has the licences and the attribution.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

from cmt.datasets import QADataset, load_squad
from cmt.errors import InputError
from cmt.metrics import shortest

DEMO = Path(__file__).resolve().parents[1] / "cmt" / "demo"

# Title of the article: places of the passages among the article's own.
PASSAGES = {
    "Andes": (5, 11, 14),
    "Baltic Sea": (0, 12, 18),
    "Connecticut": (3,),
    "Drum and bass": (5, 13),
    "Flag of the United States": (9, 14),
    "Ice hockey": (13, 30, 32, 48),
    "Istanbul": (19, 21, 41, 68),
    "Manipur": (15, 18),
    "Neuroscience": (3,),
    "Oxford": (11, 13, 19),
    "Precipitation": (30, 33),
    "Rotterdam": (8, 10, 16),
    "Saxophone": (8, 15, 22),
    "Sierra Nevada (U.S.)": (7, 8, 12),
    "Structural engineering": (15, 18),
    "Tin": (2, 10, 18),
}

QUESTIONS = (
    "Who was the chief architect of Istanbul during the reign of Suleiman the Magnificent?",
    "Who is the director of the Rotterdam Philharmonic?",
    "Who founded Morrell's?",
    "Which instrument designer developed chromatic fingering?",
    "What is the name of Betsy Ross's grandson?",
    "What did Lord Stanley purchase for use as a trophy?",
    "Who was in charge of a subgroup of the Bonneville Expedition?",
    "What was Samuel Brannan's occupation?",
    "When was a tinplate canister for preserving food first manufactured?",
    "When did the Silahtaraga plant begin operation?",
    "Who was Marie Braun's coach?",
    "When was Ranganiketan Manipuri Cultural Arts Troupe started?",
    "What beat per minute interval is drum and bass usually between?",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("path", type=Path, help="new_wiki_v1.0.json or .json.gz")
    parser.add_argument("--output", type=Path, default=DEMO, help="folder to write (%(default)s)")
    arguments = parser.parse_args()
    dataset = load_squad(arguments.path)
    chosen = choose_passages(dataset)
    write(arguments.output / "documents.jsonl", documents(dataset, chosen))
    write(arguments.output / "questions.jsonl", questions(dataset, chosen))


def choose_passages(dataset: QADataset) -> dict[int, str]:
    """Index of each chosen document in the dataset, and the id it gets in the demo."""
    by_title: dict[str, list[int]] = {}
    for index, document in enumerate(dataset.documents):
        by_title.setdefault(document.title, []).append(index)
    return {
        by_title[title][place]: f"{re.sub('[^a-z]+', '-', title.lower()).strip('-')}-{place:02d}"
        for title, places in PASSAGES.items()
        for place in places
    }


def documents(dataset: QADataset, chosen: dict[int, str]) -> list[dict[str, object]]:
    """One record a chosen passage."""
    return [
        {
            "id": id_,
            "title": dataset.documents[index].title,
            "text": dataset.documents[index].text.replace("[citation needed]", "").strip(),
            "source": f"https://en.wikipedia.org/wiki/{dataset.documents[index].title}".replace(
                " ", "_"
            ),
            "license": "CC-BY-SA-3.0",
        }
        for index, id_ in chosen.items()
    ]


def questions(dataset: QADataset, chosen: dict[int, str]) -> list[dict[str, object]]:
    """One record a chosen question, in the order of `QUESTIONS`."""
    found = {q.text: q for q in dataset.questions if q.document in chosen and q.text in QUESTIONS}
    missing = [text for text in QUESTIONS if text not in found]
    if missing:
        raise InputError(f"expected to find every chosen question, found no {missing[0]!r}")
    return [
        {
            "id": found[text].id,
            "question": text,
            "answers": [shortest(found[text].answers)],
            "document": chosen[found[text].document],
            "license": "CC-BY-4.0",
        }
        for text in QUESTIONS
    ]


def write(path: Path, records: list[dict[str, object]]) -> None:
    """JSON Lines in UTF-8."""
    lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in records]
    path.write_text("".join(lines), encoding="utf-8")
    print(f"{path}: {len(records)} records, {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
