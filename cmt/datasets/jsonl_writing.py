"""A dataset as a file that `load_jsonl` reads."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

from cmt.datasets.qa import QADataset


def write_jsonl(dataset: QADataset, file: Path) -> None:
    """One question a line, as `cmt.datasets.load_jsonl` reads them; gzipped if it ends in .gz."""
    lines = []
    for question in dataset.questions:
        document = dataset.documents[question.document]
        record = {
            "id": question.id,
            "text": document.text,
            "question": question.text,
            "answers": list(question.answers),
            "title": document.title,
            "article": str(dataset.articles[question.document]),
        }
        lines.append(json.dumps(record, ensure_ascii=False) + "\n")
    content = "".join(lines).encode()
    file.write_bytes(gzip.compress(content, mtime=0) if file.suffix == ".gz" else content)
