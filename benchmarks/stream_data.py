"""The data of a benchmark run, from a folder, and the sizes of a run."""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass, replace
from pathlib import Path

from cmt.datasets import (
    QADataset,
    load_archivalqa,
    load_jsonl,
    load_realtimeqa,
    load_squad,
    load_streamingqa,
    peers_protocol,
    stream,
)
from cmt.errors import InputError
from cmt.evaluation.stream import sampled
from cmt.records import Document

DATASETS = ("squad", "streamingqa", "archivalqa", "realtimeqa", "jsonl", "squad-file")
LONGEST = 2000  # characters of an unrelated document


@dataclass(kw_only=True, slots=True)
class Data:
    """What a run reads.

    Attributes:
        training, qa_training: What methods are trained on.
        validation: Where settings are chosen.
        stream: What is learned and asked.
    """

    training: QADataset
    qa_training: QADataset
    validation: QADataset
    stream: QADataset


def load(
    folder: Path, kind: str, path: Path | None, documents: int, questions: int, validation: int
) -> Data:
    """The parts of a dataset.

    SQuAD: the peers' protocol, the first `documents` of dev as the stream. StreamingQA and
    ArchivalQA: train, val and test of the csv folder `path`. Everything else is only a stream:
    methods are trained on SQuAD's protocol.
    """
    if kind in ("streamingqa", "archivalqa"):
        if path is None:
            raise InputError(f"expected --path FOLDER with the csv files of {kind}, got none")
        read = load_streamingqa if kind == "streamingqa" else load_archivalqa
        training, held_out, test = (
            read(path, split=split, strict=False) for split in ("train", "val", "test")
        )
        parts = Data(training=training, qa_training=training, validation=held_out, stream=test)
    else:
        squad = folder / "squad" if (folder / "squad").is_dir() else folder
        protocol = peers_protocol(load_squad(squad, split="train", strict=True))
        parts = Data(
            training=protocol.training,
            qa_training=protocol.qa_training,
            validation=protocol.validation,
            stream=_stream(folder, squad, kind, path),
        )
    learned = stream(parts.stream, min(documents, len(parts.stream.documents)))
    held_out = stream(parts.validation, min(validation, len(parts.validation.documents)))
    return replace(parts, stream=sampled(learned, questions), validation=held_out)


def _stream(folder: Path, squad: Path, kind: str, path: Path | None) -> QADataset:
    if kind == "squad":
        return load_squad(squad, split="dev", strict=False)
    if kind == "realtimeqa":
        return load_realtimeqa(path or folder / "realtimeqa" / "evidence_qa.jsonl.gz")
    if path is None:
        raise InputError(f"expected --path FILE for {kind}, got none")
    return load_jsonl(path, strict=False) if kind == "jsonl" else load_squad(path, strict=False)


def unrelated_documents(folder: Path, how_many: int) -> list[Document]:
    """Wikipedia summaries, then paragraphs of WikiText-2, each text once."""
    texts: dict[str, None] = {}
    summaries = json.loads(_text(folder / "text" / "wikipedia_summaries.json.gz"))
    texts.update(dict.fromkeys(page["extract"][:LONGEST] for page in summaries.values()))
    for part in ("train", "valid", "test"):
        lines = (line.strip() for line in _text(folder / "text" / f"{part}.raw.gz").split("\n"))
        texts.update(dict.fromkeys(line[:LONGEST] for line in lines if len(line) > 100))
    kept = [text for text in texts if text.strip()][:how_many]
    return [Document(text=text, id=f"unrelated-{i:05d}") for i, text in enumerate(kept)]


def plain_text(folder: Path) -> str:
    """WikiText-2's test part."""
    return _text(folder / "text" / "test.raw.gz")


def unrelated_questions(folder: Path, how_many: int) -> QADataset:
    """Random questions on new Wikipedia passages, with their passages alone."""
    files = sorted((folder / "new_wiki").glob("*.json*"))
    if not files:
        raise InputError(f"expected a SQuAD-format file in {folder / 'new_wiki'}, got none")
    chosen = sampled(load_squad(files[0], strict=False), how_many)
    return chosen.select_questions(range(len(chosen.questions)))


def _text(file: Path) -> str:
    try:
        with gzip.open(file, "rt", encoding="utf-8") as opened:
            return opened.read()
    except OSError as error:
        raise InputError(f"expected a gzipped text at {file}, got: {error}") from error
